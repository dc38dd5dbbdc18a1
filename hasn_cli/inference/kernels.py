"""Convolutions on channels-last rows, with the following step done in the same pass over memory.

On x86 CPUs PyTorch contains oneDNN. Its channels-last convolutions are several times as fast as MKL's matrix product of
the same shape, and can apply an activation, a product or a sum to each value while it is in a register. PyTorch offers
them as `torch.ops.mkldnn._convolution_pointwise*` (its own compiler uses them). If they are missing, and on
accelerators, separate public operators do the same.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

ONES = [1, 1]
LANES = 16  # float32 values in a vector register
PACKED_FOR = 4096  # rows; the packing hardly depends on their number


@dataclass(frozen=True)
class Activation:
    """A function of each value of a convolution: a oneDNN post-operation and the same with public operators."""

    attribute: str = "none"
    scalars: tuple[float, ...] = ()
    algorithm: str = ""

    def __call__(self, x: Tensor) -> Tensor:
        if self.attribute == "hardtanh":
            return x.clamp_(*self.scalars)
        if self.attribute == "sigmoid":
            return x.sigmoid_()
        if self.attribute == "gelu":
            return F.gelu(x)
        return x


IDENTITY = Activation()
RELU6 = Activation("hardtanh", (0.0, 6.0))
SIGMOID = Activation("sigmoid")
GELU = Activation("gelu", (), "none")


class Convolution:
    """A convolution that is ready to run: weights on the device, in its precision, packed if oneDNN runs it.

    Args:
        weight: O×I×k×k (O×1×k×k with groups), float64 or float32, on the CPU.
        bias: O, or None.
        dtype: float32, bfloat16 or float16; products are accumulated in float32 in any case.
        padding: rows above and below, columns left and right; strips contain their own rows, so (0, k//2) is usual.
        activation: applied to the result.

    Inputs are 1×I×h×W, channels-last. Results are new tensors unless stated otherwise.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        *,
        padding: tuple[int, int] = (0, 0),
        stride: int = 1,
        groups: int = 1,
        activation: Activation = IDENTITY,
    ) -> None:
        self.channels_out = len(weight)
        self.padding, self.stride, self.groups, self.activation = list(padding), [stride, stride], groups, activation
        self.bias = None if bias is None else bias.to(device, dtype)
        self.weight = weight.to(device, dtype).contiguous(memory_format=torch.channels_last)
        self.packed = device.type == "cpu" and has_onednn(dtype)
        if self.packed:
            shape = [1, weight.shape[1] * groups, 16, 128]  # any strip: the packing hardly depends on the size
            self.weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, ONES, groups, shape
            )

    def __call__(self, x: Tensor) -> Tensor:
        """activation(W∗x + b)."""
        if not self.packed:
            return self.activation(self._convolve(x))
        act = self.activation
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.weight, self.bias, self.padding, self.stride, ONES, self.groups,
            act.attribute, list(act.scalars), act.algorithm,
        )  # fmt: skip
        return result

    def plus(self, x: Tensor, total: Tensor) -> Tensor:
        """total += W∗x + b, in place; without the activation."""
        if not self.packed:
            return total.add_(self._convolve(x))
        result: Tensor = torch.ops.mkldnn._convolution_pointwise_.binary(
            total, x, self.weight, self.bias, self.padding, self.stride, ONES, self.groups,
            "add", 1.0, None, [], None,
        )  # fmt: skip
        return result

    def _convolve(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)


class NarrowConvolution:
    """A 3×3 convolution whose channels do not fill whole vectors, such as 17, written into a given array.

    oneDNN computes sixteen channels at a time, so a seventeenth would cost as much as the first sixteen. The channels
    left over are computed by a 1×1 convolution for the products of the nine taps and a convolution that adds them up.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, device: torch.device, dtype: torch.dtype, activation: Activation
    ) -> None:
        self.channels_out = len(weight)
        packed = device.type == "cpu" and has_onednn(dtype)
        rest = self.channels_out % LANES if packed and self.channels_out > LANES else 0
        self.whole = self.channels_out - rest
        self.main = Convolution(weight[: self.whole], bias[: self.whole], device, dtype, padding=(0, 1),
                                activation=activation)  # fmt: skip
        self.taps = self.gather = None
        if rest:
            taps = weight[self.whole :].flatten(2).transpose(1, 2).flatten(0, 1)  # 9·rest × I
            self.taps = Pointwise(taps, torch.zeros(len(taps)), device, dtype)
            ones = torch.eye(9).view(1, 1, 9, 3, 3) * torch.eye(rest)[:, :, None, None, None]  # rest×rest×9×3×3
            self.gather = Convolution(ones.flatten(1, 2), bias[self.whole :], device, dtype, padding=(0, 1),
                                      activation=activation)  # fmt: skip

    def write(self, x: Tensor, out: Tensor) -> None:
        """activation(W∗x + b) for 1×I×(h+2)×W to out, h×W×O."""
        out[..., : self.whole].copy_(self.main(x)[0].permute(1, 2, 0))
        if self.taps is not None and self.gather is not None:
            _, channels, height, width = x.shape
            taps = self.taps(x[0].permute(1, 2, 0).reshape(-1, channels))
            taps = taps.view(1, height, width, -1).permute(0, 3, 1, 2)
            out[..., self.whole :].copy_(self.gather(taps)[0].permute(1, 2, 0))


class Pointwise:
    """A 1×1 convolution that is ready to run on rows, P×I → P×O. See `Convolution`.

    Args:
        weight: O×I, float64 or float32, on the CPU.
        bias: O.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        device: torch.device,
        dtype: torch.dtype,
        *,
        activation: Activation = IDENTITY,
    ) -> None:
        self.weight, self.bias, self.activation = weight.to(device, dtype), bias.to(device, dtype), activation
        self.packed = device.type == "cpu" and has_onednn(dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, PACKED_FOR)

    def __call__(self, x: Tensor) -> Tensor:
        """activation(x Wᵀ + b)."""
        if not self.packed:
            return self.activation(F.linear(x, self.weight, self.bias))
        act = self.activation
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, act.attribute, list(act.scalars), act.algorithm
        )
        return result

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """(x Wᵀ + b) · factor; without the activation."""
        return self._with(x, factor, "mul") if self.packed else F.linear(x, self.weight, self.bias).mul_(factor)

    def plus(self, x: Tensor, term: Tensor) -> Tensor:
        """x Wᵀ + b + term; without the activation."""
        return self._with(x, term, "add") if self.packed else F.linear(x, self.weight, self.bias).add_(term)

    def _with(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, operation)
        return result


@cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has oneDNN's fused convolutions, and they give correct results on this CPU."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype is not torch.float32 and not (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    x = torch.linspace(-1, 1, 4 * 3 * 5).view(1, 3, 5, 4).permute(0, 2, 1, 3).to(dtype)  # 1×5×3×4, channels-last
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.linspace(-1, 1, 25).view(5, 5, 1, 1).to(dtype)
    expected = F.conv2d(x.float(), weight.float())
    try:
        ops = torch.ops.mkldnn
        packed = ops._reorder_convolution_weight(weight, [0, 0], ONES, ONES, 1, list(x.shape))
        plain = ops._convolution_pointwise(x, packed, None, [0, 0], ONES, ONES, 1, "none", [], "")
        rows, matrix = x.permute(0, 2, 3, 1).reshape(-1, 5), weight[:, :, 0, 0]
        product = ops._linear_pointwise.binary(rows, rows, ops._reorder_linear_weight(matrix, 12), None, "mul")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    close = 1e-5 if dtype is torch.float32 else 5e-2
    squares = expected.permute(0, 2, 3, 1).reshape(-1, 5) * rows.float()
    return torch.allclose(plain.float(), expected, atol=close) and torch.allclose(product.float(), squares, atol=close)


def normalise(rows: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """Subtract the mean over C and divide by the deviation: h×W×C, into `out` if given; may overwrite `rows`.

    On a CPU with 52 channels this takes 0.4 of the time of PyTorch's layer norm, which is slow on short rows.
    """
    if rows.dtype != torch.float32 or rows.device.type != "cpu":
        normed = F.layer_norm(rows, rows.shape[-1:], eps=eps)
        return normed if out is None else out.copy_(normed)
    centred = rows.sub_(rows.mean(-1, keepdim=True))
    norm = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    factor = norm.square_().div_(rows.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(centred, factor, out=centred if out is None else out)


def as_nchw(rows: Tensor) -> Tensor:
    """h×W×C → the same memory as 1×C×h×W, channels-last."""
    return rows[None].permute(0, 3, 1, 2)


def as_rows(x: Tensor) -> Tensor:
    """1×C×h×W, channels-last → the same memory as h×W×C."""
    return x[0].permute(1, 2, 0)


def large_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for a map of the whole picture, on Linux in large pages, which are faster to allocate and to access."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or size < 1 << 22:
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size} bytes") from error
    with suppress(OSError):  # the kernel was built without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


@cache
def keep_freed_memory() -> None:
    """Make the C library keep the memory that strips free, instead of returning it to the system each time.

    glibc returns only blocks larger than the largest one freed so far (up to 32 MiB), so one large block is freed here.
    """
    torch.empty(31 << 20, dtype=torch.uint8)
