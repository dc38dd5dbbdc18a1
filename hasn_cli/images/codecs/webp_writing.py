"""Writes animated WebP (RFC 9649). libwebp (through Pillow) encodes the frames; this module writes the chunks.

libwebp's own animation encoder redraws everything every few frames, and always redraws the whole rectangle that
changes. With lossy compression, that makes still parts flicker. Here, frames contain only the pixels that change, and
each frame is written as soon as it is computed.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hasn_cli.errors import ImageError
from hasn_cli.images.codecs.animation import Ticks, changed_area, to_image
from hasn_cli.images.picture import EncodeOptions, Picture, Pixels

_ICC, _ALPHA, _EXIF, _XMP, _ANIMATION = 0x20, 0x10, 0x08, 0x04, 0x02  # flags of VP8X
_NO_BLEND = 2  # flag of a frame: its pixels replace those below, even if they are transparent
_LONGEST, _MOST_LOOPS = 0xFFFFFF, 0xFFFF
_METHOD = 4  # Pillow's default
_BLOCK = 16  # lossy WebP codes blocks of 16 × 16 pixels
Mask = NDArray[np.bool_]


@dataclass
class _Frame:
    """An encoded frame, its place, and its duration in milliseconds."""

    place: tuple[int, int, int, int]  # left, top, width, height
    duration: int
    flags: int
    data: bytes

    @property
    def body(self) -> bytes:
        left, top, width, height = self.place
        numbers = (left // 2, top // 2, width - 1, height - 1, min(self.duration, _LONGEST))
        return b"".join(number.to_bytes(3, "little") for number in numbers) + bytes([self.flags]) + self.data


def write_animation(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write an animated WebP. A frame that equals the one before only adds to its duration."""
    metadata, start = picture.metadata, stream.tell()
    height, width = picture.size
    flags = _ANIMATION | _ICC * bool(metadata.icc) | _EXIF * bool(metadata.exif) | _XMP * bool(metadata.xmp)
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    stream.write(b"RIFF\0\0\0\0WEBP")
    _write_chunk(stream, b"VP8X", struct.pack("<L", flags) + size)
    if metadata.icc:
        _write_chunk(stream, b"ICCP", metadata.icc)
    _write_chunk(stream, b"ANIM", struct.pack("<LH", 0, min(picture.loop or 0, _MOST_LOOPS)))
    for frame in _frames(picture, options):
        flags |= _ALPHA * (b"ALPH" in frame.data[:4] or _lossless_alpha(frame.data))
        _write_chunk(stream, b"ANMF", frame.body)
    for kind, body in ((b"EXIF", metadata.exif), (b"XMP ", metadata.xmp)):
        if body:
            _write_chunk(stream, kind, body)
    end = stream.tell()
    if end - start - 8 >= 2**32:
        raise ValueError("it would be larger than 4 GiB")
    stream.seek(start + 4)
    stream.write(struct.pack("<L", end - start - 8))
    stream.seek(start + 20)
    stream.write(bytes([flags]))
    stream.seek(end)


def _lossless_alpha(data: bytes) -> bool:
    """Whether a VP8L chunk says that its alpha is used: the bit after the two sides of 14 bits each."""
    return data[:4] == b"VP8L" and bool(data[12] & 0x10)


def _write_chunk(stream: BinaryIO, kind: bytes, body: bytes) -> None:
    stream.write(kind + struct.pack("<L", len(body)) + body + bytes(len(body) % 2))


def _frames(picture: Picture, options: EncodeOptions) -> Iterator[_Frame]:
    canvas = _Canvas(options)
    waiting: _Frame | None = None
    ticks = Ticks(1)
    for frame in picture.frames:
        if frame.pixels.shape[:2] != picture.size:
            raise ImageError(f"{picture.name}: its frames differ in size", "use -f tiff")
        duration = ticks(frame.duration)
        drawn = canvas.draw(frame.pixels)
        if drawn is None and waiting is not None:
            waiting.duration += duration
        elif drawn is not None:
            if waiting is not None:
                yield waiting
            waiting = drawn
            waiting.duration = duration
    if waiting is not None:
        yield waiting


class _Canvas:
    """The contents of the canvas while frames are encoded."""

    def __init__(self, options: EncodeOptions) -> None:
        self._quality, self._lossless = options.quality, bool(options.lossless)
        self._wanted: Pixels | None = None  # the original frame
        self._shown: Pixels | None = None  # RGBA as decoders show it; only needed for lossy frames with transparency

    def draw(self, pixels: Pixels) -> _Frame | None:
        """Encode the difference between the last frame and H×W×C pixels; None if there is none."""
        if self._wanted is not None and np.array_equal(self._wanted, pixels):
            return None
        top, left, bottom, right = changed_area(self._wanted, pixels)
        top, left = top - top % 2, left - left % 2  # WebP requires even offsets
        area = np.s_[top:bottom, left:right]
        now = np.asarray(to_image(pixels[area]).convert("RGBA"))
        changed = np.ones(now.shape[:2], bool)
        if self._wanted is not None:
            changed = (self._wanted[area] != pixels[area]).any(axis=2)
        data, blended = self._encoded(now, changed, area)
        if not self._lossless and pixels.shape[2] in (2, 4):
            self._note(data, blended, area, pixels.shape[:2])
        self._wanted = pixels
        return _Frame((left, top, right - left, bottom - top), 0, 0 if blended else _NO_BLEND, data)

    def _encoded(self, now: Pixels, changed: Mask, area: tuple[slice, slice]) -> tuple[bytes, bool]:
        """The chunks for a rectangle, and whether it is blended over the canvas."""
        if changed.all() or (not self._lossless and not now[~changed][:, 3].any()):
            return self._compressed(now, self._lossless), False
        if (now[changed][:, 3] == 255).all():  # make unchanged pixels transparent, so that the canvas shows through
            masked = np.where(changed[..., None], now, np.uint8(0))
            if not self._lossless:  # neighbours share their chroma, so the pixels nearby keep their colour
                masked[..., :3] = np.where(_blocks(changed)[..., None], now[..., :3], np.uint8(128))
            return self._compressed(masked, self._lossless), True
        if not self._lossless:  # unchanged pixels must be written too, exactly as decoders show them
            assert self._shown is not None
            now = np.where(changed[..., None], now, self._shown[area])
        return self._compressed(now, lossless=True), False

    def _compressed(self, pixels: Pixels, lossless: bool) -> bytes:
        """The chunks ALPH and VP8, or VP8L, of H×W×4 pixels."""
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(
            buffer, "WEBP", quality=self._quality, lossless=lossless, exact=True, method=_METHOD
        )
        data, at, kept = buffer.getvalue(), 12, b""
        while at + 8 <= len(data):
            end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            end += end % 2
            if data[at : at + 4] in (b"ALPH", b"VP8 ", b"VP8L"):
                kept += data[at:end]
            at = end
        return kept

    def _note(self, data: bytes, blended: bool, area: tuple[slice, slice], size: tuple[int, int]) -> None:
        """Remember the canvas that a decoder shows after a frame."""
        if self._shown is None:
            self._shown = np.zeros((*size, 4), np.uint8)
        shown = self._shown[area]
        decoded = _decoded(data, shown.shape[:2])
        shown[...] = np.where(decoded[..., 3:] == 255, decoded, shown) if blended else decoded


def _blocks(changed: Mask) -> Mask:
    """H×W: the coded blocks that contain a changed pixel, or have one within two pixels."""
    height, width = changed.shape
    near = np.pad(changed, ((2, 2 - height % -_BLOCK), (2, 2 - width % -_BLOCK)))
    for axis in (0, 1):
        near = (
            near | np.roll(near, 1, axis) | np.roll(near, 2, axis) | np.roll(near, -1, axis) | np.roll(near, -2, axis)
        )
    near = near[2:-2, 2:-2]
    rows, columns = (side // _BLOCK for side in near.shape)
    some = near.reshape(rows, _BLOCK, columns, _BLOCK).any(axis=(1, 3))
    blocks: Mask = some.repeat(_BLOCK, 0).repeat(_BLOCK, 1)[:height, :width]
    return blocks


def _decoded(data: bytes, size: tuple[int, int]) -> Pixels:
    """Decode a frame's chunks to H×W×4 pixels, by putting them into a file of their own."""
    height, width = size
    flags = struct.pack("<L", _ALPHA)
    extended = flags + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<L", len(extended)) + extended + data
    with Image.open(io.BytesIO(b"RIFF" + struct.pack("<L", len(body)) + body), formats=["WEBP"]) as image:
        return np.asarray(image.convert("RGBA"))
