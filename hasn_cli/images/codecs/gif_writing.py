"""Writes GIF. Only pixels that change are drawn, and all frames share one palette if possible.

All frames are collected before the first one is written, because the palette comes first in the file and depends on all
of them. Meanwhile they are kept compressed: in memory while they are small, then in a temporary file.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hasn_cli.errors import ImageError
from hasn_cli.images.codecs.animation import Ticks, changed_area, to_image
from hasn_cli.images.codecs.gif_palette import Colors, few_colors, frame_colors, nearest, table_length
from hasn_cli.images.picture import EncodeOptions, Picture, Pixels

_KEEP, _CLEAR = 1, 2  # what happens to a frame's rectangle before the next frame
_SHORTEST = 2  # hundredths of a second: browsers show shorter frames for a tenth of a second
_LONGEST = 0xFFFF
_IN_MEMORY = 32 << 20  # bytes of compressed frames
_TOLERANCE = 2  # levels: if the palette lacks colours, pixels that change by at most this much are not drawn again
_COLORS = 256
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Step:
    """The change from one frame to the next: the pixels of a rectangle, H×W×4 with alpha 0 or 255.

    `clear`: the rectangle is cleared before the next frame, because a part of it becomes transparent again.
    """

    area: tuple[slice, slice]
    clear: bool
    hundredths: int
    pixels: Pixels


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a GIF with at most 256 colours per frame. Frames with more colours are dithered.

    Alpha below one half becomes transparent, the rest opaque: GIF has no partial transparency.
    """
    # a long animation must not be kept in memory as a whole
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        colors = Colors()
        waiting = [_store(step, spool) for step in _steps(picture, colors)]
        shared = colors.palette(shared=picture.one_palette or picture.frame_count == 1)
        transparent = None if shared is not None and len(shared) == _COLORS else _COLORS - 1
        _write_header(picture, stream, shared)
        canvas = _Canvas(picture.size, shared, colors.exact, transparent)
        for stored in waiting:
            canvas.draw(_load(stored, spool), stream)
        stream.write(b"\x3b")


def _steps(picture: Picture, colors: Colors) -> Iterator[_Step]:
    """The step for each frame. Adds the colours of each to `colors`."""
    before: Pixels | None = None  # the canvas before the frame
    ticks = Ticks(10, least=_SHORTEST)
    frames = ((_cut(picture, frame.pixels), frame.duration) for frame in picture.frames)
    current: tuple[Pixels, float | None] | None = next(frames)
    while current is not None:
        following = next(frames, None)
        now, duration = current
        top, left, bottom, right = changed_area(before, now)
        gone = now[..., 3] & ~following[0][..., 3] if following is not None else None
        clear = gone is not None and bool(gone.any())
        if gone is not None and clear:
            box = changed_area(np.zeros((*gone.shape, 1), np.uint8), gone[..., None])
            top, left = min(top, box[0]), min(left, box[1])
            bottom, right = max(bottom, box[2]), max(right, box[3])
            colors.reappears = True
        area = np.s_[top:bottom, left:right]
        colors.note(now[area], None if before is None else before[area])
        yield _Step(area, clear, min(ticks(duration), _LONGEST), now[area])
        before = now
        if clear:
            before = now.copy()
            before[area] = 0
        current = following


def _cut(picture: Picture, pixels: Pixels) -> Pixels:
    """A frame as RGBA without partial transparency. Transparent pixels are 0 in every channel."""
    if pixels.shape[:2] != picture.size:
        raise ImageError(f"{picture.name}: its frames differ in size", "use -f tiff")
    shown = np.array(to_image(pixels).convert("RGBA"))
    shown[..., 3] = np.where(shown[..., 3] >= 128, 255, 0)
    shown[shown[..., 3] == 0] = 0
    return shown


@dataclass(frozen=True)
class _Stored:
    """A step whose pixels are in the spool."""

    step: _Step
    shape: tuple[int, ...]
    start: int
    length: int


def _store(step: _Step, spool: tempfile.SpooledTemporaryFile[bytes]) -> _Stored:
    start = spool.tell()
    length = spool.write(zlib.compress(step.pixels.tobytes(), 1))
    empty = np.empty(0, np.uint8)
    return _Stored(_Step(step.area, step.clear, step.hundredths, empty), step.pixels.shape, start, length)


def _load(stored: _Stored, spool: tempfile.SpooledTemporaryFile[bytes]) -> _Step:
    spool.seek(stored.start)
    pixels = np.frombuffer(zlib.decompress(spool.read(stored.length)), np.uint8).reshape(stored.shape)
    return _Step(stored.step.area, stored.step.clear, stored.step.hundredths, pixels)


def _write_header(picture: Picture, stream: BinaryIO, palette: Pixels | None) -> None:
    height, width = picture.size
    stream.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70 if palette is None else 0xF7, 0, 0))
    if palette is not None:
        stream.write(_table(palette))
    if picture.frame_count > 1 and picture.loop != 1:
        repeats = picture.loop - 1 if picture.loop else 0
        stream.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", min(repeats, 0xFFFF), 0))
    for text in picture.metadata.text:
        if text.key == "Comment":
            stream.write(b"\x21\xfe" + _sub_blocks(text.value.encode()))


class _Canvas:
    """The contents of the canvas while frames are written.

    Args:
        size: height and width.
        shared: N×3 colours that all frames share; None if each frame has its own.
        exact: the shared colours include every colour that occurs.
        transparent: the index for pixels that are not drawn; None if 256 colours leave no room for one.
    """

    def __init__(self, size: tuple[int, int], shared: Pixels | None, exact: bool, transparent: int | None) -> None:
        self._shared, self._exact, self._transparent = shared, exact, transparent
        self._wanted = np.zeros((*size, 4), np.uint8)  # the original colours of the pixels on the canvas
        self._index = np.zeros(size, np.uint8)  # their indices in the shared palette
        self._drawn = np.zeros(size, bool)  # which pixels have been drawn

    def draw(self, step: _Step, stream: BinaryIO) -> None:
        """Write one frame."""
        pixels, fresh = step.pixels, self._fresh(step)
        top, left = step.area[0].start, step.area[1].start
        if not step.clear and self._transparent is not None:  # a smaller rectangle may be enough
            above, before, below, behind = changed_area(np.zeros((*fresh.shape, 1), bool), fresh[..., None])
            pixels, fresh = pixels[above:below, before:behind], fresh[above:below, before:behind]
            top, left = top + above, left + before
        area = np.s_[top : top + fresh.shape[0], left : left + fresh.shape[1]]
        table, transparent = b"", self._transparent
        if self._shared is not None:
            indices = self._shared_indices(area, pixels, fresh)
        else:
            palette, transparent = frame_colors(pixels, fresh)
            indices, table = nearest(_filled(pixels, palette), palette), _table(palette)
        if transparent is not None:
            indices = np.where(fresh, indices, np.uint8(transparent))
        self._wanted[area][fresh] = pixels[fresh]
        self._drawn[area] |= fresh
        _write_image(stream, step, (left, top), indices, transparent, table)
        if step.clear:
            self._drawn[area] = False

    def _fresh(self, step: _Step) -> Mask:
        """H×W: which pixels of a step's rectangle must be drawn."""
        visible: Mask = step.pixels[..., 3] > 0
        if self._transparent is None:
            return visible  # all of them, because no index is free to skip a pixel
        change = self._change(step.area, step.pixels)
        fresh: Mask = visible & ~(self._drawn[step.area] & (change == 0))
        if self._exact or (self._shared is None and few_colors(step.pixels, fresh)):
            return fresh
        return fresh & ~(self._drawn[step.area] & (change <= _TOLERANCE))

    def _change(self, area: tuple[slice, slice], pixels: Pixels) -> Pixels:
        """H×W: by how many levels pixels differ from the original colours of those on the canvas."""
        change: Pixels = np.abs(pixels.astype(np.int16) - self._wanted[area]).max(axis=2)
        return change

    def _shared_indices(self, area: tuple[slice, slice], pixels: Pixels, fresh: Mask) -> Pixels:
        """Indices into the shared palette. A pixel that is drawn again in the same colour gets the same index."""
        assert self._shared is not None
        indices = nearest(_filled(pixels, self._shared), self._shared)
        same = self._change(area, pixels) <= (0 if self._exact else _TOLERANCE)
        indices = np.where(same & (pixels[..., 3] > 0), self._index[area], indices)
        self._index[area][fresh] = indices[fresh]
        return indices


def _filled(pixels: Pixels, palette: Pixels) -> Pixels:
    """H×W×3: transparent pixels get a colour of the palette, so that dithering spreads no error from them."""
    return np.where(pixels[..., 3:] > 0, pixels[..., :3], palette[0])


def _write_image(
    stream: BinaryIO, step: _Step, place: tuple[int, int], indices: Pixels, transparent: int | None, table: bytes
) -> None:
    flags = (_CLEAR if step.clear else _KEEP) << 2 | (transparent is not None)
    stream.write(b"\x21\xf9\x04" + struct.pack("<BHBB", flags, step.hundredths, transparent or 0, 0))
    height, width = indices.shape
    stream.write(b"\x2c" + struct.pack("<HHHHB", *place, width, height, 0x87 if table else 0) + table)
    stream.write(_compressed(indices))


def _table(palette: Pixels) -> bytes:
    return palette.tobytes().ljust(3 * _COLORS, b"\0")


def _compressed(indices: Pixels) -> bytes:
    """The LZW data of one image, taken from a GIF that Pillow writes.

    Pillow's encoder enlarges its buffer when needed; giflib, as called by imagecodecs, runs out of space on noise.
    """
    buffer = io.BytesIO()
    Image.fromarray(indices).save(buffer, "GIF", optimize=False, interlace=0)
    alone = buffer.getvalue()
    start = 13 + table_length(alone[10])
    while alone[start] == 0x21:
        start += 2
        while length := alone[start]:
            start += 1 + length
        start += 1
    start += 10 + table_length(alone[start + 9])
    return alone[start:-1]


def _sub_blocks(data: bytes) -> bytes:
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)]
    return b"".join(bytes([len(piece)]) + piece for piece in pieces) + b"\0"
