"""Reads the largest picture of an ICO file, and writes ICO files with one picture, stored as PNG."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import IcoImagePlugin

from hasn_cli.images.codecs import png
from hasn_cli.images.limits import Limit
from hasn_cli.images.picture import EncodeOptions, Frame, Metadata, Picture, Pixels, ReplayableFrames
from hasn_cli.images.source import Source

_PLAIN, _BIT_FIELDS = 0, 3  # the compressions of bitmaps that occur in icons
_CORE_HEADER = 12  # bytes of the first OS/2 header, which states width and height in 16 bits
_INFO_HEADER = 40


@dataclass(frozen=True, order=True)
class _Entry:
    pixels: int
    depth: int
    width: int
    height: int
    start: int
    length: int


def read(source: Source, limit: Limit) -> Picture:
    """Read the largest picture of an icon; among equally large ones, the one with the most bits per pixel."""
    data = source.read()
    (count,) = struct.unpack_from("<H", data, 4)
    entries = []
    for index in range(count):
        width, height, _, _, _, depth, length, start = struct.unpack_from("<BBBBHHLL", data, 6 + 16 * index)
        width, height = width or 256, height or 256
        entries.append(_Entry(width * height, depth, width, height, start, length))
    best = max(entries)
    inside = data[best.start : best.start + best.length]
    if len(inside) < best.length:
        raise ValueError("the file is truncated")
    if inside.startswith(png.SIGNATURE):
        return replace(png.read(Source(inside, source.name), limit), format="ico", frame_count=1)
    if _compression(inside) not in (_PLAIN, _BIT_FIELDS):
        raise ValueError("compressed bitmaps in icons are not supported")
    height, width = _bitmap_size(inside)
    limit.check(source.name, height, width)
    depth = _bitmap_depth(inside)
    alone = data[:4] + struct.pack("<HBBBBHHLL", 1, 0, 0, 0, 0, 1, depth, len(inside), 22) + inside

    def frames() -> Iterator[Frame]:
        pixels = np.asarray(IcoImagePlugin.IcoFile(io.BytesIO(alone)).frame(0).convert("RGBA"))
        yield Frame(_by_mask(pixels, inside) if depth == 32 and not pixels[..., 3].any() else pixels)

    return Picture(source.name, "ico", (height, width), 4, np.dtype(np.uint8), ReplayableFrames(frames))


def _bitmap_size(bitmap: bytes) -> tuple[int, int]:
    """Height and width in a bitmap's own header, because the icon's directory may be wrong.

    The header's height also counts the rows of the mask, so it is doubled. It is negative if the top row comes first.
    """
    core = struct.unpack_from("<L", bitmap)[0] == _CORE_HEADER
    width, height = struct.unpack_from("<HH" if core else "<Ll", bitmap, 4)
    return abs(height) // 2, width


def _compression(bitmap: bytes) -> int:
    if struct.unpack_from("<L", bitmap)[0] == _CORE_HEADER:
        return _PLAIN
    number: int = struct.unpack_from("<L", bitmap, 16)[0]
    return number


def _bitmap_depth(bitmap: bytes) -> int:
    """Bits per pixel in a bitmap's own header, because the icon's directory may be wrong."""
    core = struct.unpack_from("<L", bitmap)[0] == _CORE_HEADER
    (depth,) = struct.unpack_from("<H", bitmap, 10 if core else 14)
    return int(depth)


def _by_mask(pixels: Pixels, bitmap: bytes) -> Pixels:
    """Set the alpha of pixels whose alpha is 0 everywhere. As on Windows, the mask after them (one bit per pixel) says
    which are transparent; without a mask, all are opaque."""
    height, width = pixels.shape[:2]
    upwards = struct.unpack_from("<l", bitmap, 8)[0] > 0
    row = (width + 31) // 32 * 4
    header, compression = struct.unpack_from("<L12xL", bitmap)
    fields = 12 if compression == _BIT_FIELDS and header == _INFO_HEADER else 0  # which bits are which colour
    start = header + fields + 4 * height * width
    mask = np.zeros((height, width), np.uint8)
    if len(bitmap) >= start + height * row:
        packed = np.frombuffer(bitmap, np.uint8, height * row, start).reshape(height, row)
        mask = np.unpackbits(packed, axis=1)[:: -1 if upwards else 1, :width]
    return np.dstack([pixels[..., :3], np.where(mask, 0, 255).astype(np.uint8)])


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write an icon with one picture."""
    inside = io.BytesIO()
    png.write(replace(picture, frame_count=1, metadata=Metadata()), inside, options)
    height, width = picture.size
    depth = 8 * picture.channels
    stream.write(struct.pack("<HHH", 0, 1, 1))
    stream.write(struct.pack("<BBBBHHLL", width % 256, height % 256, 0, 0, 1, depth, inside.tell(), 22))
    stream.write(inside.getbuffer())
