"""Reads and writes PNG and APNG with 1 to 16 bits (PNG specification, W3C, third edition).

This module parses and builds the chunks itself, to verify every checksum, to keep all metadata, and to read and write
frames one by one. libpng (through imagecodecs) encodes and decodes the pixels.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import BinaryIO

import imagecodecs
import numpy as np

from hasn_cli.errors import ImageError
from hasn_cli.images.codecs.animation import changed_area
from hasn_cli.images.codecs.png_chunks import SIGNATURE as SIGNATURE
from hasn_cli.images.codecs.png_chunks import chunk, chunks, unpack, verified
from hasn_cli.images.codecs.png_metadata import METADATA_CHUNKS, metadata_chunks, read_metadata
from hasn_cli.images.codecs.ratio import nearest_ratio
from hasn_cli.images.color import over
from hasn_cli.images.limits import MAX_FRAMES, Count, Limit, Room
from hasn_cli.images.metadata import with_notices
from hasn_cli.images.picture import EncodeOptions, Frame, Metadata, Picture, Pixels, ReplayableFrames
from hasn_cli.images.source import Source

_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_DISPOSE_NONE, _DISPOSE_BACKGROUND, _DISPOSE_PREVIOUS = range(3)
_BLEND_SOURCE = 0
_ADAM7 = (
    np.s_[::8, ::8],
    np.s_[::8, 4::8],
    np.s_[4::8, ::4],
    np.s_[::4, 2::4],
    np.s_[2::4, ::2],
    np.s_[::2, 1::2],
    np.s_[1::2, :],
)
_COLOR_CHUNKS = {b"PLTE": 3 * 256, b"tRNS": 256}  # with their maximum lengths
_MAX_CHUNK = 1 << 30  # of data; a chunk's length must stay below 2**31
_MARGIN = 1 << 16  # bytes, for headers
_COMPRESSION = 4  # takes a third of the time of level 6, for files that are 6% larger


@dataclass
class _FrameData:
    """A frame's place on the canvas, how it is shown, and its compressed data."""

    top: int = 0
    left: int = 0
    height: int = 0
    width: int = 0
    duration: float | None = None
    dispose: int = _DISPOSE_NONE
    blend: int = _BLEND_SOURCE
    data: list[memoryview] = field(default_factory=list)


@dataclass
class _File:
    """The parts of a PNG file. `others` contains the palette and the metadata chunks; other chunks are not kept."""

    ihdr: bytes
    width: int
    height: int
    frames: list[_FrameData]
    others: list[tuple[bytes, bytes]]
    animated: bool
    loop: int | None
    spoiled: bool = False
    damaged: tuple[bytes, ...] = ()
    broken: str | None = None

    @property
    def depth(self) -> int:
        return self.ihdr[8]

    @property
    def bits(self) -> int:
        """Bits per stored pixel."""
        return self.depth * (1 if self.ihdr[9] == 3 else _CHANNELS[self.ihdr[9]])

    @cached_property
    def has_alpha(self) -> bool:
        transparent = self.ihdr[9] in (4, 6) or any(kind == b"tRNS" for kind, _ in self.others)
        first, gone = self.frames[0], [frame.dispose for frame in self.frames[:-1]]
        # before the first frame the canvas is empty, so going back to that state clears it too
        uncovered = _DISPOSE_BACKGROUND in gone or gone[:1] == [_DISPOSE_PREVIOUS]
        return transparent or uncovered or (first.height, first.width) != (self.height, self.width)

    @cached_property
    def is_gray(self) -> bool:
        if self.ihdr[9] != 3:
            return self.ihdr[9] in (0, 4)
        bodies = dict(reversed(self.others))
        palette = bodies.get(b"PLTE", b"")
        # a profile for a palette is an RGB profile
        return b"iCCP" not in bodies and palette[0::3] == palette[1::3] == palette[2::3]

    @property
    def metadata(self) -> Metadata:
        """The metadata. A gray profile for colour pixels, or vice versa, is dropped: libpng and browsers ignore it."""
        metadata = read_metadata(self.others)
        if self.damaged:
            names = ", ".join(dict.fromkeys(kind.decode("latin-1") for kind in self.damaged))
            metadata = with_notices(metadata, f"left out, because the checksum is wrong: {names}")
        fits = metadata.icc is not None and (metadata.icc[16:20] == b"GRAY") == self.is_gray
        return metadata if fits else replace(metadata, icc=None)


def read(source: Source, limit: Limit) -> Picture:
    """Read a PNG. The frames of an APNG are composed on its canvas."""
    limit.check(source.name, *struct.unpack_from(">II", source.head, 16)[::-1])
    file = _parse(source.read())
    return Picture(
        name=source.name,
        format="png",
        size=(file.height, file.width),
        channels=(1 if file.is_gray else 3) + file.has_alpha,
        dtype=np.dtype(np.uint16 if file.depth == 16 else np.uint8),
        frames=ReplayableFrames(lambda: _compose(_parse(source.read()))),
        frame_count=len(file.frames),
        one_palette=file.ihdr[9] == 3,
        loop=file.loop,
        broken=file.broken,
        metadata=file.metadata,
    )


def _parse(data: bytes) -> _File:
    damaged: list[bytes] = []
    parts = iter(chunks(data, damaged))
    kind, first = next(parts)
    if kind != b"IHDR" or len(first) != 13:
        raise ValueError("it does not begin with IHDR")
    ihdr = bytes(first)
    width, height, depth, color = struct.unpack_from(">IIBB", ihdr)
    if depth not in _DEPTHS.get(color, ()) or ihdr[10:12] != b"\0\0" or ihdr[12] > 1:
        raise ValueError(f"its header is invalid: colour type {color}, {depth} bits, methods {tuple(ihdr[10:])}")
    file = _File(ihdr, width, height, [], [], False, None)
    still = _FrameData(height=height, width=width)
    try:
        stated = _collect(file, still, parts)
    except (ValueError, struct.error) as error:
        # the error is raised when the missing frame is reached; the frames before it may be complete
        if not file.animated or len(file.frames) < 2:
            raise
        file.frames.pop()
        file.broken = f"frame {len(file.frames) + 1} is damaged ({error})"
    else:
        if file.animated and stated > len(file.frames):
            file.broken = f"{stated - len(file.frames)} of {stated} frames are missing"
    file.damaged = tuple(damaged)
    if not file.animated:
        file.frames, file.loop = [still], None
    if any(not frame.data for frame in file.frames):
        raise ValueError("it contains no image data")
    return file


def _collect(file: _File, still: _FrameData, parts: Iterator[tuple[bytes, memoryview]]) -> int:
    """Add the chunks to `file` and `still`. Returns the number of frames that an animation declares."""
    sequence = stated = 0
    palettes = set[bytes]()
    room, frame_count = Room(), Count("frames", MAX_FRAMES)
    for kind, body in parts:
        if kind == b"acTL":
            # a late or repeated acTL is invalid: then only the still picture counts
            file.spoiled = file.spoiled or file.loop is not None or bool(still.data)
            stated, file.loop = struct.unpack_from(">II", body)
        elif kind in (b"fcTL", b"fdAT"):
            if struct.unpack_from(">I", body)[0] != sequence:
                raise ValueError("frames are missing or out of order")
            sequence += 1
            if kind == b"fcTL":
                frame_count.add()
                file.frames.append(_frame_control(body, file.height, file.width))
            elif file.frames:
                file.frames[-1].data.append(body[4:])
            else:
                raise ValueError("frames are missing or out of order")
        elif kind == b"IDAT":
            still.data.append(body)
            if file.frames:
                file.frames[0].data.append(body)
        elif kind in _COLOR_CHUNKS:
            if len(body) > _COLOR_CHUNKS[kind] or kind in palettes:
                raise ValueError(f"its chunk {kind.decode()!r} is too long, or comes twice")
            palettes.add(kind)
            file.others.append((kind, bytes(body)))
        elif kind in METADATA_CHUNKS:
            room.take(len(body))
            file.others.append((kind, bytes(body)))
        file.animated = file.loop is not None and bool(file.frames) and not file.spoiled
    return stated


def _frame_control(body: memoryview, height: int, width: int) -> _FrameData:
    wide, high, left, top, count, per_second, dispose, blend = struct.unpack_from(">IIIIHHBB", body, 4)
    if not (wide and high and left + wide <= width and top + high <= height):
        raise ValueError("a frame reaches beyond the picture")
    duration = 1000 * count / (per_second or 100)
    return _FrameData(top, left, high, wide, duration, dispose, blend)


def _compose(file: _File) -> Iterator[Frame]:
    """Compose each frame as it is shown. Keeps two canvases in memory, or three if a frame restores the one before."""
    channels = (1 if file.is_gray else 3) + file.has_alpha
    dtype = np.uint16 if file.depth == 16 else np.uint8
    canvas = np.zeros((file.height, file.width, channels), dtype)
    for index, frame in enumerate(file.frames):
        pixels = _with_channels(_decode(file, frame), channels)
        if not file.animated:
            yield Frame(pixels)
            return
        area = np.s_[frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
        before = canvas.copy() if frame.dispose == _DISPOSE_PREVIOUS and index else None
        canvas[area] = pixels if frame.blend == _BLEND_SOURCE or not file.has_alpha else over(pixels, canvas[area])
        yield Frame(canvas.copy(), frame.duration)
        if before is not None:
            canvas = before
        elif frame.dispose != _DISPOSE_NONE:
            canvas[area] = 0
    if file.broken:
        raise ValueError(file.broken)


def _decode(file: _File, frame: _FrameData) -> Pixels:
    """Decode a frame's own pixels, with palettes and colour keys resolved.

    The seven passes of an interlaced frame are decoded as seven pictures, because libpng (as called by imagecodecs)
    prints warnings about interlacing to stderr.
    """
    if not file.ihdr[12]:
        data = verified(frame.data, _length(file, frame.height, frame.width))
        return _decode_rows(file, frame.height, frame.width, data)
    areas = [(area, *_extent(frame, area)) for area in _ADAM7]
    lengths = [_length(file, height, width) for _, height, width in areas]
    raw = b"".join(unpack(frame.data, sum(lengths)))
    pixels: Pixels | None = None
    at = 0
    for (area, height, width), length in zip(areas, lengths, strict=True):
        if length:
            part = _decode_rows(file, height, width, [zlib.compress(raw[at : at + length], 0)])
            if pixels is None:
                pixels = np.empty((frame.height, frame.width, part.shape[2]), part.dtype)
            pixels[area] = part
        at += length
    assert pixels is not None
    return pixels


def _extent(frame: _FrameData, area: tuple[slice, slice]) -> tuple[int, int]:
    """Rows and columns of a frame that one pass covers."""
    rows, columns = (len(range(side)[part]) for part, side in zip(area, (frame.height, frame.width), strict=True))
    return rows, columns


def _length(file: _File, height: int, width: int) -> int:
    """Bytes of `height` rows, each with a byte for its filter; 0 if there are no columns."""
    return height * (1 + (width * file.bits + 7) // 8) if width else 0


def _decode_rows(file: _File, height: int, width: int, data: Sequence[memoryview | bytes]) -> Pixels:
    """Decode image data that is not interlaced. libpng gets a file with only the necessary chunks."""
    parts = [SIGNATURE, chunk(b"IHDR", struct.pack(">II", width, height) + file.ihdr[8:12] + b"\0")]
    for wanted in (b"PLTE", b"tRNS"):  # libpng would complain on stderr of another order
        parts += [chunk(kind, _masked(file, kind, body)) for kind, body in file.others if kind == wanted]
    parts += [chunk(b"IDAT", piece) for piece in data]
    pixels: Pixels = imagecodecs.png_decode(b"".join([*parts, chunk(b"IEND", b"")]))
    return pixels.reshape(height, width, -1)


def _masked(file: _File, kind: bytes, key: bytes) -> bytes:
    """A colour key without bits beyond the samples' depth. libpng would print a warning about those to stderr."""
    if kind != b"tRNS" or file.ihdr[9] not in (0, 2) or file.depth == 16 or len(key) % 2:
        return key
    return b"".join((value[0] & ((1 << file.depth) - 1)).to_bytes(2, "big") for value in struct.iter_unpack(">H", key))


def _with_channels(pixels: Pixels, channels: int) -> Pixels:
    """Convert to the given number of channels: gray palettes lose their colours, opaque frames get an alpha channel."""
    if channels <= 2 < pixels.shape[2]:
        pixels = np.delete(pixels, (1, 2), axis=2)
    if pixels.shape[2] < channels:
        opaque = np.full((*pixels.shape[:2], 1), np.iinfo(pixels.dtype).max, pixels.dtype)
        pixels = np.concatenate([pixels, opaque], axis=2)
    return pixels


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a PNG, or an APNG in which each frame contains only the rectangle that changes."""
    animated = picture.frame_count > 1
    stream.write(SIGNATURE)
    sequence = 0
    before: Pixels | None = None
    for index, frame in enumerate(picture.frames):
        if before is not None and frame.pixels.shape != before.shape:
            raise ImageError(f"{picture.name}: its frames differ in size", "use -f tiff")
        top, left, bottom, right = changed_area(before, frame.pixels)
        changed = frame.pixels[top:bottom, left:right]
        encoded = dict(_merged_chunks(_encode(changed)))
        if index == 0:
            stream.write(chunk(b"IHDR", encoded[b"IHDR"]))
            for kind, body in metadata_chunks(picture.metadata, picture.channels):
                stream.write(chunk(kind, body))
            if animated:
                stream.write(chunk(b"acTL", struct.pack(">II", picture.frame_count, picture.loop or 0)))
        if animated:
            stream.write(chunk(b"fcTL", _control(sequence, top, left, changed, frame.duration)))
            sequence += 1
        if index == 0:
            for piece in _pieces(encoded[b"IDAT"]):
                stream.write(chunk(b"IDAT", piece))
        else:
            for piece in _pieces(encoded[b"IDAT"]):
                stream.write(chunk(b"fdAT", struct.pack(">I", sequence) + piece))
                sequence += 1
        before = frame.pixels
    stream.write(chunk(b"IEND", b""))


def _encode(pixels: Pixels) -> bytes:
    plane = pixels if pixels.shape[2] > 1 else pixels[..., 0]
    # imagecodecs' own estimate ignores the filter byte of each row, which is too little for narrow, noisy pictures
    raw = plane.nbytes + plane.shape[0]
    room = raw + raw // 64 + _MARGIN
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(plane), _COMPRESSION, out=room))


def _merged_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """IHDR, and all image data as one IDAT."""
    parts = list(chunks(data))
    yield b"IHDR", bytes(parts[0][1])
    yield b"IDAT", b"".join(body for kind, body in parts if kind == b"IDAT")


def _pieces(data: bytes) -> Iterator[memoryview]:
    """Split data into pieces that fit into a chunk."""
    for at in range(0, len(data), _MAX_CHUNK):
        yield memoryview(data)[at : at + _MAX_CHUNK]


def _control(sequence: int, top: int, left: int, pixels: Pixels, duration: float | None) -> bytes:
    seconds, parts = nearest_ratio((duration or 0) / 1000)
    height, width = pixels.shape[:2]
    place = struct.pack(">IIIII", sequence, width, height, left, top)
    return place + struct.pack(">HHBB", seconds, parts, _DISPOSE_NONE, _BLEND_SOURCE)
