"""Damages files: at random, or by changing their structure (lengths, counts, sizes, offsets, repeated parts)."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress

EXTREMES = (
    0,
    1,
    2,
    3,
    7,
    8,
    0x7F,
    0xFF,
    0x100,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFE,
    0xFFFFFFFF,
)

Part = tuple[int, int]
"""Start and end of a part of a file."""


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Damage a file in one of the ways in which files get damaged by accident or on purpose."""
    broken = bytearray(data)
    kind = dice.randrange(8)
    # headers matter most, so half of all damage is done there
    reach = min(len(data), 600) if dice.random() < 0.5 else len(data)
    at = dice.randrange(reach)
    if kind == 0:
        for _ in range(dice.randint(1, 20)):
            broken[dice.randrange(reach)] = dice.randrange(256)
    elif kind == 1:
        broken[at] ^= 1 << dice.randrange(8)
    elif kind == 2:
        del broken[at:]
    elif kind == 3:
        del broken[at : at + dice.randint(1, 64)]
    elif kind == 4:
        broken[at:at] = dice.randbytes(dice.randint(1, 64))
    elif kind == 5:
        broken[at : at + 4] = dice.choice(
            [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\x80\0\0\0"]
        )
    elif kind == 6:
        other = dice.randrange(len(data))
        length = dice.randint(1, 256)
        broken[at : at + length] = data[other : other + length]
    else:
        broken[at : at + 512] = bytes(min(512, len(data) - at))
    return bytes(broken)


def restructured(data: bytes, format: str, dice: random.Random) -> bytes:
    """Repeat, drop or exchange parts of a file, or put an extreme value into one of its fields."""
    parts: list[Part] = []
    with suppress(IndexError, struct.error):  # the parts end at the first one that is already broken
        for part in PARTS[format](data):
            parts += [part] if part[1] <= len(data) else []
    if not parts:
        return _with_extreme(data, dice.randrange(min(len(data), 64)), dice)
    start, end = dice.choice(parts)
    part = data[start:end]
    kind = dice.randrange(6)
    if kind == 0:
        times = dice.choice([1, 2, 10, 100, 1000, 20_000])
        return data[:end] + part * min(times, 2_000_000 // max(1, len(part))) + data[end:]
    if kind == 1:
        return data[:start] + data[end:]
    if kind == 2:
        other = dice.choice(parts)
        if other[0] >= end:
            return data[:start] + data[other[0] : other[1]] + data[end : other[0]] + part + data[other[1] :]
        return data[:start] + data[other[0] : other[1]] + data[start:]
    # the first bytes of a part contain its length, its size and its counts
    return _with_extreme(data, min(start + dice.randrange(28), max(start, end - 1)), dice)


def _with_extreme(data: bytes, at: int, dice: random.Random) -> bytes:
    size = dice.choice([1, 2, 4, 4, 8])
    value = dice.choice(EXTREMES) if dice.random() < 0.8 else dice.randrange(1 << 8 * size)
    stored = (value & ((1 << 8 * size) - 1)).to_bytes(size, dice.choice(["big", "little"]))
    return data[:at] + stored + data[at + size :]


def with_true_checksums(data: bytes) -> bytes:
    """Correct the checksums of a damaged PNG's chunks, so that it is not refused because of them."""
    mended = bytearray(data)
    at = 8
    while at + 12 <= len(mended):
        (length,) = struct.unpack_from(">I", mended, at)
        end = at + 12 + length
        if end > len(mended):
            break
        struct.pack_into(">I", mended, end - 4, zlib.crc32(mended[at + 4 : end - 4]))
        at = end
    return bytes(mended)


def _png(data: bytes) -> Iterator[Part]:
    at = 8
    while at + 12 <= len(data):
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        yield at, end
        at = end


def _riff(data: bytes) -> Iterator[Part]:
    at = 12
    while at + 8 <= len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        end = at + 8 + size + size % 2
        yield at, end
        at = end


def _boxes(data: bytes, at: int = 0, depth: int = 0) -> Iterator[Part]:
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = len(data) if length == 0 else at + length
        if length == 1 or end <= at or end > len(data):
            return
        yield at, end
        inside = {b"meta": 12, b"iprp": 8, b"ipco": 8, b"moov": 8, b"trak": 8, b"mdia": 8, b"minf": 8, b"stbl": 8}
        inside |= {b"jp2h": 8, b"iinf": 14, b"iref": 12}
        if kind in inside and depth < 8:
            yield from _boxes(data[:end], at + inside[kind], depth + 1)
        if kind == b"jp2c":
            yield from _codestream(data, at + 8)
        at = end


def _codestream(data: bytes, at: int = 0) -> Iterator[Part]:
    at += 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0x93:
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        yield at, end
        at = end


def _jpeg2000(data: bytes) -> Iterator[Part]:
    return _codestream(data) if data[:2] == b"\xff\x4f" else _boxes(data)


def _jpeg(data: bytes) -> Iterator[Part]:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if data[at + 1] == 0xDA:
            end = data.find(b"\xff\xc4", end) if data.find(b"\xff\xc4", end) > 0 else len(data) - 2
        yield at, end
        at = end


def _tiff(data: bytes) -> Iterator[Part]:
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "L", data, 4)
    for _ in range(20):
        if not 8 <= directory <= len(data) - 2:
            return
        (count,) = struct.unpack_from(order + "H", data, directory)
        for index in range(min(count, 100)):
            yield directory + 2 + 12 * index, directory + 14 + 12 * index
        yield directory, directory + 2 + 12 * count + 4
        end = directory + 2 + 12 * count
        directory = struct.unpack_from(order + "L", data, end)[0] if end + 4 <= len(data) else 0


def _gif(data: bytes) -> Iterator[Part]:
    yield 6, 13
    at = 13 + (3 << ((data[10] & 7) + 1) if data[10] & 0x80 else 0)
    while at < len(data) and data[at] in (0x21, 0x2C):
        start = at
        at += 2
        if data[start] == 0x2C:
            flags = data[start + 9]
            at = start + 11 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        yield start, at


def _heads(*ends: int) -> Callable[[bytes], Iterator[Part]]:
    def parts(data: bytes) -> Iterator[Part]:
        yield from zip((0, *ends), ends, strict=False)

    return parts


PARTS: dict[str, Callable[[bytes], Iterator[Part]]] = {
    "png": _png,
    "webp": _riff,
    "avif": _boxes,
    "heic": _boxes,
    "jpegxl": _boxes,
    "jpeg2000": _jpeg2000,
    "jpeg": _jpeg,
    "tiff": _tiff,
    "gif": _gif,
    "bmp": _heads(14, 34, 54),
    "ico": _heads(6, 22, 62),
    "tga": _heads(8, 18),
    "ppm": _heads(3, 20),
    "pfm": _heads(3, 20),
    "raw": _tiff,
    "psd": _heads(12, 26, 34),
    "qoi": _heads(4, 12, 14),
    "dds": _heads(4, 76, 108, 128),
    "pcx": _heads(4, 12, 64, 128),
    "sgi": _heads(4, 12, 512),
    "xbm": _heads(19, 40, 70),
    "exr": _heads(8, 40, 120, 300),
    "fits": _heads(80, 160, 400, 2880),
    "dicom": _heads(132, 200, 400, 800),
}
