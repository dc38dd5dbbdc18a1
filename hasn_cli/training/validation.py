"""What a run measures: validation PSNR-Y, and signs that a part of the network has died."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from hasn_cli.evaluation.benchmark import whole_multiple
from hasn_cli.evaluation.metrics import psnr_y
from hasn_cli.evaluation.pictures import as_jpeg
from hasn_cli.inference import Upscaler
from hasn_cli.inference.planning import BORDER
from hasn_cli.inference.upscaler import extended
from hasn_cli.network import HASN
from hasn_cli.resize import resize, to_type
from hasn_cli.training.degrade import VALIDATION_QUALITIES, Image, photo_share
from hasn_cli.training.initialization import spatial_deviation


def mean_psnr(
    network: HASN,
    pictures: Sequence[Image],
    device: str,
    degrade: str = "bicubic",
    partner: Sequence[Tensor] | None = None,
) -> float:
    """Mean PSNR-Y in decibels of HR pictures, H×W×3 uint8, reduced and enlarged again in float32.

    With `degrade` "photo", the reduced pictures are saved as JPEG of the `VALIDATION_QUALITIES`, in turn. With a
    `partner`, the parameters of the clean network, each is enlarged by the blend for its quality.
    """
    plain = _enlarger(network, device)
    blended = cache(lambda share: _enlarger(_blend(network, partner or (), share), device))
    values = []
    for number, picture in enumerate(pictures):
        hr = whole_multiple(picture, network.scale)
        lr = resize(hr, scale=1 / network.scale)
        quality = None if degrade == "bicubic" else VALIDATION_QUALITIES[number % len(VALIDATION_QUALITIES)]
        enlarge = plain if partner is None else blended(photo_share(quality))
        values.append(psnr_y(enlarge(lr if quality is None else as_jpeg(lr, quality)), hr, network.scale))
    return float(np.mean(values))


def _enlarger(network: HASN, device: str) -> Callable[[Image], Image]:
    return Upscaler(network).upscale if device == "cpu" else lambda lr: _enlarge(network, lr, device)


def _blend(network: HASN, partner: Sequence[Tensor], share: float) -> HASN:
    blend = copy.deepcopy(network)
    mix(list(blend.parameters()), partner, share)
    return blend


@torch.no_grad()
def mix(parameters: Sequence[Tensor], partner: Sequence[Tensor], share: float) -> None:
    """Change parameters to the blend of `share` of themselves and the rest of the partner's."""
    for parameter, other in zip(parameters, partner, strict=True):
        parameter.copy_(torch.lerp(other, parameter, share))


@torch.no_grad()
def _enlarge(network: HASN, lr: Image, device: str) -> Image:
    """H×W×3 → sH×sW×3 uint8 by the plain module, which runs on every device, with the border of `Upscaler`."""
    wide = extended(lr, BORDER)
    sr = network(torch.from_numpy(wide.transpose(2, 0, 1)[None].copy()).to(device).float() / 255)
    top = BORDER * network.scale
    height, width = (side * network.scale for side in lr.shape[:2])
    inside = sr[0, :, top : top + height, top : top + width]
    return to_type(inside.permute(1, 2, 0).cpu().numpy() * 255, np.dtype(np.uint8))


def mean_deviations(pieces: Sequence[Sequence[Tensor]]) -> tuple[float, ...]:
    """The spatial deviation before the first block and after each, averaged over the pieces of a batch."""
    return tuple(sum(map(spatial_deviation, stage)) / len(stage) for stage in zip(*pieces, strict=True))


def fingerprint(pictures: Sequence[Image]) -> str:
    """SHA-256 of pictures, H×W×3."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr(picture.shape).encode() + np.ascontiguousarray(picture).data)
    return digest.hexdigest()
