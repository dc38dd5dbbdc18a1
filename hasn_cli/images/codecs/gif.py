"""GIF: read through Pillow after its structure has been verified; written frame by frame (GIF89a specification)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import GifImagePlugin, Image

from hasn_cli.errors import ImageError
from hasn_cli.images.codecs.animation import changed_area, to_image
from hasn_cli.images.codecs.pillow import shown_mode
from hasn_cli.images.picture import Again, EncodeOptions, Frame, Metadata, Picture, Pixels, Text
from hasn_cli.images.source import Limit, Source

_KEEP, _CLEAR = 1, 2  # what happens to a frame's rectangle before the next frame
_COLORS = 256


def count_frames(data: bytes) -> int:
    """Walk through all blocks.

    Raises:
        ValueError: the file ends before its trailer, or something that is no block is found.
    """
    try:
        return _count_frames(data)
    except IndexError:
        raise ValueError("the file is truncated") from None


def _count_frames(data: bytes) -> int:
    at = 13 + _table_length(data[10])
    frames = 0
    # a lone picture may lack the trailer, as some old ones do: nothing else can be missing then
    while not (at == len(data) and frames == 1) and (kind := data[at]) != 0x3B:
        if kind == 0x21:
            at += 2
        elif kind == 0x2C:
            at += 11 + _table_length(data[at + 9])
            frames += 1
        else:
            raise ValueError("something that is no block")
        while length := data[at]:
            at += 1 + length
        at += 1
    return frames


def _table_length(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def read(source: Source, limit: Limit) -> Picture:
    """Read a GIF; frames of an animation come composed, as RGBA."""
    width, height = struct.unpack_from("<HH", source.head, 6)
    limit.check(source.name, height, width)
    count = count_frames(source.read())
    with GifImagePlugin.GifImageFile(source.open()) as image:
        info = dict(image.info)
        mode = "RGBA" if count > 1 else shown_mode(image)

    def frames() -> Iterator[Frame]:
        with GifImagePlugin.GifImageFile(source.open()) as opened:
            for index in range(count):
                opened.seek(index)
                if opened.size != (width, height):
                    raise ValueError("a frame reaches beyond the picture")
                pixels = np.asarray(opened.convert(mode))
                yield Frame(pixels.reshape(height, width, -1), opened.info.get("duration", 0) if count > 1 else None)

    comment = info.get("comment", b"")
    repeats = info.get("loop")
    return Picture(
        name=source.name,
        format="gif",
        size=(height, width),
        channels=Image.getmodebands(mode),
        dtype=np.dtype(np.uint8),
        frames=Again(frames),
        frame_count=count,
        # a GIF says how often to repeat, or nothing for once through
        loop=(1 if repeats is None else repeats and repeats + 1) if count > 1 else None,
        metadata=Metadata(text=(Text("Comment", comment.decode("utf-8", "replace")),) if comment else ()),
    )


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a GIF: each frame has its own 256 colours (dithered if it needs more) and only the rectangle that changes.

    Transparency is cut at one half, for GIF knows no other.
    """
    height, width = picture.size
    stream.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0))
    if picture.frame_count > 1 and picture.loop != 1:
        repeats = picture.loop - 1 if picture.loop else 0
        stream.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", min(repeats, 0xFFFF), 0))
    for text in picture.metadata.text:
        if text.key == "Comment":
            stream.write(b"\x21\xfe" + _sub_blocks(text.value.encode()))
    canvas: Pixels | None = None
    for frame, following in _pairs(picture):
        if frame.pixels.shape[:2] != picture.size:
            raise ImageError(f"{picture.name}: its frames differ in size", "write it as TIFF")
        clear = following is not None and bool((frame.pixels[..., 3] & ~following.pixels[..., 3]).any())
        top, left, bottom, right = (0, 0, height, width) if clear else changed_area(canvas, frame.pixels)
        _write_frame(stream, frame, (top, left, bottom, right), _CLEAR if clear else _KEEP)
        canvas = np.zeros_like(frame.pixels) if clear else frame.pixels
    stream.write(b"\x3b")


def _pairs(picture: Picture) -> Iterator[tuple[Frame, Frame | None]]:
    """Each frame as RGBA with no half transparency, and the one after it."""
    frame: Frame | None = None
    for shown in picture.frames:
        pixels = np.array(to_image(shown.pixels).convert("RGBA"))
        pixels[..., 3] = np.where(pixels[..., 3] >= 128, 255, 0)
        pixels[pixels[..., 3] == 0] = 0
        following = Frame(pixels, shown.duration)
        if frame is not None:
            yield frame, following
        frame = following
    if frame is not None:
        yield frame, None


def _write_frame(stream: BinaryIO, frame: Frame, area: tuple[int, int, int, int], disposal: int) -> None:
    top, left, bottom, right = area
    indices, palette, transparent = _quantize(frame.pixels[top:bottom, left:right])
    hundredths = min(round((frame.duration or 0) / 10), 0xFFFF)
    flags = disposal << 2 | (transparent is not None)
    stream.write(b"\x21\xf9\x04" + struct.pack("<BHBB", flags, hundredths, transparent or 0, 0))
    stream.write(b"\x2c" + struct.pack("<HHHHB", left, top, right - left, bottom - top, 0x87) + palette)
    stream.write(_compressed(indices))


def _quantize(pixels: Pixels) -> tuple[Pixels, bytes, int | None]:
    """H×W×4 to H×W indices, 256 RGB entries, and the index that is transparent."""
    visible = pixels[..., 3] > 0
    room = _COLORS if visible.all() else _COLORS - 1
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    if image.getcolors(room) is not None:
        reduced = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=room)
    else:
        palette = image.quantize(room, Image.Quantize.MEDIANCUT)
        reduced = image.quantize(room, palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    indices = np.array(reduced)
    if room < _COLORS:
        indices[~visible] = room
    entries = bytes(reduced.getpalette("RGB") or [])[: 3 * room]
    return indices, entries.ljust(3 * _COLORS, b"\0"), room if room < _COLORS else None


def _compressed(indices: Pixels) -> bytes:
    """The LZW data of one image, cut out of a GIF that holds nothing else."""
    alone = bytes(imagecodecs.gif_encode(indices))
    start = 13 + _table_length(alone[10])
    while alone[start] == 0x21:
        start += 2
        while length := alone[start]:
            start += 1 + length
        start += 1
    start += 10 + _table_length(alone[start + 9])
    return alone[start:-1]


def _sub_blocks(data: bytes) -> bytes:
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"
