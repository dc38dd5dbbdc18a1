"""The optimizers: SOAP for kernels and Adam for everything else, with a learning rate for each kind of weight.

Neighbouring pixels are much alike, so a kernel's input varies far more in some directions than in others. Adam treats
each weight on its own: it must move slowly to stay stable along the strong directions, and then hardly moves along the
weak ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hasn_cli.network import HASN

LOOK = 10  # steps at the start in which SOAP only collects gradients to find its first bases
REFRESH = 20  # steps from one update of the bases to the next
LONGEST_LEFT, LONGEST_RIGHT = 64, 512  # longer sides (outputs; inputs times taps) get no basis


class SOAP(torch.optim.Optimizer):
    """Adam in the eigenbasis of the gradients (Vyas et al., arXiv 2409.11321).

    A parameter of any shape counts as a matrix: its first axis × all others. For each side of the matrix, the products
    of the gradients are averaged over time. Their eigenvectors are the basis in which Adam's second moment is kept and
    its step is made. One step of orthogonal iteration updates the basis every `REFRESH` steps.

    Args:
        parameters: all of one shape. They are computed together, and either all or none have a gradient.
        lr: the learning rate.
        betas: decay of the mean gradient, and of its square and the products.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move the parameters, and find or update the bases when it is time."""
        self.move()
        self.maintain()

    @torch.no_grad()
    def move(self) -> None:
        """The part of a step that a CUDA graph can capture. `maintain` must follow."""
        (group,) = self.param_groups
        parameters: list[Tensor] = group["params"]
        gradients = [parameter.grad.flatten(1) for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        gradient = torch.stack(gradients)  # N×R×C
        state: dict[str, Any] = self.state[parameters[0]]  # of all of them
        products = _products(gradient)
        if not state:
            state.update(_fresh(gradient, products))
        slow, quick = group["betas"]
        state["mean"].lerp_(gradient, 1 - slow)
        state["missing_mean"].mul_(slow)
        for side, product in products.items():
            state[side].lerp_(product, 1 - quick)
        if state["step"] < LOOK:
            return
        state["square"].lerp_(_turn(gradient, state).square(), 1 - quick)
        state["missing_square"].mul_(quick)
        mean = _turn(state["mean"], state) / (1 - state["missing_mean"])
        square = state["square"] / (1 - state["missing_square"])
        update = _turn_back(mean / (square.sqrt() + group["eps"]), state) * group["lr"]
        for parameter, move in zip(parameters, update, strict=True):
            parameter.sub_(move.view_as(parameter))

    @torch.no_grad()
    def maintain(self) -> None:
        """Count a step that was made, and find or update the bases when it is time."""
        state: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        if not state:
            return
        state["step"] += 1
        looked = state["step"] - LOOK
        if looked == 0:
            _find_bases(state)
        elif looked > 0 and looked % REFRESH == 0:
            _refresh_bases(state)


def _products(gradient: Tensor) -> dict[str, Tensor]:
    """N×R×C → the products of the gradient for each side that has a basis: N×R×R, N×C×C."""
    rows, columns = gradient.shape[1:]
    products = {}
    if rows <= LONGEST_LEFT:
        products["left"] = gradient @ gradient.mT
    if columns <= LONGEST_RIGHT:
        products["right"] = gradient.mT @ gradient
    return products


def _fresh(gradient: Tensor, products: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state before the first step, for N×R×C. `missing_…` is the share that a mean over time still lacks."""
    means = {"mean": gradient, "square": gradient, **products}
    missing = {name: gradient.new_ones(()) for name in ("missing_mean", "missing_square")}
    return {"step": 0, **missing} | {name: torch.zeros_like(like) for name, like in means.items()}


def _turn(matrices: Tensor, state: dict[str, Any]) -> Tensor:
    """Transform N×R×C into the bases."""
    if "left" in state:
        matrices = state["left_basis"].mT @ matrices
    if "right" in state:
        matrices = matrices @ state["right_basis"]
    return matrices


def _turn_back(matrices: Tensor, state: dict[str, Any]) -> Tensor:
    """Transform N×R×C back from the bases."""
    if "left" in state:
        matrices = state["left_basis"] @ matrices
    if "right" in state:
        matrices = matrices @ state["right_basis"].mT
    return matrices


def _find_bases(state: dict[str, Any]) -> None:
    for side in ("left", "right"):
        if side in state:
            state[f"{side}_basis"] = _decompose(state[side], _eigenvectors)


def _refresh_bases(state: dict[str, Any]) -> None:
    """One step of orthogonal iteration, sorted by variance. `square` is sorted along with the basis."""
    for side, axis in (("left", 1), ("right", 2)):
        if side not in state:
            continue
        basis = state[f"{side}_basis"]
        ahead = state[side] @ basis
        order = (basis * ahead).sum(1).argsort(dim=1, descending=True)  # N×D, by variance
        ahead = ahead.gather(2, order[:, None].expand_as(ahead))
        # in place, since CUDA graphs read and write these tensors
        basis.copy_(_decompose(ahead, lambda columns: torch.linalg.qr(columns)[0]))
        along = order[:, :, None] if axis == 1 else order[:, None]
        state["square"].copy_(state["square"].gather(axis, along.expand_as(state["square"])))


def _eigenvectors(matrices: Tensor) -> Tensor:
    """Eigenvectors of symmetric N×D×D, in float64 and scaled, since small matrices of low rank fail in float32."""
    scale = matrices.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(matrices.dtype).tiny)
    vectors: Tensor = torch.linalg.eigh((matrices / scale).double())[1]
    return vectors.to(matrices.dtype)


def _decompose(matrices: Tensor, how: Callable[[Tensor], Tensor]) -> Tensor:
    """`how(matrices)`, computed on the CPU if the device has no decompositions (MPS)."""
    place = "cpu" if matrices.device.type == "mps" else matrices.device
    return how(matrices.to(place)).to(matrices.device)


def build_optimizers(
    networks: Iterable[HASN], *, kernels: bool = True, captured: bool = False
) -> list[torch.optim.Optimizer]:
    """Optimizers for networks that may share a body. They may step at the same time.

    Each parameter group has a `factor`: its share of the base rate. With `kernels` False, Adam does everything. With
    `captured`, a CUDA graph can hold their steps: the rates are tensors.
    """
    named = {parameter: name for network in networks for name, parameter in network.named_parameters()}
    by_adam: dict[float, list[nn.Parameter]] = {}
    by_soap: dict[tuple[float, tuple[int, ...]], list[nn.Parameter]] = {}
    for parameter, name in named.items():
        if kernels and _is_kernel(name, parameter):
            by_soap.setdefault((soap_factor(name), tuple(parameter.shape)), []).append(parameter)
        else:
            by_adam.setdefault(adam_factor(name, parameter), []).append(parameter)
    groups = [{"params": parameters, "factor": factor} for factor, parameters in by_adam.items()]
    adam = torch.optim.Adam(groups, lr=0.0, betas=(0.9, 0.99), fused=True, capturable=captured)
    optimizers: list[torch.optim.Optimizer] = [adam]
    for (factor, _), parameters in by_soap.items():
        optimizer = SOAP(parameters, lr=0.0)
        optimizer.param_groups[0]["factor"] = factor
        optimizers.append(optimizer)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups if captured):
        group["lr"] = torch.zeros((), device=group["params"][0].device)
    return optimizers


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Set each group's learning rate to its share of the base rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * group["factor"])
            else:
                group["lr"] = rate * group["factor"]


def _is_kernel(name: str, parameter: Tensor) -> bool:
    """Whether this is a convolution's kernel, other than those of the channel attention, which see a single pixel."""
    return parameter.ndim == 4 and ".attention." not in name


def soap_factor(name: str) -> float:
    """A kernel's share of the base rate with SOAP, found by paired runs (docs/training-log.md)."""
    return 1.0 if name.startswith(("conv_1", "upsampler")) else 0.5


def adam_factor(name: str, parameter: Tensor) -> float:
    """A parameter's share of the base rate with Adam, found by paired runs."""
    if ".attention." in name:
        return 0.1
    if parameter.ndim < 4:  # biases, the norm's scale and shift
        return 0.2
    if name.startswith(("conv_1", "upsampler")):
        return 1.0
    if name.startswith("conv_2"):
        return 0.4
    if parameter.shape[1] == 1:  # depthwise
        return 0.5
    return min(0.5, 20 / parameter[0].numel())
