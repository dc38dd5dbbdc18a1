"""GIF, after the GIF89a specification, and after browsers where it leaves something open.

Blocks are taken apart and put together here, so that frames are read and written one by one; the LZW coding in them is
giflib's work (through imagecodecs).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import imagecodecs
import numpy as np
from PIL import Image

from hasn_cli.errors import ImageError
from hasn_cli.images.codecs.animation import Ticks, changed_area, to_image
from hasn_cli.images.metadata import decoded_comment
from hasn_cli.images.picture import Again, EncodeOptions, Frame, Metadata, Picture, Pixels, Text
from hasn_cli.images.source import Limit, Source

_KEEP, _CLEAR, _RESTORE = 1, 2, 3  # what happens to a frame's rectangle before the next frame
_COLORS = 256
_SHORTEST = 2  # hundredths of a second: browsers show what is shorter for a tenth
_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_CONTROL, _COMMENT, _APPLICATION = 0xF9, 0xFE, 0xFF
_NO_CONTROL: tuple[int, int, int | None] = (0, 0, None)
_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")


@dataclass(frozen=True)
class _FrameData:
    """A frame's place on the canvas, its colours, its compressed data in sub-blocks, and how it is shown."""

    place: tuple[int, int, int, int, int]  # left, top, width, height, flags
    palette: bytes
    data: bytes
    disposal: int
    hundredths: int
    transparent: int | None

    @property
    def area(self) -> tuple[slice, slice]:
        left, top, width, height, _ = self.place
        return np.s_[top : top + height, left : left + width]


@dataclass
class _File:
    """A GIF taken apart."""

    width: int
    height: int
    frames: list[_FrameData] = field(default_factory=list)
    repeats: int | None = None
    comments: list[bytes] = field(default_factory=list)
    broken: str | None = None
    icc: bytes | None = None

    @property
    def channels(self) -> int:
        """What the frames come as: gray, RGB, or RGBA where anything may be transparent."""
        first = self.frames[0]
        covers = first.place[:4] == (0, 0, self.width, self.height)
        if len(self.frames) > 1 or self.broken or first.transparent is not None or not covers:
            return 4
        gray = first.palette[0::3] == first.palette[1::3] == first.palette[2::3]
        return 1 if gray and self.icc is None else 3  # the profile is one of RGB


def _take_apart(data: bytes) -> _File:
    file = _File(0, 0)
    try:
        _walk(data, file)
    except (ValueError, IndexError, struct.error) as error:
        # what is missing of an animation is said when it is asked for; its first frame is whole
        reason = str(error) if isinstance(error, ValueError) else "the file is truncated"
        file.broken = f"frame {len(file.frames) + 1} is damaged ({reason})"
        if not file.frames:
            raise ValueError(reason) from None
    if not file.frames:
        raise ValueError("it holds no picture")
    left, top, across, down, _ = file.frames[0].place  # some declare a canvas of no size
    file.width, file.height = max(file.width, left + across), max(file.height, top + down)
    return file


def _walk(data: bytes, file: _File) -> None:
    """Put the blocks of a GIF into `file`, as far as they go; raises IndexError or struct.error where it breaks off."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _table_length(flags)
    file.width, file.height, shared = width, height, data[13:at]
    control = _NO_CONTROL
    # a lone picture may lack the trailer, as some old ones do: nothing else can be missing then
    while not (at == len(data) and len(file.frames) == 1) and (kind := data[at]) != _TRAILER:
        if kind == _EXTENSION:
            body, end = _sub_blocks_from(data, at + 2)
            control = _control(body) if data[at + 1] == _CONTROL else control
            _note_extension(file, data[at + 1], body)
        elif kind == _IMAGE:
            place = struct.unpack_from("<HHHHB", data, at + 1)
            start = at + 10 + _table_length(place[4])
            _, end = _sub_blocks_from(data, start + 1)
            palette = data[at + 10 : start] or shared
            file.frames.append(_FrameData(place, palette, data[start:end], *control))
            control = _NO_CONTROL
        else:
            raise ValueError("something that is no block")
        at = end


def _table_length(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _sub_blocks_from(data: bytes, at: int) -> tuple[bytes, int]:
    """The bytes of the sub-blocks that begin at an offset, and where they end."""
    pieces = []
    while length := data[at]:
        pieces.append(data[at + 1 : at + 1 + length])
        at += 1 + length
    return b"".join(pieces), at + 1


def _control(body: bytes) -> tuple[int, int, int | None]:
    """Disposal, duration in hundredths of a second, and transparent index of the frame that follows."""
    flags, hundredths, index = struct.unpack_from("<BHB", body)
    return flags >> 2 & 7, hundredths, index if flags & 1 else None


def _note_extension(file: _File, kind: int, body: bytes) -> None:
    if kind == _COMMENT:
        file.comments.append(body)
    elif kind == _APPLICATION and body[:11] == b"ICCRGBG1012":
        file.icc = body[11:]
    elif kind == _APPLICATION and body[:11] in _LOOPS and body[11:12] == b"\1":
        (file.repeats,) = struct.unpack_from("<H", body, 12)


def read(source: Source, limit: Limit) -> Picture:
    """Read a GIF; frames of an animation come composed, as RGBA."""
    width, height = struct.unpack_from("<HH", source.head, 6)
    limit.check(source.name, height or 1, width or 1)
    file = _take_apart(source.read())
    limit.check(source.name, file.height, file.width)
    count = len(file.frames)
    texts = [Text("Comment", decoded_comment(comment)) for comment in file.comments]
    return Picture(
        name=source.name,
        format="gif",
        size=(file.height, file.width),
        channels=file.channels,
        dtype=np.dtype(np.uint8),
        frames=Again(lambda: _compose(_take_apart(source.read()))),
        frame_count=count,
        broken=file.broken,
        # a GIF says how often to repeat, or nothing for once through
        loop=(1 if file.repeats is None else file.repeats and file.repeats + 1) if count > 1 else None,
        metadata=Metadata(icc=file.icc, text=tuple(texts)),
    )


def _compose(file: _File) -> Iterator[Frame]:
    """Each frame as it is shown, on a canvas that is transparent at first."""
    canvas = np.zeros((file.height, file.width, 4), np.uint8)
    for frame in file.frames:
        if frame.place[2] > file.width or frame.place[3] > file.height:
            raise ValueError("a frame reaches beyond the picture")
        indices = _decode(frame)
        palette = np.frombuffer(frame.palette.ljust(3 * _COLORS, b"\0"), np.uint8).reshape(-1, 3)
        area = canvas[frame.area]
        if area.shape[:2] != indices.shape:
            raise ValueError("a frame reaches beyond the picture")
        # there is nothing before the first frame, and readers agree to keep it then
        before = area.copy() if frame.disposal == _RESTORE and frame is not file.frames[0] else None
        drawn = indices != (-1 if frame.transparent is None else frame.transparent)
        area[drawn, :3] = palette[indices[drawn]]
        area[drawn, 3] = 255
        duration = 10.0 * frame.hundredths if len(file.frames) > 1 else None
        yield Frame(
            np.ascontiguousarray(canvas[..., : file.channels]) if file.channels < 4 else canvas.copy(), duration
        )
        if before is not None:
            area[...] = before
        elif frame.disposal == _CLEAR:
            area[...] = 0
    if file.broken:
        raise ValueError(file.broken)


def _decode(frame: _FrameData) -> Pixels:
    """H×W indices. giflib gets a file that holds nothing but this frame."""
    if not frame.palette:
        raise ValueError("a frame has no colours")
    _, _, width, height, flags = frame.place
    screen = struct.pack("<HHBBB", width, height, 0xF7, 0, 0) + bytes(3 * _COLORS)
    place = struct.pack("<BHHHHB", _IMAGE, 0, 0, width, height, flags & 0x40)
    alone = b"GIF89a" + screen + place + frame.data + bytes([_TRAILER])
    indices: Pixels = imagecodecs.gif_decode(alone, asrgb=False)
    return indices.reshape(height, width)


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
    ticks = Ticks(10, least=_SHORTEST)
    for frame, following in _pairs(picture):
        if frame.pixels.shape[:2] != picture.size:
            raise ImageError(f"{picture.name}: its frames differ in size", "write it as TIFF")
        clear = following is not None and bool((frame.pixels[..., 3] & ~following.pixels[..., 3]).any())
        top, left, bottom, right = (0, 0, height, width) if clear else changed_area(canvas, frame.pixels)
        _write_frame(stream, frame, (top, left, bottom, right), clear, min(ticks(frame.duration), 0xFFFF))
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


def _write_frame(stream: BinaryIO, frame: Frame, area: tuple[int, int, int, int], clear: bool, hundredths: int) -> None:
    top, left, bottom, right = area
    # readers differ in what a frame without a transparent colour is cleared to, so one to be cleared has one
    indices, palette, transparent = _quantize(frame.pixels[top:bottom, left:right], transparent=clear)
    flags = (_CLEAR if clear else _KEEP) << 2 | (transparent is not None)
    stream.write(b"\x21\xf9\x04" + struct.pack("<BHBB", flags, hundredths, transparent or 0, 0))
    stream.write(b"\x2c" + struct.pack("<HHHHB", left, top, right - left, bottom - top, 0x87) + palette)
    stream.write(_compressed(indices))


def _quantize(pixels: Pixels, transparent: bool) -> tuple[Pixels, bytes, int | None]:
    """H×W×4 to H×W indices, 256 RGB entries, and the index that is transparent, if need be or so asked."""
    visible = pixels[..., 3] > 0
    room = _COLORS if visible.all() and not transparent else _COLORS - 1
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
