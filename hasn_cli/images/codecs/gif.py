"""Reads GIF as the GIF89a specification says. For questions that it leaves open, this follows browsers.

Blocks are parsed here, so that frames can be read one by one; giflib (through imagecodecs) decodes the LZW data in
them. `gif_writing` writes GIFs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import imagecodecs
import numpy as np

from hasn_cli.images.codecs.gif_palette import table_length
from hasn_cli.images.codecs.gif_writing import write
from hasn_cli.images.limits import MAX_FRAMES, MAX_PARTS, Count, Limit, Room
from hasn_cli.images.metadata import decoded_comment
from hasn_cli.images.picture import Frame, Metadata, Picture, Pixels, ReplayableFrames, Text
from hasn_cli.images.source import Source

__all__ = ["read", "write"]

_CLEAR, _RESTORE = 2, 3  # what happens to a frame's rectangle before the next frame
_COLORS = 256
_BAND = 256  # rows that are drawn at a time: looking up colours takes many times the memory of the indices
_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_CONTROL, _COMMENT, _APPLICATION = 0xF9, 0xFE, 0xFF
_USED = (_CONTROL, _COMMENT, _APPLICATION)
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
    """The parts of a GIF file."""

    width: int
    height: int
    frames: list[_FrameData] = field(default_factory=list)
    repeats: int | None = None
    comments: list[bytes] = field(default_factory=list)
    broken: str | None = None
    icc: bytes | None = None

    @property
    def channels(self) -> int:
        """Channels of the frames: 1 (gray), 3 (RGB), or 4 (RGBA) if anything may be transparent."""
        first = self.frames[0]
        covers = first.place[:4] == (0, 0, self.width, self.height)
        if len(self.frames) > 1 or self.broken or first.transparent is not None or not covers:
            return 4
        gray = first.palette[0::3] == first.palette[1::3] == first.palette[2::3]
        return 1 if gray and self.icc is None else 3  # a GIF's profile is an RGB profile


def _parse(data: bytes) -> _File:
    file = _File(0, 0)
    try:
        _walk(data, file)
    except (ValueError, IndexError, struct.error) as error:
        # the error is raised when the missing frame is reached; the frames before it are complete
        reason = str(error) if isinstance(error, ValueError) else "the file is truncated"
        file.broken = f"frame {len(file.frames) + 1} is damaged ({reason})"
        if not file.frames:
            raise ValueError(reason) from None
    if not file.frames:
        raise ValueError("it contains no picture")
    left, top, across, down, _ = file.frames[0].place  # some files declare a canvas of size 0
    file.width, file.height = max(file.width, left + across), max(file.height, top + down)
    return file


def _walk(data: bytes, file: _File) -> None:
    """Add the blocks of a GIF to `file`. Raises IndexError or struct.error at the end of a truncated file."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + table_length(flags)
    file.width, file.height, shared = width, height, data[13:at]
    control = _NO_CONTROL
    frames, extensions, room = Count("frames", MAX_FRAMES), Count("extensions"), Room()
    # sub-blocks are 255 bytes long, except the last one of each frame
    pieces = Count("sub-blocks", MAX_PARTS + len(data) // 64)
    # some old files with a single picture have no trailer; then nothing else can be missing
    while not (at == len(data) and len(file.frames) == 1) and (kind := data[at]) != _TRAILER:
        if kind == _EXTENSION:
            end = _end_of_sub_blocks(data, at + 2, pieces)
            extensions.add()
            if data[at + 1] in _USED:
                room.take(end - at)
                body = _sub_blocks_from(data, at + 2, end)
                control = _control(body) if data[at + 1] == _CONTROL else control
                _note_extension(file, data[at + 1], body)
        elif kind == _IMAGE:
            place = struct.unpack_from("<HHHHB", data, at + 1)
            start = at + 10 + table_length(place[4])
            end = _end_of_sub_blocks(data, start + 1, pieces)
            frames.add()
            palette = data[at + 10 : start] or shared
            file.frames.append(_FrameData(place, palette, data[start:end], *control))
            control = _NO_CONTROL
        else:
            raise ValueError("it contains an invalid block")
        at = end


def _end_of_sub_blocks(data: bytes, at: int, pieces: Count) -> int:
    """The end of the sub-blocks that begin at an offset."""
    while length := data[at]:
        at += 1 + length
        pieces.add()
    return at + 1


def _sub_blocks_from(data: bytes, at: int, end: int) -> bytes:
    """The joined contents of the sub-blocks between two offsets."""
    pieces = []
    while at < end - 1:
        pieces.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return b"".join(pieces)


def _control(body: bytes) -> tuple[int, int, int | None]:
    """Disposal, duration in hundredths of a second, and transparent index of the next frame."""
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
    """Read a GIF. The frames of an animation are composed on the canvas, as RGBA."""
    width, height = struct.unpack_from("<HH", source.head, 6)
    limit.check(source.name, height or 1, width or 1)
    file = _parse(source.read())
    limit.check(source.name, file.height, file.width)
    count = len(file.frames)
    texts = [Text("Comment", decoded_comment(comment)) for comment in file.comments]
    return Picture(
        name=source.name,
        format="gif",
        size=(file.height, file.width),
        channels=file.channels,
        dtype=np.dtype(np.uint8),
        frames=ReplayableFrames(lambda: _compose(_parse(source.read()))),
        frame_count=count,
        one_palette=all(frame.palette == file.frames[0].palette for frame in file.frames),
        broken=file.broken,
        # a GIF states how often to repeat (0 means forever); without that it is played once
        loop=(1 if file.repeats is None else file.repeats and file.repeats + 1) if count > 1 else None,
        metadata=Metadata(icc=file.icc, text=tuple(texts)),
    )


def _compose(file: _File) -> Iterator[Frame]:
    """Compose each frame as it is shown, on a canvas that is transparent at first."""
    canvas = np.zeros((file.height, file.width, 4), np.uint8)
    for frame in file.frames:
        if frame.place[2] > file.width or frame.place[3] > file.height:
            raise ValueError("a frame reaches beyond the picture")
        indices = _decode(frame)
        palette = np.frombuffer(frame.palette.ljust(3 * _COLORS, b"\0"), np.uint8).reshape(-1, 3)
        area = canvas[frame.area]
        if area.shape[:2] != indices.shape:
            raise ValueError("a frame reaches beyond the picture")
        # before the first frame there is nothing to restore; readers differ if it has no transparent colour
        restore = frame.disposal == _RESTORE and (frame is not file.frames[0] or frame.transparent is not None)
        before = area.copy() if restore else None
        for start in range(0, len(area), _BAND):
            _draw(area[start : start + _BAND], indices[start : start + _BAND], palette, frame.transparent)
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


def _draw(area: Pixels, indices: Pixels, palette: Pixels, transparent: int | None) -> None:
    drawn = indices != (-1 if transparent is None else transparent)
    area[drawn, :3] = palette[indices[drawn]]
    area[drawn, 3] = 255


def _decode(frame: _FrameData) -> Pixels:
    """Decode to H×W palette indices. giflib gets a file with only this frame."""
    if not frame.palette:
        raise ValueError("a frame has no colours")
    _, _, width, height, flags = frame.place
    screen = struct.pack("<HHBBB", width, height, 0xF7, 0, 0) + bytes(3 * _COLORS)
    place = struct.pack("<BHHHHB", _IMAGE, 0, 0, width, height, flags & 0x40)
    alone = b"GIF89a" + screen + place + frame.data + bytes([_TRAILER])
    indices: Pixels = imagecodecs.gif_decode(alone, asrgb=False)
    return indices.reshape(height, width)
