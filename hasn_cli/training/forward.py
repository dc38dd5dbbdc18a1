"""`network(lr)`, arranged so that its gradient is quick: the same function, half again as fast on a CPU.

- A depthwise kernel's gradient is a depthwise convolution too, with the output's gradient as its kernel. PyTorch's own
  takes four times as long on a CPU.
- The norm's scale and shift, and ESA's first convolution, are multiplied into the convolutions next to them: linear
  steps in a row are one.
- The norm runs as one operator, over channels that lie last.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasn_cli.inference.fusion import Linear, after_norm, compose
from hasn_cli.network import HASB, HASN, pad_to_min_side


def forward(network: HASN, lr: Tensor, *, half: bool = False) -> tuple[Tensor, list[Tensor]]:
    """`network(lr)`, N×3×H×W → N×3×sH×sW, and the features before the blocks and after each, N×C×H×W.

    With `half` the blocks run in bfloat16; what adds up to the pixels stays in float32.
    """
    shallow = network.conv_1(pad_to_min_side(lr))
    features = [shallow]
    with torch.autocast(lr.device.type, torch.bfloat16) if half else nullcontext():
        for block in network.blocks:
            features.append(_block(block, features[-1]))
    sr = network.upsampler(network.conv_2(features[-1].to(shallow.dtype)) + shallow)
    return sr[..., : lr.shape[-2] * network.scale, : lr.shape[-1] * network.scale], features


def _block(block: HASB, x: Tensor) -> Tensor:
    """`block(x)`."""
    esa = block.esa
    f1, f2, f3, conv1 = _folded(block)
    u = _normed(_depthwise(block.dwconv.conv, x), block.ln.eps)  # N×52×H×W
    e = _pointwise(u, conv1)  # N×16×H×W
    low = esa.conv3(F.max_pool2d(esa.conv2(e), kernel_size=7, stride=3))
    gate = F.interpolate(low, size=x.shape[-2:], mode="bilinear", align_corners=False)
    attention = torch.sigmoid(esa.conv4(gate + esa.conv_f(e)))  # N×156×H×W
    gated = F.relu6(_pointwise(u, f1)) * _pointwise(u, f2) + _pointwise(u, f3) * attention
    return block.cab(x + _depthwise(block.dwconv2.conv, block.g(gated)))  # type: ignore[no-any-return]


def _folded(block: HASB) -> tuple[Linear, Linear, Linear, Linear]:
    """f1, f2 and f3 with the norm's scale and shift in them, and ESA's conv1 after f3."""
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
    """Each pixel's channels to mean 0 and variance 1."""
    return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), None, None, eps).permute(0, 3, 1, 2)


def _depthwise(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """`convolution(x)`."""
    if x.device.type != "cpu":
        return convolution(x)  # type: ignore[no-any-return]
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
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
        n, c, height, width = x.shape
        side = weight.shape[-1] // 2
        of_x = F.conv2d(gradient, weight.flip(2, 3), padding=side, groups=c)
        around = F.pad(x, (side, side, side, side)).reshape(1, n * c, height + 2 * side, width + 2 * side)
        of_taps = F.conv2d(around, gradient.reshape(n * c, 1, height, width), groups=n * c)  # 1×NC×K×K
        exact = torch.promote_types(x.dtype, torch.float32)  # sums over patches and pixels
        of_weight = of_taps.view(n, *weight.shape).sum(0, dtype=exact)
        return of_x, of_weight, gradient.sum((0, 2, 3), dtype=exact)
