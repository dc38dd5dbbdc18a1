"""Unpacks a run-length encoded BMP to an uncompressed one (Microsoft, Windows GDI: Bitmap Compression).

Pillow can unpack it too, but it takes a step for each pixel of a skipped line, which is slow.
"""

from __future__ import annotations

import struct

from hasn_cli.images.limits import Limit

RLE8, RLE4 = 1, 2
_ROW_END, _END, _DELTA = range(3)
_HEADERS = (40, 52, 56, 64, 108, 124)  # lengths of the headers that state a compression
_HEAD = 14 + 40  # bytes up to the end of the first of them


def compression_of(data: bytes) -> int:
    """The number of a BMP's compression; 0 if its header does not state one."""
    if len(data) < _HEAD or struct.unpack_from("<I", data, 14)[0] not in _HEADERS:
        return 0
    number: int = struct.unpack_from("<I", data, 30)[0]
    return number


def unpacked(name: str, data: bytes, limit: Limit) -> bytes:
    """Convert to an uncompressed BMP with the same pixels, 8 bits each, and the same palette.

    Args:
        name: for messages.
        data: a BMP whose compression is `RLE8` or `RLE4`.
        limit: for its size.

    Raises:
        ImageError: the BMP declares too many pixels.
        ValueError: it contains fewer pixels than it declares.
    """
    (start,) = struct.unpack_from("<I", data, 10)
    width, height = struct.unpack_from("<ii", data, 18)
    limit.check(name, abs(height), width)
    four = compression_of(data) == RLE4
    pixels = _pixels(data, start, width, abs(height), four)
    head = bytearray(data[:start])
    (colors,) = struct.unpack_from("<I", head, 46)
    struct.pack_into("<HII", head, 28, 8, 0, 0)  # 8 bits, not compressed
    struct.pack_into("<I", head, 46, colors or (16 if four else 256))
    padding = bytes(-width % 4)
    rows = padding.join(pixels[at : at + width] for at in range(0, width * abs(height), width)) if padding else pixels
    return bytes(head) + rows + padding


def _pixels(data: bytes, at: int, width: int, height: int, four: bool) -> bytearray:
    """Unpack to palette indices, in the order of the file."""
    total = width * height
    pixels = bytearray(total)
    done = x = 0
    while done < total and at + 2 <= len(data):
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            count = max(0, min(count, width - x, total - done))
            pixels[done : done + count] = _run(count, value, four)
            done, x = done + count, x + count
        elif value == _ROW_END:
            done += -done % width
            x = 0
        elif value == _DELTA and at + 2 <= len(data):
            done = min(done + data[at] + data[at + 1] * width, total)
            x, at = done % width, at + 2
        elif value <= _DELTA:
            break
        else:
            packed = data[at : at + ((value + 1) // 2 if four else value)]
            read = (_nibbles(packed) if four else packed)[: min(value, total - done)]
            pixels[done : done + len(read)] = read
            done, x = done + len(read), x + value
            at += len(packed) + len(packed) % 2
    if done < total:
        raise ValueError("its image data is truncated")
    return pixels


def _run(count: int, value: int, four: bool) -> bytes:
    if not four:
        return bytes((value,)) * count
    return (bytes((value >> 4, value & 15)) * ((count + 1) // 2))[:count]


def _nibbles(packed: bytes) -> bytes:
    return bytes(nibble for byte in packed for nibble in (byte >> 4, byte & 15))
