"""Handles problems of TIFF files that tifffile does not: broken chains of directories, wrong lengths, unwanted tags."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from mmap import mmap
from typing import Any, BinaryIO

import imagecodecs

from hasn_cli.images.exif import pack_directory
from hasn_cli.images.source import Source

_COUNT, _ENTRY, _LINK = (2, 8), (12, 20), (4, 8)  # bytes in a classic TIFF, and in a BigTIFF


@dataclass(frozen=True)
class _Layout:
    """The layout of a file's directories: byte order, and classic TIFF or BigTIFF."""

    order: str
    big: bool

    @classmethod
    def of(cls, head: bytes) -> _Layout:
        return cls("<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+"))

    @property
    def start(self) -> int:
        """The position of the offset of the first directory."""
        return 8 if self.big else 4

    @property
    def count(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def link(self) -> struct.Struct:
        return struct.Struct(self.order + ("Q" if self.big else "L"))

    @property
    def entry(self) -> int:
        return _ENTRY[self.big]


def break_in_chain(data: bytes | mmap) -> tuple[str, int] | None:
    """Why the chain of directories breaks off, and the position of the offset that leads to the broken directory.

    None if the chain is complete, or if the first directory is broken: then there is no picture to read.
    """
    layout = _Layout.of(bytes(data[:4]))
    seen: set[int] = set()
    at = last = layout.start
    reason = None
    while reason is None:
        (offset,) = layout.link.unpack_from(data, at)
        if offset == 0:
            return None
        last = at
        if offset in seen:
            reason = "its directory repeats an earlier one"
        elif offset + layout.count.size > len(data):
            reason = "its directory lies beyond the end of the file"
        else:
            (count,) = layout.count.unpack_from(data, offset)
            at = offset + layout.count.size + count * layout.entry
            if at + layout.link.size > len(data):
                reason = "its directory is cut off"
        seen.add(offset)
    return (reason, last) if last != layout.start else None


def without_broken_end(source: Source) -> tuple[Source, str | None]:
    """End a broken chain of directories where it breaks off, and return the reason. A complete file is not changed."""
    with source.view() as data:
        found = break_in_chain(data)
    if found is None:
        return source, None
    reason, at = found
    ended = bytearray(source.read())
    size = _Layout.of(bytes(ended[:4])).link.size
    ended[at : at + size] = bytes(size)
    return Source(bytes(ended), source.name), reason


def repair_lengths(page: Any, size: int) -> None:
    """Repair a page's strip or tile lengths if they are zero, missing or wrong, as libtiff does.

    The length of uncompressed data follows from its size. Compressed data extends up to the next strip or tile.

    Args:
        page: a page of tifffile.
        size: of the file in bytes.
    """
    offsets, counts = list(page.dataoffsets), list(page.databytecounts)
    known = counts + [0] * (len(offsets) - len(counts))
    if page.compression == 1 and piece_count(page) != len(offsets):
        return
    lengths = _uncompressed_lengths(page) if page.compression == 1 else [0] * len(offsets)
    ends = [*sorted(set(offsets)), size]
    repaired = []
    for offset, count, length in zip(offsets, known, lengths, strict=True):
        following = next((end for end in ends if end > offset), offset)
        if length and offset + length <= following and (count < length or offset + count > size):
            count = length
        elif not length and not count and offset:
            count = following - offset
        repaired.append(count)
    if repaired != counts:
        page.databytecounts = tuple(repaired)


def decode_fax(page: Any) -> Any:
    """Decode a page with CCITT compression to H×W booleans. This uses libtiff, on a file with only this page.

    tifffile's own decoder turns the lower part of some pages white.
    """
    stream = page.parent.filehandle
    strips = []
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        stream.seek(offset)
        strips.append(stream.read(count))
    starts = list(accumulate((len(strip) for strip in strips), initial=8))
    longs = {256: [page.imagewidth], 257: [page.imagelength], 273: starts[:-1], 279: [len(strip) for strip in strips]}
    longs |= {292: [page.tags.valueof(292) or 0], 293: [page.tags.valueof(293) or 0]}
    longs[278] = [min(page.rowsperstrip or page.imagelength, page.imagelength)]
    shorts = {258: 1, 259: int(page.compression), 262: 1, 266: int(page.fillorder), 277: 1}
    entries = [(tag, 4, len(values), struct.pack(f"<{len(values)}L", *values)) for tag, values in longs.items()]
    entries += [(tag, 3, 1, struct.pack("<H", value)) for tag, value in shorts.items()]
    at = starts[-1] + starts[-1] % 2
    alone = b"II*\0" + struct.pack("<L", at) + b"".join(strips) + b"\0" * (starts[-1] % 2)
    return imagecodecs.tiff_decode(alone + pack_directory("<", entries, at))


def piece_count(page: Any) -> int:
    """How many strips or tiles a page of its size consists of."""
    width: int = page.imagewidth
    height: int = page.imagelength
    planes: int = page.samplesperpixel if page.planarconfig == 2 else 1
    across, rows = (-(-width // int(page.tilewidth)), int(page.tilelength)) if page.is_tiled else (1, _rows(page))
    return across * -(-height // rows) * planes


def _rows(page: Any) -> int:
    """Of a strip."""
    length: int = page.imagelength
    return max(1, min(page.rowsperstrip or length, length))


def _uncompressed_lengths(page: Any) -> list[int]:
    """The length in bytes of each strip or tile of an uncompressed page."""
    samples = 1 if page.planarconfig == 2 else page.samplesperpixel
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    if page.is_tiled:
        row = (page.tilewidth * samples * page.bitspersample + 7) // 8
        return [row * page.tilelength] * piece_count(page)
    row = (page.imagewidth * samples * page.bitspersample + 7) // 8
    rows = _rows(page)
    starts = range(0, page.imagelength, rows)
    return [row * min(rows, page.imagelength - start) for start in starts] * planes


def remove_tags(stream: BinaryIO, directories: Iterable[int], tags: frozenset[int]) -> None:
    """Remove tags from the directories with these numbers in a finished file. All values stay in place."""
    wanted = set(directories)
    stream.seek(0)
    layout = _Layout.of(stream.read(4))
    at, number = layout.start, 0
    while wanted:
        stream.seek(at)
        (offset,) = layout.link.unpack(stream.read(layout.link.size))
        if offset == 0:
            return
        stream.seek(offset)
        (count,) = layout.count.unpack(stream.read(layout.count.size))
        table = stream.read(count * layout.entry)
        link = stream.read(layout.link.size)
        entries = [table[start : start + layout.entry] for start in range(0, len(table), layout.entry)]
        kept = [entry for entry in entries if struct.unpack_from(layout.order + "H", entry)[0] not in tags]
        if number in wanted and len(kept) < count:
            stream.seek(offset)
            stream.write(layout.count.pack(len(kept)) + b"".join(kept) + link)
            count = len(kept)
        wanted.discard(number)
        at, number = offset + layout.count.size + count * layout.entry, number + 1
