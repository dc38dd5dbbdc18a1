"""LR patches as people have them: reduced by various programs, a little noisy, and compressed.

`--degrade photo` trains with these instead of the clean bicubic reduction. The network then learns to undo the
compression along with the reduction. The shares and ranges below are stated in docs/training.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageFilter

from hasn_cli.evaluation.pictures import as_jpeg, saved_and_read
from hasn_cli.resize import resize

Image = NDArray[np.uint8]

MARGIN = 20  # LR pixels around a patch: for the reducing kernels, and for two block grids that may start anywhere
KERNEL_MARGIN = 4  # LR pixels of these that the reducing kernels need
BLOCK = 8  # side of a JPEG block in pixels

KERNELS = {"bicubic": 0.6, "box": 0.15, "lanczos": 0.1, "bilinear": 0.1, "blurred": 0.05}
BLUR = (0.3, 0.6)  # standard deviation of the blur before bicubic, in LR pixels
NOISY = 0.08  # share of patches with sensor noise
NOISE = (0.5, 2.0)  # its standard deviation in grey levels
COMPRESSIONS = {"none": 0.08, "jpeg": 0.7, "jpeg twice": 0.1, "webp": 0.12}
QUALITY = (25, 95)  # of JPEG and WebP
SUBSAMPLINGS = {"4:2:0": 0.65, "4:2:2": 0.1, "4:4:4": 0.25}

GRAPHICS = 0.15  # share of patches that show graphics instead of a photograph
GRAPHICS_COMPRESSED = 0.4  # share of these that are compressed

VALIDATION_QUALITIES = (None, 90, 75, 50)
"""The JPEG quality of validation picture number i is entry i mod 4; None leaves it uncompressed."""


@dataclass(frozen=True)
class Band:
    """JPEGs of similar quality, and the blend of clean and photo weights that learns from them."""

    photo: float  # share of the photo weights in the blend
    quality: tuple[int, int]  # lowest and highest JPEG quality
    share: float  # of the batches


BANDS = (
    Band(0.25, (97, 98), 0.05),
    Band(0.375, (95, 96), 0.05),
    Band(0.5, (92, 94), 0.1),
    Band(0.625, (88, 91), 0.15),
    Band(0.75, (81, 87), 0.15),
    Band(0.875, (67, 80), 0.2),
    Band(1.0, (25, 66), 0.3),
)
UNCOMPRESSED = 0.5  # share of the photo weights in the blend that learns from graphics that are not compressed


def band(seed: int, number: int) -> Band:
    """The band of batch `number`, when blends are trained."""
    random = np.random.default_rng((seed, number, len(BANDS)))
    return BANDS[int(random.choice(len(BANDS), p=[band.share for band in BANDS]))]


def photo_share(quality: int | None) -> float:
    """The share of the photo weights in the blend for a JPEG quality; None for a picture that is not compressed."""
    if quality is None:
        return UNCOMPRESSED
    return next((band.photo for band in BANDS if quality >= band.quality[0]), 1.0)


def degraded(hr: Image, scale: int, random: np.random.Generator, band: Band | None = None) -> Image:
    """Reduce an HR window and add noise and compression, all chosen at random.

    Args:
        hr: s(P+2m)×s(P+2m)×3, where P is the side of the patch and m is `MARGIN`.
        scale: s.
        random: every random choice comes from here.
        band: limits the compression to JPEG of these qualities, and at the end of the scale also WebP.

    Returns:
        The LR patch in the middle, P×P×3.
    """
    lr = reduced(hr, scale, _choose(KERNELS, random), random)
    return compressed(lr, random, band)


def compressed(lr: Image, random: np.random.Generator, band: Band | None = None) -> Image:
    """Add noise and compression to an LR window; returns the P×P×3 in the middle of (P+2m)×(P+2m)×3."""
    side = len(lr) - 2 * MARGIN
    if random.random() < NOISY:
        lr = _noisy(lr, random)
    kind = _choose(COMPRESSIONS, random)
    if band is not None and (kind == "none" or (kind == "webp" and band.photo < 1)):
        kind = "jpeg"
    quality = QUALITY if band is None else band.quality
    start = KERNEL_MARGIN  # of the window that is left, in the coordinates of `lr`
    lr = lr[start:-start, start:-start]
    for _ in range({"none": 0, "jpeg twice": 2}.get(kind, 1)):
        offset = int(random.integers(BLOCK))
        start += offset
        lr = _webp(lr[offset:, offset:], random) if kind == "webp" else _jpeg(lr[offset:, offset:], random, quality)
    inside = slice(MARGIN - start, MARGIN - start + side)
    return lr[inside, inside]


def reduced(hr: Image, scale: int, kernel: str, random: np.random.Generator) -> Image:
    """Reduce H×W×3 by a whole factor with one of `KERNELS`."""
    if kernel == "bicubic":
        return resize(hr, scale=1 / scale)
    if kernel == "box":
        return box_average(hr, scale)
    picture = PillowImage.fromarray(hr)
    size = (hr.shape[1] // scale, hr.shape[0] // scale)
    if kernel == "blurred":
        blurred = picture.filter(ImageFilter.GaussianBlur(scale * random.uniform(*BLUR)))
        return resize(np.asarray(blurred), scale=1 / scale)
    method = PillowImage.Resampling.LANCZOS if kernel == "lanczos" else PillowImage.Resampling.BILINEAR
    return np.asarray(picture.resize(size, method))


def box_average(image: Image, factor: int) -> Image:
    """The mean of each factor×factor square of H×W×C."""
    height, width = image.shape[0] // factor, image.shape[1] // factor
    squares = image[: height * factor, : width * factor].reshape(height, factor, width, factor, -1)
    return np.asarray(np.floor(squares.mean((1, 3), dtype=np.float32) + 0.5), np.uint8)


def _noisy(lr: Image, random: np.random.Generator) -> Image:
    """Add Gaussian noise, in half of the cases the same for red, green and blue."""
    channels = 1 if random.random() < 0.5 else 3
    noise = random.normal(0, random.uniform(*NOISE), (*lr.shape[:2], channels))
    return np.clip(np.rint(lr + noise), 0, 255).astype(np.uint8)


def _jpeg(lr: Image, random: np.random.Generator, quality: tuple[int, int]) -> Image:
    return as_jpeg(lr, int(random.integers(quality[0], quality[1] + 1)), _choose(SUBSAMPLINGS, random))


def _webp(lr: Image, random: np.random.Generator) -> Image:
    return saved_and_read(lr, "WEBP", quality=int(random.integers(QUALITY[0], QUALITY[1] + 1)), method=0)


def _choose(shares: dict[str, float], random: np.random.Generator) -> str:
    return str(random.choice(list(shares), p=list(shares.values())))
