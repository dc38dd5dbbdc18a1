"""Finds pictures after the first one in a file or a pipe, as `cat a.png b.png` or a video tool produces them.

This works for formats whose data tells where a picture ends. Data after that end counts as a further picture if it
begins like one; anything else (padding, the video of a motion photo) does not count. The preview pictures that cameras
append to a JPEG belong to it and are not counted.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from mmap import mmap

from hasn_cli.images.formats import READ_ONLY, sniff
from hasn_cli.images.source import Source

Data = bytes | mmap
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")  # JPEG's markers, without those that may occur within a scan
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers of the segments that state the size
# signs that the further pictures belong to the JPEG: an index of pictures, or a directory in XMP
_ITS_OWN = (b"MPF\0", b"photos/1.0/container", b"hdr-gain-map")
_BARE_JPEGXL = b"\xff\x0a"
_BMP_HEADERS = [struct.pack("<L", length) for length in (12, 40, 52, 56, 64, 108, 124)]
_NOTES = (b"\x92\x7c\0\7", b"\x7c\x92\7\0")  # EXIF's entry for maker notes, in which cameras record their previews


def split_first(source: Source, format: str) -> tuple[Source, int]:
    """The first picture alone, and the number of pictures after it: 0 if its format does not say where it ends."""
    if format not in _ENDS or source.too_long:
        return source, 0
    with source.view() as data:
        end = at = _end(data, 0, format)
        if at is None or (format == "jpeg" and _owns_rest(data, at)):
            return source, 0
        count = 0
        while at is not None and (kind := _kind(data[at : at + 64])) is not None:
            count += 1
            at = _end(data, at, kind)
        return (Source(bytes(data[:end]), source.name), count) if count else (source, 0)


def first_end(data: bytes, format: str) -> int | None:
    """Where the first picture ends and another begins; None if none begins, or the format does not say."""
    if format not in _ENDS:
        return None
    end = _end(data, 0, format)
    if end is None or (format == "jpeg" and _owns_rest(data, end)):
        return None
    return end


def _kind(head: bytes) -> str | None:
    """The format announced by a signature that is long enough not to occur by chance, or None."""
    kind = sniff(head)
    if kind in ("tga", "ico", "ppm", "pfm", *READ_ONLY) or head.startswith(_BARE_JPEGXL):
        return None
    if kind == "bmp" and not (head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS):
        return None
    return kind


def _owns_rest(data: Data, end: int) -> bool:
    """Whether the data after a JPEG, which ends at `end`, belongs to it."""
    head, size = _head_of_jpeg(data, 0)
    if any(mark in head for mark in _ITS_OWN):
        return True
    if _kind(data[end : end + 64]) != "jpeg" or not any(mark in head for mark in _NOTES):
        return False
    preview = _head_of_jpeg(data, end)[1]
    return preview[0] < size[0] and preview[1] < size[1]


def _head_of_jpeg(data: Data, start: int) -> tuple[bytes, tuple[int, int]]:
    """The bytes before the first scan, and (height, width)."""
    size = (0, 0)
    for marker, at in _markers(data, start):
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (height, width)
        if marker in (_SOS, _EOI):
            return data[start:at], size
    return b"", size


def _markers(data: Data, start: int) -> Iterator[tuple[int, int]]:
    """Each marker of a JPEG and its offset, up to the end of the picture."""
    at = start + 2
    while found := _MARKER.search(data, at):
        at = found.start()
        marker = data[at + 1]
        yield marker, at
        if marker == _EOI:
            return
        at += 2
        if marker != _SOI:
            at += max(2, struct.unpack_from(">H", data, at)[0])
    raise IndexError


def _end(data: Data, start: int, format: str) -> int | None:
    """The end of the picture that begins at `start`, or None if it cannot be determined or is the end of the data."""
    try:
        end = _ENDS[format](data, start)
    except (KeyError, struct.error, IndexError):  # the format does not say, or the picture is truncated
        return None
    return end if start < end < len(data) else None


def _end_of_png(data: Data, at: int) -> int:
    at += 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + int(length)
        if kind == b"IEND":
            break
    return at


def _end_of_jpeg(data: Data, at: int) -> int:
    return max(place for _, place in _markers(data, at)) + 2


def _end_of_gif(data: Data, at: int) -> int:
    at += 13 + _table_length(data[at + 10])
    while (kind := data[at]) in (0x21, 0x2C):
        at += 2 if kind == 0x21 else 11 + _table_length(data[at + 9])
        while length := data[at]:
            at += 1 + length
        at += 1
    return at + 1


def _table_length(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_webp(data: Data, at: int) -> int:
    length = int(struct.unpack_from("<I", data, at + 4)[0])
    return at + 8 + length + length % 2


def _end_of_bmp(data: Data, at: int) -> int:
    (length,) = struct.unpack_from("<I", data, at + 2)
    return at + int(length)


def _end_of_boxes(data: Data, at: int) -> int:
    """The end of a file made of boxes: the offset at which another file begins instead of the next box."""
    end = at
    while end == at or _kind(data[end : end + 64]) is None:
        (length,) = struct.unpack_from(">I", data, end)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, end + 8)
        if length < 8:  # 0 means up to the end of the file; the others are invalid
            raise IndexError
        end += int(length)
    return end


_ENDS: dict[str, Callable[[Data, int], int]] = {
    "png": _end_of_png,
    "jpeg": _end_of_jpeg,
    "gif": _end_of_gif,
    "webp": _end_of_webp,
    "bmp": _end_of_bmp,
    "avif": _end_of_boxes,
    "heic": _end_of_boxes,
    "jpegxl": _end_of_boxes,
    "jpeg2000": _end_of_boxes,
}
