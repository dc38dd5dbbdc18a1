"""ICO: the largest picture is read; written is one picture, as PNG inside."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
from PIL import IcoImagePlugin

from hasn_cli.images.codecs import png
from hasn_cli.images.picture import Again, EncodeOptions, Frame, Metadata, Picture
from hasn_cli.images.source import Limit, Source


@dataclass(frozen=True, order=True)
class _Entry:
    pixels: int
    depth: int
    width: int
    height: int
    start: int
    length: int


def read(source: Source, limit: Limit) -> Picture:
    """Read the largest picture of an icon, the deepest of them."""
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
    alone = data[:4] + struct.pack(
        "<HBBBBHHLL", 1, best.width % 256, best.height % 256, 0, 0, 1, best.depth, len(inside), 22
    )

    def frames() -> Iterator[Frame]:
        with IcoImagePlugin.IcoImageFile(io.BytesIO(alone + inside)) as image:
            yield Frame(np.asarray(image.convert("RGBA")))

    size = (best.height, best.width)
    limit.check(source.name, *size)
    return Picture(source.name, "ico", size, 4, np.dtype(np.uint8), Again(frames))


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write an icon of one picture."""
    inside = io.BytesIO()
    png.write(replace(picture, frame_count=1, metadata=Metadata()), inside, options)
    height, width = picture.size
    depth = 8 * picture.channels
    stream.write(struct.pack("<HHH", 0, 1, 1))
    stream.write(struct.pack("<BBBBHHLL", width % 256, height % 256, 0, 0, 1, depth, inside.tell(), 22))
    stream.write(inside.getbuffer())
