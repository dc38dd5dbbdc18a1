"""Reads and writes PBM, PGM, PPM, PAM (1 to 16 bits) and PFM (floats) as the manual of Netpbm describes them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from hasn_cli.images.color import cmyk_to_srgb
from hasn_cli.images.limits import Limit
from hasn_cli.images.picture import EncodeOptions, Frame, Picture, Pixels, ReplayableFrames, Shape
from hasn_cli.images.source import Source

MAX_HEADER = 64 * 1024
MAX_TOKEN = 15  # digits of a sample that is written as text; five are enough, more can only be leading zeros
_PIECE = 1 << 20  # bytes of text, or samples, that are processed at a time
_CHANNELS = {b"P1": 1, b"P2": 1, b"P3": 3, b"P4": 1, b"P5": 1, b"P6": 3, b"Pf": 1, b"PF": 3}
_PLAIN = (b"P1", b"P2", b"P3")
_TUPLES = {1: b"GRAYSCALE", 2: b"GRAYSCALE_ALPHA", 3: b"RGB", 4: b"RGB_ALPHA"}


@dataclass(frozen=True)
class Header:
    """The fields before the samples, and the offset of the samples."""

    magic: bytes
    width: int
    height: int
    channels: int
    top: float
    start: int
    depth: int = 0  # samples per pixel in the file, if that is not the number of channels
    inks: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        if self.magic in (b"PF", b"Pf"):
            return np.dtype(np.float32)
        return np.dtype(np.uint8 if self.top < 256 else np.uint16)

    @property
    def length(self) -> int | None:
        """Bytes of the samples; None if they are written as text."""
        if self.magic in _PLAIN:
            return None
        if self.magic == b"P4":
            return self.height * ((self.width + 7) // 8)
        return self.height * self.width * self.stored * self.dtype.itemsize

    @property
    def stored(self) -> int:
        """Samples per pixel in the file."""
        return self.depth or self.channels


def read(source: Source, limit: Limit) -> Picture:
    """Read all pictures of a file. Samples are stretched to the whole range of 8 or 16 bits.

    Several pictures become pages. The plain formats (P1 to P3) contain a single picture, and data after it is ignored.
    After the other formats, data is ignored unless it is another header. A truncated picture raises an error when its
    frame is read.
    """
    places = list(_places(source, limit))
    first = places[0][1]
    shapes = tuple(Shape((header.height, header.width), header.channels, header.dtype) for _, header in places)

    def frames() -> Iterator[Frame]:
        for number, (start, header) in enumerate(places, 1):
            data = source.read_up_to(extent(header), start)
            if header.length is not None and len(data) < extent(header):
                which = "the file" if len(places) == 1 else f"picture {number}"
                raise ValueError(f"{which} is truncated")
            yield Frame(_pixels(header, data))

    return Picture(
        name=source.name,
        format="pfm" if first.dtype.kind == "f" else "ppm",
        size=(first.height, first.width),
        channels=first.channels,
        dtype=first.dtype,
        frames=ReplayableFrames(frames),
        frame_count=len(places),
        paged=len(places) > 1,
        page_shapes=shapes if len(places) > 1 else (),
    )


def _places(source: Source, limit: Limit) -> Iterator[tuple[int, Header]]:
    """The offset of each picture's header, and the header."""
    at = 0
    while True:
        header = parse_header(source.read_up_to(MAX_HEADER, at))
        limit.check(source.name, header.height, header.width)
        yield at, header
        if header.length is None:
            return
        at += header.start + header.length
        following = source.read_up_to(MAX_HEADER, at)
        at += len(following) - len(following.lstrip())
        if not _begins(following.lstrip()):
            return


def _begins(head: bytes) -> bool:
    """Whether this is the start of a header: a magic number, white space, then a number, a comment or a PAM field."""
    return re.match(rb"P(?:[1-6Ff]\s+[\d#]|7\s+[A-Z#])", head) is not None


def extent(header: Header) -> int:
    """The largest number of bytes that the header and its samples can take."""
    if header.length is None:
        return header.start + (MAX_TOKEN + 1) * header.height * header.width * header.channels
    return header.start + header.length


def parse_header(data: bytes) -> Header:
    """Parse the header at the beginning of a file.

    Raises:
        ValueError: the header is broken, or longer than `data`.
    """
    magic = data[:2]
    if magic == b"P7":
        return _pam_header(data)
    numbers: list[bytes] = []
    at = 2
    while len(numbers) < (2 if magic in (b"P1", b"P4") else 3):
        while data[at : at + 1].isspace():
            at += 1
        if data[at : at + 1] == b"#":
            at = data.index(b"\n", at) + 1
            continue
        end = at
        while end < len(data) and not data[end : end + 1].isspace():
            end += 1
        if end == at or end == len(data):
            raise ValueError("its header is truncated")
        numbers.append(data[at:end])
        at = end
    top = float(numbers[2]) if len(numbers) == 3 else 1.0
    if magic not in (b"PF", b"Pf") and not (top.is_integer() and 1 <= top <= 65535):
        raise ValueError(f"its largest value, {top:g}, is out of range")
    return Header(magic, int(numbers[0]), int(numbers[1]), _CHANNELS[magic], top, at + 1)


def _pam_header(data: bytes) -> Header:
    end = data.index(b"ENDHDR\n")
    lines = [line.split(None, 1) for line in data[3:end].splitlines() if line.strip() and not line.startswith(b"#")]
    fields = {line[0]: line[1] for line in lines if len(line) == 2}
    channels, top = int(fields[b"DEPTH"]), int(fields[b"MAXVAL"])
    if channels not in _TUPLES or not 1 <= top <= 65535:
        raise ValueError(f"{channels} channels up to {top} are not supported")
    size = int(fields[b"WIDTH"]), int(fields[b"HEIGHT"])
    kind = fields.get(b"TUPLTYPE", _TUPLES[channels]).strip()
    inks = kind == b"CMYK" and channels == 4
    shown = channels
    if channels in (2, 4) and not kind.endswith(b"_ALPHA"):  # its last channel is not alpha
        shown = channels - 1
    return Header(b"P7", *size, shown, top, end + 7, channels, inks)


def _pixels(header: Header, data: bytes) -> Pixels:
    shape = (header.height, header.width, header.stored)
    count = header.height * header.width * header.stored
    if header.magic == b"P4":
        row = (header.width + 7) // 8
        packed = np.frombuffer(data, np.uint8, header.height * row, header.start).reshape(header.height, row)
        return ((1 - np.unpackbits(packed, axis=1)[:, : header.width]) * np.uint8(255))[..., None]
    if header.dtype.kind == "f":
        samples = np.frombuffer(data, "<f4" if header.top < 0 else ">f4", count, header.start)
        return np.ascontiguousarray(samples.reshape(shape)[::-1]).astype(np.float32)  # the bottom row comes first
    if header.magic in _PLAIN:
        values = _plain(header, data[header.start :], count)
    else:
        values = np.frombuffer(data, ">u2" if header.dtype == np.uint16 else np.uint8, count, header.start)
    full = np.iinfo(header.dtype).max
    if values.max() > header.top:
        raise ValueError("a sample is larger than the maximum in its header")
    if header.top == full:
        pixels = values.astype(header.dtype).reshape(shape)
    else:
        table: Pixels = np.rint(np.arange(int(header.top) + 1) * (full / header.top)).astype(header.dtype)
        stretched = np.empty(count, header.dtype)
        for start in range(0, count, _PIECE):  # the table lookup takes eight bytes per sample
            stretched[start : start + _PIECE] = table[values[start : start + _PIECE]]
        pixels = stretched.reshape(shape)
    return cmyk_to_srgb(pixels, None) if header.inks else pixels[..., : header.channels]


def _plain(header: Header, text: bytes, count: int) -> Pixels:
    """Read `count` samples that are written as text, piece by piece.

    Raises:
        ValueError: there are fewer samples, or the text contains something else.
    """
    values = np.empty(count, header.dtype)
    at = found = 0
    while found < count:
        if at >= len(text):
            raise ValueError("the file is truncated")
        end = _end_of_token(text, min(at + _PIECE, len(text)))
        piece = _digits(text[at:end]) if header.magic == b"P1" else _numbers(text[at:end], count - found)
        taken = piece[: count - found]
        if len(taken) and not 0 <= int(taken.min()) <= int(taken.max()) <= header.top:
            raise ValueError("a sample is larger than the maximum in its header")
        values[found : found + len(taken)] = taken
        found += len(taken)
        at = end
    return values


def _end_of_token(text: bytes, at: int) -> int:
    """The end of the digits at an offset, but at most one digit more than are allowed."""
    last = min(at + MAX_TOKEN + 1, len(text))
    return next((end for end in range(at, last) if text[end : end + 1].isspace()), last)


def _digits(text: bytes) -> Pixels:
    """Read samples of one digit each, where 1 is black. They need no spaces between them."""
    return ord("1") - np.frombuffer(text.translate(None, b" \t\r\n\v\f"), np.uint8).astype(np.int64)


def _numbers(text: bytes, most: int) -> Pixels:
    """Read at most `most` numbers from the beginning of a text. The rest is ignored."""
    words = text.split(None, most)[:most]
    if max(map(len, words), default=0) > MAX_TOKEN:
        raise ValueError(f"a sample has more than {MAX_TOKEN} digits")
    return np.array(words, f"S{MAX_TOKEN}").astype(np.int64)


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write PFM for floats, PGM for gray, PPM for RGB, or PAM for transparency. Pages follow one another."""
    for frame in picture.frames:
        _write_one(frame.pixels, stream)


def _write_one(pixels: Pixels, stream: BinaryIO) -> None:
    height, width, channels = pixels.shape
    if pixels.dtype.kind == "f":
        order = -1 if sys.byteorder == "little" else 1
        stream.write(f"P{'F' if channels == 3 else 'f'}\n{width} {height}\n{order}.0\n".encode())
        stream.write(np.ascontiguousarray(pixels[::-1], np.float32).data)
        return
    full = np.iinfo(pixels.dtype).max
    if channels in (1, 3):
        stream.write(f"P{5 if channels == 1 else 6}\n{width} {height}\n{full}\n".encode())
    else:
        stream.write(f"P7\nWIDTH {width}\nHEIGHT {height}\nDEPTH {channels}\nMAXVAL {full}\n".encode())
        stream.write(b"TUPLTYPE " + _TUPLES[channels] + b"\nENDHDR\n")
    stream.write(pixels.astype(pixels.dtype.newbyteorder(">")).data)
