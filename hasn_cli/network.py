"""HASN, the Hybrid Attention Separable Network (arXiv 2410.09844), as a plain PyTorch module.

This module is for reading and for training. `hasn_cli.inference` evaluates the same network faster and in bounded
memory; it is tested against this module. Attribute names are the keys of the released checkpoint, so weights load
strictly.

Shapes are N×C×H×W. With C = 52 feature channels, a picture takes this way:

    3 → conv_1 → C → block_1 … block_6 → conv_2 → C, plus conv_1's output → upsampler → 3, s times as high and wide

Nothing is clamped: the output of a trained network overshoots [0, 1] slightly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALES = (2, 3, 4)
NUM_BLOCKS = 6
NUM_FEATURES = 52
EXPANSION = 3  # f1, f2 and f3 widen the features threefold
CAB_COMPRESSION = 3  # CAB narrows them threefold
CHANNEL_ATTENTION_SQUEEZE = 52  # the channel attention squeezes 52 channels to one
ESA_CHANNELS = 16
MIN_SIDE = 15  # on a shorter side, ESA's 3×3 stride-2 convolution and 7×7 pool would have no output


class ConvBN(nn.Module):
    """One convolution named `conv`, as in the released checkpoint, where its batch norm is already merged into it."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel, N×C×H×W → the same."""

    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)  # N×1×H×W
        centred = x - mean
        variance = centred.square().mean(1, keepdim=True)
        normed = centred * torch.rsqrt(variance + self.eps)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


class ESA(nn.Module):
    """Enhanced Spatial Attention (Liu et al., RFANet, CVPR 2020): gates each pixel by a low-resolution view.

    The stride, the pool's grid and the bilinear step depend on the size of the whole image. This is one reason why
    tiles change the picture.
    """

    def __init__(self, channels: int, inner: int = ESA_CHANNELS) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.conv_f = nn.Conv2d(inner, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=2)
        self.conv3 = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv4 = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        e = self.conv1(x)  # N×16×H×W
        low = self.conv2(e)  # N×16×⌊(H−1)/2⌋×⌊(W−1)/2⌋
        low = self.conv3(F.max_pool2d(low, kernel_size=7, stride=3))
        gate = F.interpolate(low, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(gate + self.conv_f(e)))  # N×156×H×W


class ChannelAttention(nn.Module):
    """Scales each channel by a factor in (0, 1) that is computed from the channels' means over the whole image."""

    def __init__(self, channels: int, squeeze: int = CHANNEL_ATTENTION_SQUEEZE) -> None:
        super().__init__()
        inner = max(1, channels // squeeze)
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),  # N×C×1×1
            nn.Conv2d(channels, inner, 1),  # N×1×1×1 for 52 channels
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        factors: Tensor = self.attention(x)  # N×C×1×1
        return x * factors


class CAB(nn.Module):
    """Channel Attention Block (Chen et al., HAT, CVPR 2023): a bottleneck of two 3×3 convolutions, then attention."""

    def __init__(self, channels: int, compression: int = CAB_COMPRESSION) -> None:
        super().__init__()
        self.cab = nn.Sequential(
            nn.Conv2d(channels, channels // compression, 3, padding=1),  # N×17×H×W
            nn.GELU(),
            nn.Conv2d(channels // compression, channels, 3, padding=1),
            ChannelAttention(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.cab(x)  # type: ignore[no-any-return]


class HASB(nn.Module):
    """Hybrid Attention Separable Block: 7×7 depthwise convolutions around a gated product, then CAB without a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = EXPANSION * channels
        self.dwconv = ConvBN(channels, channels, 7, groups=channels)
        self.ln = LayerNorm(channels)
        self.f1 = ConvBN(channels, wide, 1)
        self.f2 = ConvBN(channels, wide, 1)
        self.f3 = ConvBN(channels, wide, 1)
        self.g = ConvBN(wide, channels, 1)
        self.dwconv2 = ConvBN(channels, channels, 7, groups=channels)
        self.esa = ESA(wide)
        self.cab = CAB(channels)

    def forward(self, x: Tensor) -> Tensor:
        u = self.ln(self.dwconv(x))  # N×52×H×W
        gated = F.relu6(self.f1(u)) * self.f2(u) + self.esa(self.f3(u))  # N×156×H×W
        return self.cab(x + self.dwconv2(self.g(gated)))  # type: ignore[no-any-return]


class HASN(nn.Module):
    """The whole network: N×3×H×W in [0, 1], RGB → N×3×sH×sW, about [0, 1], unclamped.

    Args:
        scale: 2, 3 or 4.
        num_features: channels of the trunk; 52 as published.

    Sides under 15 px are padded (mirrored, or repeated if the side is too short for that), and the result is cropped.
    Any other size is used as it is.
    """

    def __init__(self, scale: int = 4, num_features: int = NUM_FEATURES) -> None:
        super().__init__()
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, not {scale}")
        self.scale = scale
        self.num_features = num_features
        self.conv_1 = nn.Conv2d(3, num_features, 3, padding=1)
        self.block_1 = HASB(num_features)
        self.block_2 = HASB(num_features)
        self.block_3 = HASB(num_features)
        self.block_4 = HASB(num_features)
        self.block_5 = HASB(num_features)
        self.block_6 = HASB(num_features)
        self.conv_2 = nn.Conv2d(num_features, num_features, 3, padding=1)
        self.upsampler = nn.Sequential(
            nn.Conv2d(num_features, 3 * scale**2, 3, padding=1),
            nn.PixelShuffle(scale),
        )

    @property
    def blocks(self) -> tuple[HASB, ...]:
        """The six blocks in the order of evaluation."""
        return tuple(getattr(self, f"block_{i}") for i in range(1, NUM_BLOCKS + 1))

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        lr = pad_to_min_side(lr)
        shallow = self.conv_1(lr)  # N×52×H×W
        features = shallow
        for block in self.blocks:
            features = block(features)
        features = self.conv_2(features) + shallow
        sr = self.upsampler(features)  # N×3×sH×sW
        return sr[..., : height * self.scale, : width * self.scale]  # type: ignore[no-any-return]


def pad_to_min_side(x: Tensor, min_side: int = MIN_SIDE) -> Tensor:
    """Extend N×C×H×W at the bottom and right to at least `min_side`, mirrored, or repeated if too short for that."""
    for axis in (-2, -1):
        missing = min_side - x.shape[axis]
        if missing <= 0:
            continue
        mode = "reflect" if missing < x.shape[axis] else "replicate"
        padding = (0, 0, 0, missing) if axis == -2 else (0, missing, 0, 0)
        x = F.pad(x, padding, mode=mode)
    return x


@dataclass(frozen=True)
class Complexity:
    """What a network costs: `parameters` stored, `multiply_adds` for one forward pass."""

    parameters: int
    multiply_adds: int


def complexity(network: HASN, sr_size: tuple[int, int] = (720, 1280)) -> Complexity:
    """Count parameters and the multiply-adds of all convolutions for one SR picture.

    Args:
        network: the network.
        sr_size: (height, width) of the output in pixels; papers use 720 × 1280 (720p).

    Returns:
        Counts as in the literature: one multiply-add per kernel tap and output value, without norms, activations, gates
        and interpolation.
    """
    height, width = (math.ceil(side / network.scale) for side in sr_size)
    multiply_adds = 0

    def count(convolution: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal multiply_adds
        assert isinstance(convolution, nn.Conv2d)
        multiply_adds += output[0].numel() * convolution.weight[0].numel()

    shadow = HASN(network.scale, network.num_features).to("meta")  # shapes only: takes no time and no memory
    for module in shadow.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    shadow(torch.empty(1, 3, height, width, device="meta"))
    return Complexity(sum(p.numel() for p in network.parameters()), multiply_adds)
