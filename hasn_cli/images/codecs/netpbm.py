"""Netpbm's formats, PBM, PGM, PPM and PAM (1 to 16 bits), and PFM (float), after netpbm's own descriptions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from hasn_cli.images.limits import Limit
from hasn_cli.images.picture import Again, EncodeOptions, Frame, Picture, Pixels
from hasn_cli.images.source import Source

MAX_HEADER = 64 * 1024
MAX_TOKEN = 15  # digits of a sample that is written as text; five say all, the rest may be zeros or spaces
_PIECE = 1 << 20  # bytes of text, or samples, that are worked on at once
_CHANNELS = {b"P1": 1, b"P2": 1, b"P3": 3, b"P4": 1, b"P5": 1, b"P6": 3, b"Pf": 1, b"PF": 3}
_PLAIN = (b"P1", b"P2", b"P3")
_TUPLES = {1: b"GRAYSCALE", 2: b"GRAYSCALE_ALPHA", 3: b"RGB", 4: b"RGB_ALPHA"}


@dataclass(frozen=True)
class Header:
    """What stands before the samples, and where they start."""

    magic: bytes
    width: int
    height: int
    channels: int
    top: float
    start: int

    @property
    def dtype(self) -> np.dtype[Any]:
        if self.magic in (b"PF", b"Pf"):
            return np.dtype(np.float32)
        return np.dtype(np.uint8 if self.top < 256 else np.uint16)


def read(source: Source, limit: Limit) -> Picture:
    """Read a picture of any of these formats; samples are stretched to the whole range of 8 or 16 bits."""
    with source.open() as stream:
        header = parse_header(stream.read(MAX_HEADER))
    limit.check(source.name, header.height, header.width)

    def frames() -> Iterator[Frame]:
        yield Frame(_pixels(header, source.read_up_to(extent(header))))

    return Picture(
        name=source.name,
        format="pfm" if header.dtype.kind == "f" else "ppm",
        size=(header.height, header.width),
        channels=header.channels,
        dtype=header.dtype,
        frames=Again(frames),
    )


def extent(header: Header) -> int:
    """Up to how many bytes the header and the samples that it announces take."""
    samples = header.height * header.width * header.channels
    if header.magic in _PLAIN:
        return header.start + (MAX_TOKEN + 1) * samples
    if header.magic == b"P4":
        return header.start + header.height * ((header.width + 7) // 8)
    return header.start + header.dtype.itemsize * samples


def parse_header(data: bytes) -> Header:
    """The header that a file begins with.

    Raises:
        ValueError: it is broken, or longer than `data`.
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
    return Header(b"P7", int(fields[b"WIDTH"]), int(fields[b"HEIGHT"]), channels, top, end + 7)


def _pixels(header: Header, data: bytes) -> Pixels:
    shape = (header.height, header.width, header.channels)
    count = header.height * header.width * header.channels
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
        raise ValueError("a sample is beyond the largest value that its header states")
    if header.top == full:
        return values.astype(header.dtype).reshape(shape)
    table: Pixels = np.rint(np.arange(int(header.top) + 1) * (full / header.top)).astype(header.dtype)
    result = np.empty(count, header.dtype)
    for start in range(0, count, _PIECE):  # looking up takes eight bytes a sample
        result[start : start + _PIECE] = table[values[start : start + _PIECE]]
    return result.reshape(shape)


def _plain(header: Header, text: bytes, count: int) -> Pixels:
    """So many samples that are written as digits, read piece by piece.

    Raises:
        ValueError: there are fewer, or something else is among them.
    """
    values = np.empty(count, header.dtype)
    at = found = 0
    while found < count:
        if at >= len(text):
            raise ValueError("the file is truncated")
        end = _end_of_token(text, min(at + _PIECE, len(text)))
        piece = _digits(text[at:end]) if header.magic == b"P1" else _numbers(text[at:end])
        taken = piece[: count - found]
        if len(taken) and not 0 <= int(taken.min()) <= int(taken.max()) <= header.top:
            raise ValueError("a sample is beyond the largest value that its header states")
        values[found : found + len(taken)] = taken
        found += len(taken)
        at = end
    return values


def _end_of_token(text: bytes, at: int) -> int:
    """The end of the digits that stand at an offset, which are cut off where they are too many."""
    last = min(at + MAX_TOKEN + 1, len(text))
    return next((end for end in range(at, last) if text[end : end + 1].isspace()), last)


def _digits(text: bytes) -> Pixels:
    """Samples of one digit each, of which 1 is black; they need no space between them."""
    return ord("1") - np.frombuffer(text.translate(None, b" \t\r\n\v\f"), np.uint8).astype(np.int64)


def _numbers(text: bytes) -> Pixels:
    words = text.split()
    if max(map(len, words), default=0) > MAX_TOKEN:
        raise ValueError(f"a sample has more than {MAX_TOKEN} digits")
    return np.array(words, f"S{MAX_TOKEN}").astype(np.int64)


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write PFM for floats, PGM for gray, PPM for RGB, PAM for what is transparent."""
    pixels = next(iter(picture.frames)).pixels
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
