"""Boxes, the parts of JP2, JPEG XL, AVIF and HEIC files: length, four-letter type, body (ISO/IEC 15444-1, I.4)."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

from hasn_cli.images.limits import Count


def boxes(data: bytes | memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Type and body of each box.

    Raises:
        ValueError: a box reaches beyond the data.
        TooMuch: there are too many boxes.
    """
    view = memoryview(data)
    count = Count("boxes")
    at = 0
    while at < len(view):
        if at + 8 > len(view):
            raise ValueError("the file is truncated")
        length, kind = struct.unpack_from(">I4s", view, at)
        start = at + 8
        if length == 1 and start + 8 <= len(view):
            (length,) = struct.unpack_from(">Q", view, start)
            start += 8
        end = len(view) if length == 0 else at + length
        if end > len(view) or end < start:
            raise ValueError("the file is truncated")
        count.add()
        yield kind, view[start:end]
        at = end


def declared_length(data: bytes) -> int:
    """The length that a file should have according to its boxes. A truncated file is shorter."""
    at = 0
    while at + 8 <= len(data):
        length, _ = struct.unpack_from(">I4s", data, at)
        if length == 1 and at + 16 <= len(data):
            (length,) = struct.unpack_from(">Q", data, at + 8)
        if length < 8:
            return len(data)
        at += length
    return at


def top_kinds(data: bytes) -> set[bytes]:
    """The types of a file's boxes, as far as their lengths make sense."""
    kinds = set()
    with contextlib.suppress(ValueError):
        for kind, _ in boxes(data):
            kinds.add(kind)
    return kinds


def box(kind: bytes, *parts: bytes | bytearray) -> bytes:
    """Build one box from its type and the parts of its body."""
    length = 8 + sum(map(len, parts))
    if length < 2**32:
        return b"".join((struct.pack(">I4s", length, kind), *parts))
    return b"".join((struct.pack(">I4sQ", 1, kind, length + 8), *parts))
