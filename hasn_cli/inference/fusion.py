"""The network rewritten for inference: fewer and wider linear steps that give the same picture.

Linear steps that follow each other are multiplied together in float64, when a network is loaded:

- LayerNorm's scale and shift go into the three 1×1 convolutions after it, so a strip is only centred and divided;
- ESA reads f3's 156 channels only through conv1, so conv1∘f3 is one 52→16 matrix on the normalised features;
- ESA adds conv_f(conv1(f3)) at full size: again one 52→16 matrix. Only ESA's gate is 156 channels wide;
- the channel attention's factors go into the step that reads the block's result: the next depthwise kernel, or conv_2;
- for a grey picture, three equal channels and the mean of the three results go into the first and last convolution.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasn_cli import files
from hasn_cli.inference.blocks import Block, BlockWeights, Linear, make_block
from hasn_cli.inference.kernels import Convolution, Pointwise
from hasn_cli.network import HASB, HASN, ChannelAttention


@dataclass(frozen=True)
class FusedBlock:
    """One HASB: the steps for strips, and what is done between the sweeps over a picture."""

    steps: Block
    low_down: Convolution  # 16 → 16, 3×3, stride 2
    low_out: Convolution  # 16 → 16, 3×3 on the low-resolution map
    attention: tuple[Linear, Linear]  # matrix and bias of the two layers

    def attend(self, mean: Tensor) -> Tensor:
        """The channel attention's factors, 52, from the whole picture's mean of each channel."""
        (w1, b1), (w2, b2) = self.attention
        return torch.sigmoid(w2 @ torch.relu(w1 @ mean + b1) + b2)


def keep_compiled_code_private() -> None:
    """Keep torch.compile's cache, from which it loads code, in the user's own cache folder.

    By default it lies in the folder for temporary files, by a name that others on this machine can foresee, and make
    beforehand. TORCHINDUCTOR_CACHE_DIR names another place.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = files.private_cache("compiled") or tempfile.mkdtemp(prefix="hasn-")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


class FusedNetwork:
    """A network's weights, multiplied together and packed for one device and precision.

    Args:
        network: the network; it is not changed.
        device: where to evaluate.
        dtype: of weights and strips; sums have a higher precision.
        compile: fuse the gated product with torch.compile; ignored on a CPU, where the operators are fused already.
    """

    def __init__(self, network: HASN, device: torch.device, dtype: torch.dtype, *, compile: bool = False) -> None:
        self.scale, self.features = network.scale, network.num_features
        self.device, self.dtype = device, dtype
        self._compile = compile and device.type != "cpu"
        if self._compile:
            keep_compiled_code_private()
        self.mean_dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.blocks = [self._fuse(block) for block in network.blocks]
        self._conv_1 = _weights(network.conv_1)
        self._conv_2 = _weights(network.conv_2)
        self._upsampler = _weights(network.upsampler[0])

    def convolution(self, weight: Tensor, bias: Tensor | None, **options: Any) -> Convolution:
        """A `Convolution` on this network's device, in its precision."""
        return Convolution(weight, bias, self.device, self.dtype, **options)

    def first(self, channels: int) -> Pointwise:
        """conv_1 on rows of 3×3×C patches, for 3 channels, or for 1 that represents three equal ones."""
        weight, bias = self._conv_1
        weight = weight if channels == 3 else weight.sum(1, keepdim=True)
        return Pointwise(weight.permute(0, 2, 3, 1).flatten(1), bias, self.device, self.dtype)

    def last(self, channels: int) -> Convolution:
        """The upsampler's convolution, with results in the order row in cell, column in cell, colour: h×W×(s·s·c).

        For one channel, the mean of the three colours.
        """
        weight, bias = self._upsampler
        cells = self.scale**2
        weight = weight.view(3, cells, *weight.shape[1:]).transpose(0, 1)  # s²×3×52×3×3
        bias = bias.view(3, cells).transpose(0, 1)  # s²×3
        if channels == 1:
            weight, bias = weight.mean(1, keepdim=True), bias.mean(1, keepdim=True)
        return self.convolution(weight.flatten(0, 1), bias.flatten(), padding=(0, 1))

    def scaled_conv_2(self, factors: Tensor) -> Convolution:
        """conv_2, for features that still have to be multiplied by `factors` (52)."""
        weight, bias = self._conv_2
        return self.convolution(weight * factors.cpu().double()[:, None, None], bias, padding=(0, 1))

    def _fuse(self, block: HASB) -> FusedBlock:
        esa, cab = block.esa, block.cab.cab
        channel_attention = cab[3]
        assert isinstance(channel_attention, ChannelAttention)

        def attention_layer(index: int) -> Linear:
            weight, bias = _matrix(channel_attention.attention[index])
            return weight.to(self.device, self.mean_dtype), bias.to(self.device, self.mean_dtype)

        return FusedBlock(
            steps=make_block(fused_weights(block), self.device, self.dtype, compile=self._compile),
            low_down=self.convolution(*_weights(esa.conv2), stride=2),
            low_out=self.convolution(*_weights(esa.conv3), padding=(1, 1)),
            attention=(attention_layer(1), attention_layer(3)),
        )


def fused_weights(block: HASB) -> BlockWeights:
    """A block's weights, multiplied together where one linear step follows another."""
    gamma, beta = block.ln.weight.detach().cpu().double(), block.ln.bias.detach().cpu().double()
    f1, f2, f3 = (after_norm(_matrix(f.conv), gamma, beta) for f in (block.f1, block.f2, block.f3))
    low_in = compose(_matrix(block.esa.conv1), f3)
    return BlockWeights(
        depthwise_in=_weights(block.dwconv.conv),
        low_in=low_in,
        gate_in=compose(_matrix(block.esa.conv_f), low_in),
        gate=_matrix(block.esa.conv4),
        f1=f1,
        f2=f2,
        f3=f3,
        g=_matrix(block.g.conv),
        depthwise_out=_weights(block.dwconv2.conv),
        squeeze=_weights(block.cab.cab[0]),
        expand=_weights(block.cab.cab[2]),
        eps=block.ln.eps,
    )


def _weights(conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution, in float64 on the CPU."""
    assert isinstance(conv, nn.Conv2d) and conv.bias is not None
    return conv.weight.detach().cpu().double(), conv.bias.detach().cpu().double()


def _matrix(conv: nn.Module) -> Linear:
    """Matrix and bias of a 1×1 convolution, in float64 on the CPU."""
    weight, bias = _weights(conv)
    return weight[:, :, 0, 0], bias


def after_norm(linear: Linear, scale: Tensor, shift: Tensor) -> Linear:
    """`linear` after a norm with this scale and shift, as one step on the values before that scale and shift."""
    matrix, bias = linear
    return matrix * scale, bias + matrix @ shift


def compose(outer: Linear, inner: Linear) -> Linear:
    """`outer` applied to the result of `inner`, as one step."""
    matrix, bias = outer
    return matrix @ inner[0], matrix @ inner[1] + bias
