"""Which weights a picture gets, by what its file says about how it was compressed.

The package has two sets of weights: clean, for pictures that were reduced and never compressed, and photo, for files
that were compressed with loss. Between them lie blends: each weight is a mean of both. `-w hasn` takes the blend that
fits. `benchmarks/blends.py` measures how good each blend is for each kind of file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hasn_cli.images.compression import Compression
from hasn_cli.images.picture import Picture
from hasn_cli.weights import AUTOMATIC

EIGHTHS = 8

JPEG_SHARES = ((97, 1), (95, 2), (93, 3), (88, 4), (84, 5), (72, 6), (56, 7), (0, 8))
"""The lowest JPEG quality for each share of the photo weights, in eighths. The first that fits counts."""
FINE_COLOUR = ((99, 0), (97, 1), (94, 2), (91, 3), (88, 4), (82, 5), (68, 6), (50, 7), (0, 8))
"""The same for JPEGs with colour at full resolution (4:4:4), and for grey ones."""
OTHER_SHARE = 4  # for lossy WebP, AVIF, HEIC, JPEG XL and JPEG 2000, which do not say their quality
QP_SHARES = ((34, 8), (32, 7), (30, 6), (28, 5), (25, 4), (21, 3), (14, 2), (0, 1))
"""The lowest QP of an H.264 video for each share of the photo weights, in eighths. The first that fits counts."""
VIDEO_SHARE = 4  # for videos in H.265, VP9, AV1 and others, which do not say it
INTRA_SHARE = 2  # for videos whose frames were compressed alone, as for editing: ProRes, DNxHD, …
LOSSLESS_SHARE = 1  # for lossless photographs: better where they were not reduced by bicubic

GRAPHIC_SHARE = 5  # for lossless graphics

BLOCK = 8
EQUAL = 0.35  # in a graphic, at least this share of neighbours in blocks of several colours are equal
CLOSE_LEVELS = 3  # and of those that differ by at most so many levels of 255,
DIFFERENT = 0.2  # at most this share differ at all
LOOKED_AT = 1 << 20  # about so many pixels are looked at

Limit = Literal["none", "loose", "tight"]
"""How far a result may leave the range of the input pixels around it; see `enlarge.limited`."""


@dataclass(frozen=True)
class Choice:
    """The weights for a picture.

    Attributes:
        photo: the share of the photo weights in eighths: 0 is clean, 8 is photo. Other weights have 0.
        limit: how far the result may leave the range of the input pixels around it.
        why: what the file says, in a few words; empty if the weights were given by name.
    """

    photo: int = 0
    limit: Limit = "none"
    why: str = ""

    @property
    def text(self) -> str:
        """For people: `photo weights: JPEG, quality about 60, 4:2:0`."""
        return f"{blend_name(self.photo)}: {self.why}" if self.why else ""


def blend_name(photo: int) -> str:
    """`clean weights`, `photo weights`, or `weights 5/8 photo, 3/8 clean`."""
    if photo in (0, EIGHTHS):
        return "photo weights" if photo else "clean weights"
    return f"weights {photo}/8 photo, {EIGHTHS - photo}/8 clean"


def choose(picture: Picture, weights: str = AUTOMATIC, *, look: bool = True) -> Choice:
    """The weights for a picture.

    Args:
        picture: as it was opened.
        weights: as in `-w`; anything but `hasn` leaves nothing to choose.
        look: decode the first frame of a lossless file, to tell graphics from photographs. Otherwise it counts as a
            photograph, and `why` says so.

    Raises:
        ImageError: the first frame is broken.
    """
    if weights != AUTOMATIC:
        return Choice()
    if picture.format in ("ppm", "pfm"):  # from a pipe, it may have been anything
        return Choice(why="PNM, which does not say how it was compressed")
    if picture.compression is not None:
        return Choice(photo_share(picture.compression), "none", describe(picture.compression))
    if not look:
        return Choice(LOSSLESS_SHARE, "loose", f"lossless; {blend_name(GRAPHIC_SHARE)} if it is a graphic")
    if is_graphic(next(iter(picture.frames)).pixels):
        return Choice(GRAPHIC_SHARE, "tight", "a lossless graphic")
    return Choice(LOSSLESS_SHARE, "loose", "lossless")


def choose_for_video(compression: Compression | None, weights: str = AUTOMATIC, *, raw: bool = False) -> Choice:
    """The weights for all frames of a video.

    Args:
        compression: of the video; None if it is lossless.
        weights: as in `-w`; anything but `hasn` leaves nothing to choose.
        raw: the frames are not compressed at all, as in a pipe. They may have been anything.
    """
    if weights != AUTOMATIC:
        return Choice()
    if raw:
        return Choice(OTHER_SHARE, why="uncompressed video, which does not say how it was compressed before")
    if compression is None:
        return Choice(LOSSLESS_SHARE, "loose", "lossless video")
    return Choice(photo_share(compression), why=describe(compression))


def photo_share(compression: Compression) -> int:
    """The share of the photo weights for a file, in eighths."""
    if compression.video:
        if compression.quantizer is not None:
            return next(share for lowest, share in QP_SHARES if compression.quantizer >= lowest)
        return INTRA_SHARE if compression.intra else VIDEO_SHARE
    if compression.kind != "JPEG":
        return OTHER_SHARE
    table = FINE_COLOUR if compression.subsampling in ("4:4:4", None) else JPEG_SHARES
    quality = 75 if compression.quality is None else compression.quality
    return next(share for lowest, share in table if quality >= lowest)


def describe(compression: Compression) -> str:
    """`JPEG, quality about 75, 4:2:0`."""
    return ", ".join(filter(None, (str(compression), compression.subsampling)))


def is_graphic(pixels: NDArray[Any]) -> bool:
    """Whether H×W×C pixels are drawn rather than photographed.

    Drawn areas are exactly flat, even close to edges. Photographs are not: where neighbours are alike there, they
    usually differ a little. So this looks at neighbours in 8×8 blocks that are not of one colour: many are equal, and
    few of those that are close to each other differ. Floats count as photographs.
    """
    if pixels.dtype.kind == "f" or min(pixels.shape[:2]) < BLOCK:
        return False
    blocks = _blocks(pixels)
    mixed = blocks[(blocks != blocks[:, :1, :1]).any((1, 2, 3))]
    if not len(mixed):
        return True
    differences = np.abs(np.diff(mixed.astype(np.int32), axis=2)).max(3)
    equal = float((differences == 0).mean())
    close = float((differences <= CLOSE_LEVELS * (np.iinfo(pixels.dtype).max // 255)).mean())
    return equal >= EQUAL and equal >= (1 - DIFFERENT) * close


def _blocks(pixels: NDArray[Any]) -> NDArray[Any]:
    """N×8×8×C blocks, of a large picture every few rows of blocks. The colour of invisible pixels is left out."""
    rows, columns = (side // BLOCK for side in pixels.shape[:2])
    step = -(-pixels.shape[0] * pixels.shape[1] // LOOKED_AT)
    shape = (rows, BLOCK, columns, BLOCK, pixels.shape[2])
    picked = pixels[: rows * BLOCK, : columns * BLOCK].reshape(shape)[::step]
    if pixels.shape[2] in (2, 4):
        picked = picked[..., :-1] * (picked[..., -1:] > 0)
    blocks: NDArray[Any] = picked.swapaxes(1, 2).reshape(-1, BLOCK, BLOCK, picked.shape[-1])
    return blocks
