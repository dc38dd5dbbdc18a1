"""`network(lr)` arranged for a fast gradient: the same function, half again as fast on a CPU.

- The gradient of a depthwise kernel is computed as a convolution. PyTorch's own takes four times
  as long on a CPU.
- The norm's scale and shift, and ESA's first convolution, are multiplied into the neighbouring convolutions.
- The norm is one operator, on features whose channels come last in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasn_cli.inference.blocks import Linear
from hasn_cli.inference.fusion import after_norm, compose
from hasn_cli.network import ESA, HASB, HASN, pad_to_min_side

BlockFunction = Callable[[HASB, Tensor], Tensor]


def block_function(*, own_depthwise: bool = True, compiled: bool = False) -> BlockFunction:
    """A function that applies one block to N×52×H×W.

    Args:
        own_depthwise: compute the gradient of the depthwise kernels here and not in PyTorch.
        compiled: compile the function with torch.compile, once for all blocks.
    """

    def block(block: HASB, x: Tensor) -> Tensor:
        return _block(block, x, own_depthwise)

    return torch.compile(block) if compiled else block


def forward(
    network: HASN, lr: Tensor, *, half: bool = False, block: BlockFunction | None = None
) -> tuple[Tensor, list[Tensor]]:
    """`network(lr)`, N×3×H×W → N×3×sH×sW, and the features before the first block and after each, N×C×H×W.

    With `half` the blocks run in bfloat16. What adds up to the pixels stays in float32.
    """
    block = block or block_function()
    shallow = network.conv_1(pad_to_min_side(lr))
    features = [shallow]
    with torch.autocast(lr.device.type, torch.bfloat16) if half else nullcontext():
        for module in network.blocks:
            features.append(block(module, features[-1]))
    sr = network.upsampler(network.conv_2(features[-1].to(shallow.dtype)) + shallow)
    return sr[..., : lr.shape[-2] * network.scale, : lr.shape[-1] * network.scale], features


def _block(block: HASB, x: Tensor, own_depthwise: bool) -> Tensor:
    """`block(x)`."""
    esa = block.esa
    depthwise = _depthwise if own_depthwise else _plain
    f1, f2, f3, conv1 = _folded(block)
    u = _normed(depthwise(block.dwconv.conv, x), block.ln.eps)  # N×52×H×W
    e = _pointwise(u, conv1)  # N×16×H×W
    attention = torch.sigmoid(esa.conv4(_low_resolution_gate(esa, e) + esa.conv_f(e)))  # N×156×H×W
    gated = F.relu6(_pointwise(u, f1)) * _pointwise(u, f2) + _pointwise(u, f3) * attention
    return block.cab(x + depthwise(block.dwconv2.conv, block.g(gated)))  # type: ignore[no-any-return]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # PyTorch 2.13 compiles it to a wrong bfloat16 gradient
def _low_resolution_gate(esa: ESA, e: Tensor) -> Tensor:
    """ESA's view of the whole picture, N×16×H×W → the same."""
    low = esa.conv3(F.max_pool2d(esa.conv2(e), kernel_size=7, stride=3))
    return F.interpolate(low, size=e.shape[-2:], mode="bilinear", align_corners=False)


def _folded(block: HASB) -> tuple[Linear, Linear, Linear, Linear]:
    """f1, f2 and f3 with the norm's scale and shift multiplied in, and ESA's conv1 applied to f3."""
    with torch.autocast(block.ln.weight.device.type, enabled=False):
        norm = block.ln.weight, block.ln.bias
        f1, f2, f3 = (after_norm(_linear(f.conv), *norm) for f in (block.f1, block.f2, block.f3))
        return f1, f2, f3, compose(_linear(block.esa.conv1), f3)


def _linear(convolution: nn.Conv2d) -> Linear:
    assert convolution.bias is not None
    return convolution.weight.flatten(1), convolution.bias


def _pointwise(x: Tensor, linear: Linear) -> Tensor:
    matrix, bias = linear
    return F.conv2d(x, matrix[:, :, None, None], bias)


def _normed(x: Tensor, eps: float) -> Tensor:
    """Normalise each pixel's channels to mean 0 and variance 1."""
    with torch.autocast(x.device.type, enabled=False):  # or it would return float32 on CUDA
        return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), None, None, eps).permute(0, 3, 1, 2)


def _plain(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    return convolution(x)  # type: ignore[no-any-return]


def _depthwise(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """`convolution(x)`."""
    device = x.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    out: Tensor = _Depthwise.apply(x.to(kind), convolution.weight, convolution.bias)  # type: ignore[no-untyped-call]
    return out


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution that keeps the size, computed in `x`'s type: N×C×H×W, C×1×K×K, C → N×C×H×W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight = weight.to(x.dtype)
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias.to(x.dtype), padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        side = weight.shape[-1] // 2
        of_x = F.conv2d(gradient, weight.flip(2, 3), padding=side, groups=len(weight))
        padded = F.pad(x, (side, side, side, side))
        exact = torch.promote_types(x.dtype, torch.float32)  # for sums over patches and pixels
        return of_x, _taps_gradient(padded, gradient), gradient.sum((0, 2, 3), dtype=exact)


def _taps_gradient(padded: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a depthwise kernel from its padded input and its output's gradient, N×C×H×W: C×1×K×K.

    A depthwise convolution too, with the output's gradient as the kernel. Fast on a CPU.
    """
    n, c, height, width = gradient.shape
    images = padded.reshape(1, n * c, *padded.shape[2:])
    taps = F.conv2d(images, gradient.reshape(n * c, 1, height, width), groups=n * c)  # 1×NC×K×K
    exact = torch.promote_types(padded.dtype, torch.float32)
    return taps.view(n, c, 1, *taps.shape[2:]).sum(0, dtype=exact)
