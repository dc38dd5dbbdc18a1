"""How a file was compressed: with which loss, as far as the file says it.

For a JPEG, the quality is estimated from the quantization table of the luma. libjpeg makes that table from the example
in the JPEG standard and a quality of 1 to 100 (`jpeg_set_quality` in its `jcparam.c`), and most programs use libjpeg's
scale. For other tables, the quality is that whose table is most similar.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile

_DQT = 0xDB
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)  # baseline, sequential, progressive, and both with arithmetic coding
_TABLE_VALUES = 64
_SUBSAMPLINGS = {(1, 1): "4:4:4", (2, 1): "4:2:2", (2, 2): "4:2:0", (1, 2): "4:4:0", (4, 1): "4:1:1", (4, 2): "4:1:0"}

# ITU-T T.81, table K.1, in the order of a file: along the diagonals
_LUMA = (
    16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51, 61,
    60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77, 113,
    121, 112, 100, 120, 92, 101, 103, 99,
)  # fmt: skip

Segments = Iterable[tuple[int, bytes]]
"""Marker and body of each segment of a JPEG, before its first scan."""


@dataclass(frozen=True)
class Compression:
    """The lossy compression of a file.

    Attributes:
        kind: the name of the method: "JPEG", "WebP", "AVIF", …
        quality: of a JPEG, 1 to 100 on libjpeg's scale, estimated; None if the file does not say.
        video: whether it is the compression of a video.
        quantizer: of a video in H.264: QP, 0 to 51; None if it is not known.
        intra: of a video: each frame was compressed alone.
        subsampling: of a JPEG's colour: "4:4:4", "4:2:2", "4:2:0", …; None if it is gray, or the file does not say.
    """

    kind: str
    quality: int | None = None
    subsampling: str | None = None
    video: bool = False
    intra: bool = False
    quantizer: int | None = None

    def __str__(self) -> str:
        if self.video:
            return f"{self.kind} video" + ("" if self.quantizer is None else f", QP about {self.quantizer}")
        return self.kind if self.quality is None else f"{self.kind}, quality about {self.quality}"


def jpeg_compression(segments: Segments) -> Compression:
    """The compression of a JPEG with these segments. Whatever is broken or missing is None."""
    tables: dict[int, tuple[int, ...]] = {}
    components: list[tuple[int, int, int]] = []
    for marker, body in segments:
        if marker == _DQT:
            tables.update(_tables(body))
        elif marker in _FRAMES and not components:
            components = _components(body)
    luma = tables.get(components[0][2] if components else 0)
    return Compression("JPEG", None if luma is None else jpeg_quality(luma), _subsampling(components))


def jpeg_compression_of(image: JpegImageFile) -> Compression:
    """The same for a JPEG that Pillow has opened."""
    from PIL.JpegImagePlugin import get_sampling, zigzag_index

    luma = image.layer[0][3] if getattr(image, "layer", None) else 0
    natural = image.quantization.get(luma)  # row by row
    quality = None
    if natural is not None and len(natural) == _TABLE_VALUES:
        table = np.empty(_TABLE_VALUES, np.int64)
        table[list(zigzag_index)] = natural
        quality = jpeg_quality(table.tolist())
    return Compression("JPEG", quality, {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}.get(get_sampling(image)))


def jpeg_quality(table: Sequence[int]) -> int | None:
    """The quality, 1 to 100, whose luma table is most similar to this one, in the order of a file.

    None if it is not a table: not 64 values above 0.
    """
    values = np.asarray(table, np.float64)
    if values.shape != (_TABLE_VALUES,) or not (values > 0).all():
        return None
    differences = np.abs(np.log(_example_tables()) - np.log(values)).mean(1)
    return 1 + int(np.argmin(differences))


@cache
def _example_tables() -> NDArray[np.float64]:
    """The luma tables of libjpeg for the qualities 1 to 100: 100×64."""
    quality = np.arange(1, 101)[:, None]
    percent = np.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return np.asarray(np.clip((np.asarray(_LUMA) * percent + 50) // 100, 1, 255), np.float64)


def _tables(body: bytes) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Number and values of each table in a segment, as far as it is complete."""
    at = 0
    while at < len(body):
        deep, number = body[at] >> 4, body[at] & 15
        length = _TABLE_VALUES * (2 if deep else 1)
        if at + 1 + length > len(body):
            return
        yield number, struct.unpack_from(f">{_TABLE_VALUES}{'H' if deep else 'B'}", body, at + 1)
        at += 1 + length


def _components(frame: bytes) -> list[tuple[int, int, int]]:
    """Horizontal and vertical sampling factor and number of the table of each component in a frame's header."""
    count = frame[5] if len(frame) > 5 else 0
    found = (frame[6 + 3 * index : 9 + 3 * index] for index in range(count))
    return [(part[1] >> 4, part[1] & 15, part[2]) for part in found if len(part) == 3]


def _subsampling(components: Sequence[tuple[int, int, int]]) -> str | None:
    if len(components) < 3:
        return None
    (across, down, _), (chroma_across, chroma_down, _) = components[:2]
    if not (chroma_across and chroma_down) or across % chroma_across or down % chroma_down:
        return None
    return _SUBSAMPLINGS.get((across // chroma_across, down // chroma_down))
