"""Initial weights for training: an interpolator whose blocks all pass a signal, or existing weights of any scale.

HASN has no skip from its input pixels to its output, so from the usual random weights it must first learn the identity.
Here three channels of conv_1 carry the pixel, the upsampler interpolates them, and conv_2 adds nothing yet.

The blocks have no skip around their CAB. With random weights they scramble and weaken their input until the channel
attention closes for good. So each block starts near the identity, scaled on real patches to a fixed deviation.

The layer norms start centred on real patches. All channels grow with the brightness, so a plain layer norm turns them
into nearly the same vector at every pixel; half of the gated product's ReLU6 channels would then be always on or always
off, and those that are always off never get a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasn_cli.network import HASB, HASN, ChannelAttention, pad_to_min_side

DEVIATION = 0.1  # initial spatial standard deviation of each block's output
LEAST_DEVIATION = 0.02  # of a channel after the layer norm; a channel that varies less is not amplified further
SHUT = 1e-3  # a ReLU is dead if it fires at a smaller share of the pixels, a gate if it passes a smaller share
NOISE = 0.02  # standard deviation of a depthwise kernel's taps around the identity


@torch.no_grad()
def start(network: HASN, lr: Tensor, seed: int = 0) -> None:
    """Initialise a network for training from scratch.

    Args:
        network: changed in place.
        lr: N×3×H×W in [0, 1], real patches, used to centre the norms and to scale the blocks.
        seed: for the random weights.
    """
    torch.manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    _pass_pixels(network.conv_1)
    _interpolate(network)
    nn.init.zeros_(network.conv_2.weight)
    assert network.conv_2.bias is not None
    nn.init.zeros_(network.conv_2.bias)
    for block, features in _blocks_and_inputs(network, lr):
        _near_identity(block)
        _centre_norm(block, features)
        last = block.cab.cab[2]
        assert isinstance(last, nn.Conv2d)
        last.weight *= DEVIATION / spatial_deviation(block(features))


def _pass_pixels(convolution: nn.Conv2d) -> None:
    """Make channels 0 to 2 the pixel's R, G and B, and set the biases to zero."""
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    convolution.weight[:3] = 0
    for channel in range(3):
        convolution.weight[channel, channel, 1, 1] = 1


def _interpolate(network: HASN) -> None:
    """Make the upsampler interpolate channels 0 to 2 with Lagrange's quadratic and ignore the others."""
    head = network.upsampler[0]
    assert isinstance(head, nn.Conv2d) and head.bias is not None
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    scale = network.scale
    for phase_y in range(scale):
        for phase_x in range(scale):
            kernel = torch.outer(_lagrange(phase_y, scale), _lagrange(phase_x, scale))
            for channel in range(3):  # pixel shuffle's order: colour, then phase by rows
                head.weight[channel * scale**2 + phase_y * scale + phase_x, channel] = kernel


def _lagrange(phase: int, scale: int) -> Tensor:
    d = (phase + 0.5) / scale - 0.5  # from the LR pixel's centre to the SR pixel's
    return torch.tensor([d * (d - 1) / 2, 1 - d * d, d * (d + 1) / 2])


def _near_identity(block: HASB) -> None:
    for convolution in (block.dwconv.conv, block.dwconv2.conv):
        nn.init.normal_(convolution.weight, std=NOISE)
        convolution.weight[:, 0, 3, 3] += 1
    narrow, _, wide, attention = block.cab.cab
    assert isinstance(narrow, nn.Conv2d) and isinstance(wide, nn.Conv2d) and isinstance(attention, ChannelAttention)
    opening = attention.attention[3]
    assert isinstance(opening, nn.Conv2d) and opening.bias is not None
    down = torch.linalg.qr(torch.randn(narrow.in_channels, narrow.out_channels))[0].T  # 17×52, orthonormal rows
    narrow.weight.mul_(0.3)
    narrow.weight[:, :, 1, 1] += down
    wide.weight.mul_(0.3)
    wide.weight[:, :, 1, 1] += down.T
    for bias in (narrow.bias, wide.bias):
        assert bias is not None
        nn.init.zeros_(bias)
    nn.init.constant_(opening.bias, 2.0)  # the sigmoid starts at 0.88


def _centre_norm(block: HASB, features: Tensor) -> None:
    """Set the norm's scale and shift so that each channel has mean 0 and deviation 1 over the pixels of N×52×H×W."""
    nn.init.ones_(block.ln.weight)
    nn.init.zeros_(block.ln.bias)
    normed = block.ln(block.dwconv(features))
    deviation = normed.std((0, 2, 3)).clamp_min(LEAST_DEVIATION)
    block.ln.weight.copy_(1 / deviation)
    block.ln.bias.copy_(-normed.mean((0, 2, 3)) / deviation)


def spatial_deviation(features: Tensor) -> float:
    """Standard deviation over the pixels, averaged over pictures and channels. It is 0 for a dead block."""
    return float(features.detach().float().std(dim=(2, 3)).mean())


@torch.no_grad()
def adopt(network: HASN, state: Mapping[str, Tensor]) -> None:
    """Load weights of any scale. The upsampler's phases are resampled if the scale differs.

    Args:
        network: changed in place.
        state: a HASN's state dict. The keys of the body must match.
    """
    state = dict(state)
    for name in ("upsampler.0.weight", "upsampler.0.bias"):
        if state[name].shape[0] != 3 * network.scale**2:
            state[name] = _resample_phases(state[name], network.scale)
    network.load_state_dict(state)


@torch.no_grad()
def shut_channels(network: HASN, lr: Tensor) -> tuple[int, ...]:
    """For each block, how many of the gated product's 156 channels are dead on N×3×H×W in [0, 1]."""
    inputs = _blocks_and_inputs(network, lr)
    return tuple(int(_is_shut(block, block.ln(block.dwconv(features))).sum()) for block, features in inputs)


def _blocks_and_inputs(network: HASN, lr: Tensor) -> Iterator[tuple[HASB, Tensor]]:
    """Each block and its input, N×52×H×W. Changes that the caller makes to a block affect the inputs that follow."""
    features = network.conv_1(pad_to_min_side(lr))
    for block in network.blocks:
        yield block, features
        features = block(features)


def _is_shut(block: HASB, normed: Tensor) -> Tensor:
    """For each of f1's channels: whether its ReLU6 is zero at nearly all pixels."""
    fires: Tensor = block.f1(normed) > 0
    return fires.float().mean((0, 2, 3)) < SHUT


def _resample_phases(head: Tensor, scale: int) -> Tensor:
    """(3·t²)×… → (3·s²)×…: interpolate the new phases' filters between those of the old phases."""
    old = round((head.shape[0] / 3) ** 0.5)
    phases = head.reshape(3, old, old, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(phases, size=(scale, scale), mode="bilinear", align_corners=False)
    return resampled.permute(0, 2, 3, 1).reshape(3 * scale**2, *head.shape[1:])
