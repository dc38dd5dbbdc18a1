"""Where training starts from: an interpolator whose blocks are alive, or the weights of another scale.

HASN has no skip from its input's pixels to its output, so with the usual random start it must learn the identity first.
Here three channels of conv_1 hand the pixel on, the upsampler interpolates them, and conv_2 adds nothing yet. The
blocks have no skip round their CAB: started at random they scramble and fade what they are given, and the channel
attention then shuts for good. So they start near the identity, scaled on real patches to a set deviation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasn_cli.network import HASB, HASN, ChannelAttention, pad_to_min_side

DEVIATION = 0.1  # spatial standard deviation that each block hands on at the start
SHUT = 1e-3  # share of the pixels at which a ReLU fires, and of the features that a gate lets through
FIRING = 0.5  # mean and deviation of what is put before a ReLU6 to open it
FAINT = 0.1  # share of the most varying gated product's, or ESA's, deviation: one below hardly takes part
RENEWED = 0.03  # spatial deviation of a gated product, or of what goes into an ESA, begun anew
TINY = 1e-6
NOISE = 0.02  # of a depthwise kernel's taps about the identity


@torch.no_grad()
def start(network: HASN, lr: Tensor, seed: int = 0) -> None:
    """Initialise a network for training from nothing.

    Args:
        network: changed in place.
        lr: N×3×H×W in [0, 1], real patches, on which the blocks are scaled.
        seed: of the random weights.
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
        last = block.cab.cab[2]
        assert isinstance(last, nn.Conv2d)
        last.weight *= DEVIATION / spatial_deviation(block(features))


def _pass_pixels(convolution: nn.Conv2d) -> None:
    """Channels 0 to 2 become the pixel's R, G, B; biases vanish."""
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    convolution.weight[:3] = 0
    for channel in range(3):
        convolution.weight[channel, channel, 1, 1] = 1


def _interpolate(network: HASN) -> None:
    """The upsampler interpolates channels 0 to 2 with Lagrange's quadratic and ignores the others."""
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
    d = (phase + 0.5) / scale - 0.5  # SR pixel's place from the LR pixel's centre
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


def spatial_deviation(features: Tensor) -> float:
    """Standard deviation over the pixels, averaged over pictures and channels: 0 for a dead block."""
    return float(features.detach().float().std(dim=(2, 3)).mean())


@torch.no_grad()
def adopt(network: HASN, state: Mapping[str, Tensor]) -> None:
    """Take over weights of any scale; an upsampler of another scale is resampled from phase to phase.

    Args:
        network: changed in place.
        state: a HASN's state dict; keys of the body must match.
    """
    state = dict(state)
    for name in ("upsampler.0.weight", "upsampler.0.bias"):
        if state[name].shape[0] != 3 * network.scale**2:
            state[name] = _resample_phases(state[name], network.scale)
    network.load_state_dict(state)


@torch.no_grad()
def revive(network: HASN, lr: Tensor, seed: int = 0) -> tuple[int, ...]:
    """Give what hardly anything makes fire any more new weights, so that it can learn; the output nearly stays.

    A channel of the gated product whose ReLU6 is shut gets no gradient, and opens never again; nor does an ESA whose
    gate is shut, or a channel attention whose one ReLU is. Here they are opened, with zeros behind them.

    Args:
        network: changed in place.
        lr: N×3×H×W in [0, 1], real patches, which tell what fires.
        seed: of the new weights.

    Returns:
        How many channels of each block's gated product, of 156, were shut.
    """
    torch.manual_seed(seed)
    counts = []
    for block, features in _blocks_and_inputs(network, lr):
        normed = block.ln(block.dwconv(features))
        shut = _is_shut(block, normed)
        counts.append(int(shut.sum()))
        if shut.any():
            _open_product(block, normed, shut)
        _open_esa(block, normed)
        _open_channel_attention(block, features)
    return tuple(counts)


@torch.no_grad()
def renew(network: HASN, lr: Tensor, seed: int = 0) -> tuple[int, ...]:
    """Begin anew the gated products and ESAs that hardly take part, open or not; the output changes until it learns.

    Behind new zeros a network that has grown round such a part leaves it at next to nothing. Something that varies is
    used, or learnt away.

    Args:
        network: changed in place.
        lr: N×3×H×W in [0, 1], real patches, which tell what varies.
        seed: of the new weights.

    Returns:
        The blocks, from 1, whose gated product or ESA was begun anew.
    """
    torch.manual_seed(seed)
    parts = [_part_deviations(block, features) for block, features in _blocks_and_inputs(network, lr)]
    bounds = [FAINT * max(deviations) for deviations in zip(*parts, strict=True)]
    renewed = []
    for i, (block, features) in enumerate(_blocks_and_inputs(network, lr)):
        normed = block.ln(block.dwconv(features))
        product, esa = (deviation < bound for deviation, bound in zip(parts[i], bounds, strict=True))
        if product:
            _begin_product(block, normed)
        if esa:
            _begin_esa(block, normed)
        if product or esa:
            renewed.append(i + 1)
    return tuple(renewed)


@torch.no_grad()
def shut_channels(network: HASN, lr: Tensor) -> tuple[int, ...]:
    """How many channels of each block's gated product, of 156, fire for hardly a pixel of N×3×H×W in [0, 1]."""
    inputs = _blocks_and_inputs(network, lr)
    return tuple(int(_is_shut(block, block.ln(block.dwconv(features))).sum()) for block, features in inputs)


def _blocks_and_inputs(network: HASN, lr: Tensor) -> Iterator[tuple[HASB, Tensor]]:
    """Each block with its features N×52×H×W; the next ones' come from the block as it has been left."""
    features = network.conv_1(pad_to_min_side(lr))
    for block in network.blocks:
        yield block, features
        features = block(features)


def _part_deviations(block: HASB, features: Tensor) -> tuple[float, float]:
    """Spatial deviations of the gated product and of ESA's output, of which g is given the sum."""
    normed = block.ln(block.dwconv(features))
    return spatial_deviation(_product(block, normed)), spatial_deviation(block.esa(block.f3(normed)))


def _product(block: HASB, normed: Tensor) -> Tensor:
    product: Tensor = F.relu6(block.f1(normed)) * block.f2(normed)  # N×156×H×W
    return product


def _begin_product(block: HASB, normed: Tensor) -> None:
    """New filters for all of f1 and f2, f1's half open, and their product of a set deviation."""
    for convolution, mean in ((block.f1.conv, FIRING), (block.f2.conv, 0.0)):
        assert convolution.bias is not None
        fresh = _filters(convolution.out_channels, normed)
        convolution.weight.copy_(fresh)
        convolution.bias.copy_(mean - F.conv2d(normed, fresh).mean((0, 2, 3)))
    _scale(block.f2, RENEWED / max(TINY, spatial_deviation(_product(block, normed))))


def _begin_esa(block: HASB, normed: Tensor) -> None:
    """A half-open gate, and f3 anew with a set deviation."""
    for convolution in (*block.esa.children(), block.f3.conv):
        assert isinstance(convolution, nn.Conv2d)
        convolution.reset_parameters()
    _scale(block.f3, RENEWED / max(TINY, spatial_deviation(block.f3(normed))))


def _scale(module: nn.Module, share: float) -> None:
    for parameter in module.parameters():
        parameter.mul_(share)


def _is_shut(block: HASB, normed: Tensor) -> Tensor:
    """For each of f1's channels: whether its ReLU6 is shut at nearly all pixels."""
    fires: Tensor = block.f1(normed) > 0
    return fires.float().mean((0, 2, 3)) < SHUT


def _filters(count: int, normed: Tensor) -> Tensor:
    """Random 1×1 filters, count×52×1×1, of whose outputs each varies by FIRING."""
    fresh = torch.randn(count, normed.shape[1], 1, 1)
    return fresh * (FIRING / F.conv2d(normed, fresh).std((0, 2, 3)).clamp_min(TINY)[:, None, None, None])


def _open_product(block: HASB, normed: Tensor, shut: Tensor) -> None:
    """New filters for these channels of f1, and zeros for those of f2 that they are multiplied by."""
    fresh = _filters(int(shut.sum()), normed)
    f1, f2 = block.f1.conv, block.f2.conv
    assert f1.bias is not None and f2.bias is not None
    f1.weight[shut] = fresh
    f1.bias[shut] = FIRING - F.conv2d(normed, fresh).mean((0, 2, 3))
    f2.weight[shut] = 0
    f2.bias[shut] = 0


def _open_esa(block: HASB, normed: Tensor) -> None:
    """A half-open gate, and zeros for what goes through it, where next to nothing does."""
    features = block.f3(normed)
    if block.esa(features).abs().mean() >= SHUT * features.abs().mean():
        return
    for convolution in block.esa.children():
        assert isinstance(convolution, nn.Conv2d)
        convolution.reset_parameters()
    f3 = block.f3.conv
    assert f3.bias is not None
    nn.init.zeros_(f3.weight)
    nn.init.zeros_(f3.bias)


def _open_channel_attention(block: HASB, features: Tensor) -> None:
    """A new filter for the one squeezed channel, and zeros for what is made of it, where it hardly fires."""
    attended: list[Tensor] = []
    attention = block.cab.cab[3]
    assert isinstance(attention, ChannelAttention)
    hook = attention.register_forward_pre_hook(lambda _, inputs: attended.append(inputs[0]))
    block(features)
    hook.remove()
    squeeze, spread = attention.attention[1], attention.attention[3]
    assert isinstance(squeeze, nn.Conv2d) and squeeze.bias is not None and isinstance(spread, nn.Conv2d)
    means = attended[0].mean((2, 3), keepdim=True)  # N×52×1×1
    if (squeeze(means) > 0).float().mean() >= SHUT:
        return
    squeeze.reset_parameters()
    squeeze.bias += 1 - squeeze(means).mean()
    nn.init.zeros_(spread.weight)


def _resample_phases(head: Tensor, scale: int) -> Tensor:
    """(3·t²)×… → (3·s²)×…: a filter for each new phase, interpolated between the filters of the old ones."""
    old = round((head.shape[0] / 3) ** 0.5)
    phases = head.reshape(3, old, old, -1).permute(0, 3, 1, 2)
    resampled = F.interpolate(phases, size=(scale, scale), mode="bilinear", align_corners=False)
    return resampled.permute(0, 2, 3, 1).reshape(3 * scale**2, *head.shape[1:])
