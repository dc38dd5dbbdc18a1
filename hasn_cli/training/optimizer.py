"""Which weight moves how far a step.

Matrices (the 1×1 and 3×3 convolutions of the body, flattened to out × in) follow Muon: momentum, orthogonalised, so
that every direction moves alike and no filter runs away (Jordan et al., "Muon", 2024). All else follows Adam, with a
rate by its kind, since an Adam step is the same for every weight, and a filter of 468 inputs then moves far more
than one of 27.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hasn_cli.network import HASN

MATRIX_RATE = 4.0  # Muon's rate for a base rate of 1
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's quintic: takes singular values from (0, 1] to about 1


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised by five Newton–Schulz steps, scaled so that outputs move by about the rate."""

    def __init__(self, params: Iterable[dict[str, Any]], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for shape, parameters in _by_shape(group["params"]).items():
                updates = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in parameters])
                updates = orthogonalise(updates) * (max(1.0, shape[0] / shape[1]) ** 0.5)
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"])

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        state: dict[str, Tensor] = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(gradient)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum).flatten(1)


def _by_shape(parameters: Iterable[Tensor]) -> dict[tuple[int, int], list[Tensor]]:
    """Parameters that have a gradient, by their shape as matrices: one batched product does for all of a shape."""
    groups: dict[tuple[int, int], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            groups.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
    return groups


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """N×R×C → the nearest semi-orthogonal matrices, roughly: singular values between about 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x: Tensor = matrices.transpose(1, 2) if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-12)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


def build_optimizers(networks: Iterable[HASN], *, matrices: bool = True) -> list[torch.optim.Optimizer]:
    """Optimizers for networks that may share a body.

    Every group has a `factor`: its share of the base rate. `matrices` False leaves all to Adam.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for network in networks:
        for name, parameter in network.named_parameters():
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            is_matrix = matrices and _is_matrix(name, parameter)
            factor = MATRIX_RATE if is_matrix else adam_factor(name, parameter)
            groups.setdefault((is_matrix, factor), []).append(parameter)

    def select(wanted: bool) -> list[dict[str, Any]]:
        found = sorted((factor, found) for (is_matrix, factor), found in groups.items() if is_matrix == wanted)
        return [{"params": parameters, "factor": factor} for factor, parameters in found]

    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(select(False), lr=0.0, betas=(0.9, 0.99))]
    if matrices:
        optimizers.append(Muon(select(True), lr=0.0))
    return optimizers


def set_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give every group its share of the base rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]


def _is_matrix(name: str, parameter: Tensor) -> bool:
    of_body = name.startswith(("block_", "conv_2"))
    return of_body and parameter.ndim == 4 and parameter.shape[1] > 1 and ".attention." not in name


def adam_factor(name: str, parameter: Tensor) -> float:
    """Share of the base rate that a parameter learns with under Adam, found by paired runs."""
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
