"""What tifffile leaves to be done in a TIFF file: its chain of directories, lengths that are wrong, tags too many."""

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
    """How a file's directories are laid out."""

    order: str
    big: bool

    @classmethod
    def of(cls, head: bytes) -> _Layout:
        return cls("<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+"))

    @property
    def start(self) -> int:
        """Where the offset of the first directory stands."""
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
    """Why the chain of directories breaks off before its end, and where the last offset that leads on stands.

    None where it is whole, or broken in its first directory, without which there is no picture anyway.
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
            reason = "its directory is one that came before"
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
    """A file whose chain of directories ends where it breaks off, and why it does; a whole one is returned itself."""
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
    """Put right a page's lengths of strips or tiles where they are zero, missing, or wrong, as libtiff does.

    What is not compressed has a length of its own. What is compressed reaches to whatever comes next.

    Args:
        page: tifffile's.
        size: of the file.
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
    """H×W booleans of a page in CCITT compression, by libtiff, which gets a file that holds nothing but this page.

    tifffile's own decoder for it takes some whole pages for white from some row on.
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
    """Bytes of each strip or tile of a page that is not compressed."""
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
    """Take entries out of the directories of these numbers in a finished file; all values stay where they are."""
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
