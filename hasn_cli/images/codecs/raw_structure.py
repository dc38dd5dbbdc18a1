"""Recognises camera RAW files that are also TIFF files, tells truncated ones, and finds the metadata in RAW files.

Most makers' RAW files (DNG, NEF, CR2, ARW, PEF, SRW, ERF, 3FR …) are TIFF files whose first directory is a small
preview. What makes them RAW is a directory with the samples of a colour filter array (TIFF/EP, ISO 12234-2), or DNG's
version tag.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from mmap import mmap

from hasn_cli.images.codecs.boxes import boxes, declared_length
from hasn_cli.images.exif import EXIF_IFD, GPS_IFD, Directories, RawEntry, pack_directory, pack_tree

Data = bytes | mmap

_PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION = 262, 330, 50706
_FILTER_ARRAY, _LINEAR_RAW = 32803, 34892
_PLACES = ((273, 279), (324, 325))  # offsets and lengths of strips, and of tiles
_MAX_VALUES = 1 << 20  # strips or tiles
_XMP, _IPTC = 700, 33723
_MAX_CHAIN, _MAX_INSIDE = 8, 16  # directories to look at, and directories below each of them
_LONG = 4
# description, maker, model, orientation, software, time, artist, host, copyright, EXIF, GPS
_KEPT = {270, 271, 272, 274, 305, 306, 315, 316, 33432, EXIF_IFD, GPS_IFD}
_OLYMPUS_AND_PANASONIC = (b"IIRO", b"IIRS", b"IIU\0")  # in place of TIFF's own signature
_OLYMPUS_BIG_ENDIAN = b"MMOR"
_FUJI = b"FUJIFILMCCD-RAW"
_FUJI_JPEG, _FUJI_SAMPLES, _FUJI_END = 84, 100, 108  # in its header: offset and length of the preview, of the samples
_CANON_BOXES = (b"moov", b"uuid")  # the way to the boxes CMT1 (first directory), CMT2 (EXIF) and CMT4 (GPS)
_UUID = 16


def is_raw(data: Data) -> bool:
    """Whether a TIFF file is a camera's RAW file."""
    with suppress(ValueError, struct.error):
        file = Directories(data)
        for directory in _directories(file):
            if file.number(directory, _PHOTOMETRIC) in (_FILTER_ARRAY, _LINEAR_RAW):
                return True
            if file.find(directory, _DNG_VERSION):
                return True
    return False


def is_complete(data: Data) -> bool:
    """Whether a RAW file contains the samples that it declares, as far as its structure tells."""
    if data[:15] == _FUJI:
        return len(data) >= _FUJI_END and sum(struct.unpack_from(">LL", data, _FUJI_SAMPLES)) <= len(data)
    if data[4:8] == b"ftyp":
        return declared_length(bytes(data)) <= len(data)
    with suppress(ValueError, struct.error):
        return _directories_are_complete(Directories(data))
    return True


def _directories_are_complete(file: Directories) -> bool:
    for directory in _directories(file):
        if file.link(directory) is None:
            return False
        if file.number(directory, _PHOTOMETRIC) not in (_FILTER_ARRAY, _LINEAR_RAW):
            continue
        for starts, lengths in _PLACES:
            places = zip(_numbers(file, directory, starts), _numbers(file, directory, lengths), strict=False)
            if any(start + length > len(file.data) for start, length in places):
                return False
    return True


def _directories(file: Directories) -> Iterator[int]:
    """The offsets of the first directories of a TIFF's chain, each followed by those of the directories inside it."""
    directory, seen = file.first, set[int]()
    while directory and directory not in seen and len(seen) < _MAX_CHAIN:
        seen.add(directory)
        yield directory
        yield from _numbers(file, directory, _SUB_IFDS)[:_MAX_INSIDE]
        link = file.link(directory)
        directory = 0 if link is None else struct.unpack_from(file.order + "L", file.data, link)[0]


def _numbers(file: Directories, directory: int, tag: int) -> tuple[int, ...]:
    """The values of an entry; none if there is no such entry, or if it has more values than any camera writes."""
    entry = file.find(directory, tag)
    if entry is None or entry.count > _MAX_VALUES:
        return ()
    return tuple(map(int, file.numbers(directory, tag) or ()))


def exif_in(data: Data) -> bytes | None:
    """An EXIF block with what a RAW file's directories say about the photo; None if there is none or it is broken."""
    with suppress(ValueError, struct.error):
        return _exif_of_boxes(bytes(data)) if data[4:8] == b"ftyp" else _exif_of_directories(_as_tiff(data))
    return None


def packets_in(data: Data) -> tuple[bytes | None, bytes | None]:
    """The XMP packet and the IPTC records in a RAW file's first directory."""
    found: list[bytes | None] = [None, None]
    with suppress(ValueError, struct.error):
        file = _as_tiff(data)
        for index, tag in enumerate((_XMP, _IPTC)):
            entry = file.find(file.first, tag)
            found[index] = file.value(entry).rstrip(b"\0") or None if entry else None
    return found[0], found[1]


def preview_in(data: Data) -> bytes | None:
    """The JPEG in a Fujifilm RAF, which holds its EXIF; None for other files."""
    if data[:15] != _FUJI or len(data) < _FUJI_END:
        return None
    start, length = struct.unpack_from(">LL", data, _FUJI_JPEG)
    return bytes(data[start : start + length])


def _as_tiff(data: Data) -> Directories:
    """The directories of a file with TIFF's structure, even if a maker replaced its signature.

    Raises:
        ValueError: it has another structure.
    """
    if data[:4] in _OLYMPUS_AND_PANASONIC:
        return Directories(b"II*\0" + bytes(data[4:]))
    if data[:4] == _OLYMPUS_BIG_ENDIAN:
        return Directories(b"MM\0*" + bytes(data[4:]))
    return Directories(data)


def _exif_of_directories(file: Directories) -> bytes | None:
    below, entries = pack_tree(file, file.first, 8, _KEPT.__contains__)
    return _block(file.order, below, entries)


def _exif_of_boxes(data: bytes) -> bytes | None:
    """Join the directories that Canon's CR3 keeps in boxes of their own, each a TIFF structure."""
    parts = dict(_canon_parts(memoryview(data)))
    first = Directories(parts.get(b"CMT1", b""))
    below, entries = pack_tree(first, first.first, 8, lambda tag: tag in _KEPT - {EXIF_IFD, GPS_IFD})
    for kind, tag in ((b"CMT2", EXIF_IFD), (b"CMT4", GPS_IFD)):
        part = Directories(parts[kind]) if kind in parts else None
        if part is None or part.order != first.order:
            continue
        at = 8 + len(below)
        deeper, inner = pack_tree(part, part.first, at, pointers=())
        at += len(deeper)
        below += deeper + pack_directory(first.order, inner, at)
        entries.append((tag, _LONG, 1, struct.pack(first.order + "L", at)))
    return _block(first.order, below, entries)


def _canon_parts(data: memoryview, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
    for kind, body in boxes(data):
        if kind == _CANON_BOXES[depth]:
            if depth == 0:
                yield from _canon_parts(body, 1)
                continue
            with suppress(ValueError):
                yield from ((inner, bytes(part)) for inner, part in boxes(body[_UUID:]) if inner.startswith(b"CMT"))


def _block(order: str, below: bytes, entries: list[RawEntry]) -> bytes | None:
    if not entries:
        return None
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8 + len(below))
    return head + below + pack_directory(order, entries, 8 + len(below))
