"""The steps of a block that streaming runs on strips: with PyTorch's operators, or as machine code.

`make_block` takes `NativeBlock` where machine code can run, which is on CPUs with AVX2 in float32, and `OperatorBlock`
elsewhere. Both give the same to within the rounding of float32.

Strips are h×W×C. Convolutions take the rows above and below that they need, and see zeros left and right of the
picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from hasn_cli.inference.kernels import (
    GELU,
    RELU6,
    SIGMOID,
    Convolution,
    NarrowConvolution,
    Pointwise,
    as_nchw,
    as_rows,
    normalise,
)

if TYPE_CHECKING:
    from hasn_cli.inference.native import Native

Linear = tuple[Tensor, Tensor]
"""Matrix O×I and bias O that a 1×1 convolution applies to each pixel."""

CHUNK = 2048  # pixels whose 156-channel values fit into the cache


@dataclass(frozen=True)
class BlockWeights:
    """One HASB's weights, multiplied together, in float64 on the CPU.

    `n` is the normalised, not yet scaled and shifted, result of the first depthwise convolution.
    """

    depthwise_in: Linear  # 52×1×7×7, to be scaled by the previous block's attention
    low_in: Linear  # n → 16, input of ESA's low-resolution branch
    gate_in: Linear  # n → 16, added to the enlarged low-resolution map
    gate: Linear  # 16 → 156, sigmoid
    f1: Linear  # n → 156, relu6
    f2: Linear  # n → 156
    f3: Linear  # n → 156
    g: Linear  # 156 → 52
    depthwise_out: Linear  # 52×1×7×7
    squeeze: Linear  # 17×52×3×3, GELU
    expand: Linear  # 52×17×3×3
    eps: float  # of the norm


class First(Protocol):
    """The first depthwise convolution, whose result is centred and divided by its deviation: `n`."""

    def normalised(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """(h+6)×W×52 to n, h×W×52, in the given tensor or a new one."""
        ...

    def low(self, x: Tensor, out: Tensor, kept: Tensor | None = None) -> None:
        """(h+6)×W×52 to the input of ESA's low-resolution branch, h×W×16; n goes into `kept`, if given."""
        ...


class Block(Protocol):
    """The steps of one block."""

    squeezed: int
    """Channels between CAB's two convolutions."""

    def first(self, factors: Tensor) -> First:
        """The block's first steps for an input that still has to be multiplied by `factors` (52)."""
        ...

    def gated(self, n: Tensor, low: Tensor, out: Tensor) -> None:
        """g(relu6(f1)·f2 + ESA's gate·f3): from P×52, and P×16 of the enlarged low-resolution map, to P×52."""
        ...

    def mix(self, gated: Tensor, x: Tensor, factors: Tensor, out: Tensor) -> None:
        """The second depthwise convolution, of (h+6)×W×52, plus x·factors, to h×W×52."""
        ...

    def squeeze(self, mixed: Tensor, out: Tensor) -> None:
        """CAB's first convolution and GELU: (h+2)×W×52 to h×W×17."""
        ...

    def expand(self, squeezed: Tensor, out: Tensor | None) -> Tensor:
        """CAB's second convolution: (h+2)×W×17 to h×W×52, in the given tensor or a new one."""
        ...


class OperatorBlock:
    """A block with PyTorch's operators, in any precision, on any device."""

    def __init__(
        self, weights: BlockWeights, device: torch.device, dtype: torch.dtype, *, compile: bool = False
    ) -> None:
        def pointwise(linear: Linear, **options: Any) -> Pointwise:
            return Pointwise(*linear, device, dtype, **options)

        self.device, self.dtype, self.eps = device, dtype, weights.eps
        self.depthwise_in, self.low_in = weights.depthwise_in, pointwise(weights.low_in)
        self.gate_in, self.gate = pointwise(weights.gate_in), pointwise(weights.gate, activation=SIGMOID)
        self.f1, self.f2 = pointwise(weights.f1, activation=RELU6), pointwise(weights.f2)
        self.f3, self.g = pointwise(weights.f3), pointwise(weights.g)
        self.depthwise_out = Convolution(
            *weights.depthwise_out, device, dtype, padding=(0, 3), groups=len(weights.g[1])
        )
        self._squeeze = NarrowConvolution(*weights.squeeze, device, dtype, GELU)
        self._expand = Convolution(*weights.expand, device, dtype, padding=(0, 1))
        self.squeezed = self._squeeze.channels_out
        self._product = self.product if not compile else torch.compile(self.product, dynamic=True)

    def first(self, factors: Tensor) -> OperatorFirst:
        return OperatorFirst(self, scaled(self.depthwise_in, factors))

    def gated(self, n: Tensor, low: Tensor, out: Tensor) -> None:
        step = CHUNK if n.device.type == "cpu" else len(n)
        for lo in range(0, len(n), step):
            out[lo : lo + step].copy_(self._product(n[lo : lo + step], low[lo : lo + step]))

    def product(self, n: Tensor, low: Tensor) -> Tensor:
        """`gated`, all at once and in a new tensor."""
        gate = self.gate(self.gate_in.plus(n, low))  # P×156
        product = self.f2.times(n, self.f1(n)).addcmul_(self.f3(n), gate)
        return self.g(product)

    def mix(self, gated: Tensor, x: Tensor, factors: Tensor, out: Tensor) -> None:
        rows = as_rows(self.depthwise_out(as_nchw(gated)))
        torch.addcmul(rows, x, factors, out=out)

    def squeeze(self, mixed: Tensor, out: Tensor) -> None:
        self._squeeze.write(as_nchw(mixed), out)

    def expand(self, squeezed: Tensor, out: Tensor | None) -> Tensor:
        rows = as_rows(self._expand(as_nchw(squeezed)))
        return rows if out is None else out.copy_(rows)


class OperatorFirst:
    """The first steps of an `OperatorBlock`."""

    def __init__(self, block: OperatorBlock, depthwise: Linear) -> None:
        self._block, channels = block, len(depthwise[1])
        self._depthwise = Convolution(*depthwise, block.device, block.dtype, padding=(0, 3), groups=channels)

    def normalised(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return normalise(as_rows(self._depthwise(as_nchw(x))), self._block.eps, out)

    def low(self, x: Tensor, out: Tensor, kept: Tensor | None = None) -> None:
        n = self.normalised(x, kept).to(out.dtype)
        out.copy_(self._block.low_in(n.flatten(0, 1)).view_as(out))


class NativeBlock:
    """A block as machine code: float32, on a CPU, strips of at least `native.LEAST` pixels in a row."""

    def __init__(self, weights: BlockWeights, native: Native) -> None:
        from hasn_cli.inference.native import pack_convolution, pack_depthwise, pack_gated

        self.native, self.eps, self.squeezed = native, weights.eps, len(weights.squeeze[1])
        self.depthwise_in, self.low_in = weights.depthwise_in, weights.low_in
        self.depthwise_out = pack_depthwise(*weights.depthwise_out)
        self.product = pack_gated(
            weights.gate_in, weights.gate, weights.f1, weights.f2, weights.f3, weights.g, native.tiling
        )
        self._squeeze = pack_convolution(*weights.squeeze, native.tiling)
        self._expand = pack_convolution(*weights.expand, native.tiling)

    def first(self, factors: Tensor) -> NativeFirst:
        return NativeFirst(self, scaled(self.depthwise_in, factors))

    def gated(self, n: Tensor, low: Tensor, out: Tensor) -> None:
        self.native.gated(n, low, self.product, out)

    def mix(self, gated: Tensor, x: Tensor, factors: Tensor, out: Tensor) -> None:
        self.native.depthwise_mix(gated, self.depthwise_out, x, factors, out)

    def squeeze(self, mixed: Tensor, out: Tensor) -> None:
        self.native.squeeze(mixed, self._squeeze, out)

    def expand(self, squeezed: Tensor, out: Tensor | None) -> Tensor:
        return self.native.expand(squeezed, self._expand, out)


class NativeFirst:
    """The first steps of a `NativeBlock`."""

    def __init__(self, block: NativeBlock, depthwise: Linear) -> None:
        from hasn_cli.inference.native import pack_low

        self._native, self._eps = block.native, block.eps
        # `depthwise_normalise` reads only those that it needs
        self._weights = pack_low(*depthwise, block.low_in, block.native.tiling)

    def normalised(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._native.depthwise_normalise(x, self._weights, self._eps, out)

    def low(self, x: Tensor, out: Tensor, kept: Tensor | None = None) -> None:
        if kept is not None:
            self.normalised(x, kept)
        self._native.low(x, self._weights, self._eps, out)


def make_block(weights: BlockWeights, device: torch.device, dtype: torch.dtype, *, compile: bool = False) -> Block:
    """The quickest block for this device and precision; `compile` is for `OperatorBlock` on accelerators."""
    native = find_native() if device.type == "cpu" and dtype is torch.float32 else None
    if native is not None and native.fits(weights.f1[0], weights.gate_in[0], weights.squeeze[0]):
        return NativeBlock(weights, native)
    return OperatorBlock(weights, device, dtype, compile=compile)


def find_native() -> Native | None:
    """The compiled functions, if llvmlite is installed and they work on this machine."""
    try:
        from hasn_cli.inference.native import load_native
    except ImportError:
        return None
    return load_native()


def scaled(depthwise: Linear, factors: Tensor) -> Linear:
    """A depthwise convolution for an input that still has to be multiplied by `factors`, one for each channel."""
    weight, bias = depthwise
    return weight * factors.cpu().double()[:, None, None, None], bias
