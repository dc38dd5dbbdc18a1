"""Edits EXIF in place.

An EXIF block is a small TIFF file: directories (IFDs) of 12-byte entries, which point into the block by offset. Maker
notes are proprietary and contain offsets of their own, so nothing may move. The few values that become wrong when a
picture is enlarged are overwritten in place, and every other byte stays the same (CIPA DC-008, Exif 3.0).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from mmap import mmap

from hasn_cli.images.limits import MAX_METADATA, TooMuch

IMAGE_WIDTH, IMAGE_LENGTH = 0x0100, 0x0101
ORIENTATION = 0x0112
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
THUMBNAIL_OFFSET, THUMBNAIL_LENGTH = 0x0201, 0x0202
STRIP_OFFSETS, STRIP_LENGTHS = 0x0111, 0x0117
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION = 0xA002, 0xA003

TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_SHORT, _LONG, _RATIONAL, _IFD, _IFD_8 = 3, 4, 5, 13, 18
_BIG_TYPES = {16: 8, 17: 8, 18: 8}  # only in BigTIFF
MAX_ENTRIES = 4096  # of one directory; cameras write at most about a hundred


@dataclass(frozen=True)
class Entry:
    """One entry of a directory: its tag, type and count, and the offsets of the entry and of its value in the block."""

    tag: int
    type: int
    count: int
    position: int
    value_offset: int
    value_size: int


class Directories:
    """Read access to a TIFF structure: an EXIF block, or a whole (classic) TIFF file.

    Args:
        data: the structure, which begins with its byte order mark.

    Raises:
        ValueError: the data is not a TIFF structure.
    """

    def __init__(self, data: bytes | bytearray | mmap) -> None:
        self.data = data
        orders = {b"II*\0": "<", b"MM\0*": ">"}
        if bytes(data[:4]) not in orders or len(data) < 14:
            raise ValueError("not a TIFF structure")
        self.order = orders[bytes(data[:4])]

    @property
    def first(self) -> int:
        """Offset of the main picture's directory."""
        return self._unpack("L", 4)

    def entries(self, directory: int, most: int = MAX_ENTRIES) -> Iterator[Entry]:
        """The entries of the directory at an offset, without those that point outside the structure.

        A directory that declares more than `most` entries is not a real one: it yields nothing.
        """
        if not 8 <= directory <= len(self.data) - 2:
            return
        count = self._unpack("H", directory)
        for index in range(count if count <= most else 0):
            position = directory + 2 + 12 * index
            if position + 12 > len(self.data):
                return
            tag, type, count = struct.unpack_from(self.order + "HHL", self.data, position)
            size = TYPE_SIZES.get(type, 0) * count
            offset = position + 8 if size <= 4 else self._unpack("L", position + 8)
            if size and offset + size <= len(self.data):
                yield Entry(tag, type, count, position, offset, size)

    def find(self, directory: int, tag: int) -> Entry | None:
        """The directory's first entry with this tag, or None."""
        return next((entry for entry in self.entries(directory) if entry.tag == tag), None)

    def value(self, entry: Entry) -> bytes:
        """An entry's value as it is stored."""
        return bytes(self.data[entry.value_offset : entry.value_offset + entry.value_size])

    def number(self, directory: int, tag: int) -> int | None:
        """The value of a SHORT or LONG entry, or None if there is no such entry."""
        entry = self.find(directory, tag)
        if entry is None or entry.type not in (_SHORT, _LONG, _IFD):
            return None
        return self._unpack("H" if entry.type == _SHORT else "L", entry.value_offset)

    def ratio(self, directory: int, tag: int) -> float | None:
        """The value of a RATIONAL entry, or None if there is no such entry or its denominator is 0."""
        entry = self.find(directory, tag)
        if entry is None or entry.type != _RATIONAL:
            return None
        over, under = (self._unpack("L", entry.value_offset + at) for at in (0, 4))
        return over / under if under else None

    def numbers(self, directory: int, tag: int) -> tuple[float, ...] | None:
        """The values of SHORTs, LONGs, offsets or RATIONALs, or None if there are none or a denominator is 0."""
        entry = self.find(directory, tag)
        if entry is None or entry.type not in (_SHORT, _LONG, _RATIONAL, _IFD):
            return None
        kind = (
            f"{2 * entry.count}L" if entry.type == _RATIONAL else f"{entry.count}{'H' if entry.type == _SHORT else 'L'}"
        )
        values = struct.unpack_from(self.order + kind, self.data, entry.value_offset)
        if entry.type != _RATIONAL:
            return tuple(map(float, values))
        pairs = list(zip(values[::2], values[1::2], strict=True))
        return tuple(over / under for over, under in pairs) if all(under for _, under in pairs) else None

    def link(self, directory: int) -> int | None:
        """The position of the pointer to the next directory, or None if the structure ends before it."""
        if not 8 <= directory <= len(self.data) - 2:
            return None
        link = directory + 2 + 12 * self._unpack("H", directory)
        return link if link + 4 <= len(self.data) else None

    def _unpack(self, kind: str, offset: int) -> int:
        value: int = struct.unpack_from(self.order + kind, self.data, offset)[0]
        return value


class BigDirectories(Directories):
    """Read access to a BigTIFF file, whose directories have offsets and counts of 8 bytes.

    Args:
        data: the file.

    Raises:
        ValueError: the data is not a BigTIFF file.
    """

    def __init__(self, data: bytes | bytearray | mmap) -> None:
        self.data = data
        orders = {b"II+\0": "<", b"MM\0+": ">"}
        if bytes(data[:4]) not in orders or len(data) < 16:
            raise ValueError("not a BigTIFF file")
        self.order = orders[bytes(data[:4])]

    @property
    def first(self) -> int:
        """Offset of the main picture's directory."""
        return self._unpack("Q", 8)

    def entries(self, directory: int, most: int = MAX_ENTRIES) -> Iterator[Entry]:
        """The entries of the directory at an offset, without those that point outside the file."""
        if not 16 <= directory <= len(self.data) - 8:
            return
        count = self._unpack("Q", directory)
        for index in range(count if count <= most else 0):
            position = directory + 8 + 20 * index
            if position + 20 > len(self.data):
                return
            tag, type, count = struct.unpack_from(self.order + "HHQ", self.data, position)
            size = (TYPE_SIZES | _BIG_TYPES).get(type, 0) * count
            offset = position + 12 if size <= 8 else self._unpack("Q", position + 12)
            if size and offset + size <= len(self.data):
                yield Entry(tag, type, count, position, offset, size)

    def number(self, directory: int, tag: int) -> int | None:
        """The value of a SHORT, LONG or 8-byte entry, or None if there is no such entry."""
        entry = self.find(directory, tag)
        if entry is not None and entry.type in _BIG_TYPES:
            return self._unpack("Q", entry.value_offset)
        return super().number(directory, tag)


class Exif(Directories):
    """An EXIF block that can be edited."""

    data: bytearray

    def __init__(self, data: bytes) -> None:
        super().__init__(bytearray(data))

    def set_number(self, directory: int, tag: int, value: int) -> None:
        """Overwrite a single SHORT or LONG, if there is one. A SHORT becomes a LONG if the value needs it."""
        entry = self.find(directory, tag)
        if entry is None or entry.count != 1 or entry.type not in (_SHORT, _LONG):
            return
        type = _LONG if value > 0xFFFF else entry.type
        packed = struct.pack(self.order + ("H" if type == _SHORT else "L"), value)
        struct.pack_into(self.order + "H", self.data, entry.position + 2, type)
        self.data[entry.position + 8 : entry.position + 12] = packed.ljust(4, b"\0")

    def set_numbers(self, directory: int, tag: int, values: tuple[float, ...]) -> bool:
        """Overwrite SHORTs, LONGs or RATIONALs in place. Returns False if the values do not fit there."""
        entry = self.find(directory, tag)
        if entry is None or len(values) != entry.count or not all(0 <= value < 2**32 for value in values):
            return False
        if entry.type == _RATIONAL:
            whole = [part for value in values for part in _ratio(value)]
        else:
            whole = [min(max(round(value), 0), 2**32 - 1) for value in values]
        if entry.type == _SHORT and max(whole) > 0xFFFF:
            if entry.count > 1:
                return False
            self.set_number(directory, tag, whole[0])
            return True
        kind = "H" if entry.type == _SHORT else "L"
        struct.pack_into(f"{self.order}{len(whole)}{kind}", self.data, entry.value_offset, *whole)
        return True

    def exchange(self, directory: int, tag: int, other: int) -> None:
        """Swap two single RATIONALs, if both exist."""
        one, two = self.find(directory, tag), self.find(directory, other)
        if one is None or two is None or self.value(one) == self.value(two):
            return
        if (one.type, one.count) == (two.type, two.count) == (_RATIONAL, 1):
            # the values stay in place, and the pointers to them are swapped
            for entry, offset in ((one, two.value_offset), (two, one.value_offset)):
                struct.pack_into(self.order + "L", self.data, entry.position + 8, offset)

    def remove(self, directory: int, tag: int) -> None:
        """Remove an entry from its directory. The entries after it move up; all values stay in place."""
        entry, link = self.find(directory, tag), self.link(directory)
        if entry is None or link is None:
            return
        end = link + 4
        self.data[entry.position : end] = self.data[entry.position + 12 : end] + bytes(12)
        struct.pack_into(self.order + "H", self.data, directory, self._unpack("H", directory) - 1)

    def drop_thumbnail(self) -> None:
        """Unlink the thumbnail's directory and erase the thumbnail. If the thumbnail comes last, shorten the block."""
        link = self.link(self.first)
        if link is None or not (directory := self._unpack("L", link)):
            return
        thumbnail = None
        for offset_tag, length_tag in ((THUMBNAIL_OFFSET, THUMBNAIL_LENGTH), (STRIP_OFFSETS, STRIP_LENGTHS)):
            start, length = self.number(directory, offset_tag), self.number(directory, length_tag)
            if start and length and start + length <= len(self.data):
                thumbnail = (start, start + length)
        struct.pack_into(self.order + "L", self.data, link, 0)
        if thumbnail is None or self._overlaps(*thumbnail):
            return
        start, end = thumbnail
        self.data[start:end] = bytes(end - start)
        if end + 8 >= len(self.data) and not self._overlaps(start, len(self.data)):
            del self.data[start:]

    def _overlaps(self, start: int, end: int) -> bool:
        """Whether the main picture's own directories or values reach into a range, as they may in a broken block."""
        directories = [self.first]
        for tag in (EXIF_IFD, GPS_IFD, INTEROP_IFD):  # the EXIF directory points to the interoperability directory
            directories += [at for above in directories if (at := self.number(above, tag)) is not None]
        for directory in directories:
            link = self.link(directory)
            if link is None or (directory < end and link + 4 > start):
                return True
            if any(e.value_offset < end and e.value_offset + e.value_size > start for e in self.entries(directory)):
                return True
        return False


def check_values(exif: bytes) -> None:
    """Check that the first directory's values are not much larger than the block: libraries read overlapping ones too.

    Raises:
        TooMuch: they are more than twice as large.
    """
    with suppress(ValueError, struct.error):
        block = Directories(exif)
        values = sum(entry.value_size for entry in block.entries(block.first, most=0xFFFF))
        if values > 2 * len(exif):
            raise TooMuch("its EXIF values overlap")


def _ratio(value: float) -> tuple[int, int]:
    """The 32-bit numerator and denominator nearest to a value below 2**32."""
    ratio = Fraction(value).limit_denominator(max(1, int((2**32 - 1) / max(value, 1))))
    return ratio.numerator, ratio.denominator


RawEntry = tuple[int, int, int, bytes]
"""Tag, type, count and stored value."""


def pack_directory(order: str, entries: Iterable[RawEntry], at: int, following: int = 0, *, big: bool = False) -> bytes:
    """Build a directory for the offset `at`, followed directly by its values.

    Args:
        order: byte order, "<" or ">"; the values must already have it.
        entries: in any order; if a tag comes twice, the last entry counts.
        at: an even offset.
        following: offset of the next directory, 0 for none.
        big: for a BigTIFF file.
    """
    number, offset, inline = ("Q", "Q", 8) if big else ("H", "L", 4)
    unique = sorted({entry[0]: entry for entry in entries}.values())
    free = at + struct.calcsize("<" + number) + (8 + inline + (4 if big else 0)) * len(unique) + inline
    table, values = bytearray(), bytearray()
    for tag, type, count, value in unique:
        stored = value.ljust(inline, b"\0")
        if len(value) > inline:
            stored = struct.pack(order + offset, free + len(values))
            values += value + b"\0" * (len(value) % 2)
        table += struct.pack(order + "HH" + offset, tag, type, count) + stored
    head, link = struct.pack(order + number, len(unique)), struct.pack(order + offset, following)
    return head + bytes(table) + link + bytes(values)


_BELOW = {EXIF_IFD: (INTEROP_IFD,), GPS_IFD: (), INTEROP_IFD: ()}


def pack_tree(
    source: Directories,
    directory: int,
    at: int,
    keep: Callable[[int], bool] = lambda tag: True,
    pointers: tuple[int, ...] = (EXIF_IFD, GPS_IFD),
    *,
    big: bool = False,
) -> tuple[bytes, list[RawEntry]]:
    """Copy a directory's entries, and the directories below it, out of a structure.

    Args:
        source: the structure to copy from.
        directory: offset of the directory in `source`.
        at: offset at which the copies of the directories below will be placed.
        keep: tells which tags of the directory are wanted.
        pointers: tags that point to directories to be copied too.
        big: whether the copy is for a BigTIFF file.

    Returns:
        The directories below, and the entries of the directory itself, which point to them.

    Raises:
        ValueError: values or directories overlap, so that copying would multiply them, or they are too large.
    """
    tree = _Tree(source, keep, big)
    return tree.pack(directory, at, pointers, first=True)


class _Tree:
    """Copies each directory once, and at most as many bytes as the structure has."""

    def __init__(self, source: Directories, keep: Callable[[int], bool], big: bool) -> None:
        self._source = source
        self._big = big
        self._keep = keep
        self._seen: set[int] = set()
        self._left = min(len(source.data), MAX_METADATA)

    def pack(
        self, directory: int, at: int, pointers: tuple[int, ...], first: bool = False
    ) -> tuple[bytes, list[RawEntry]]:
        """See `pack_tree`."""
        if directory in self._seen:
            raise ValueError("its metadata points to one directory twice")
        self._seen.add(directory)
        source = self._source
        below = b""
        entries: dict[int, RawEntry] = {}
        for entry in source.entries(directory):
            if (first and not self._keep(entry.tag)) or (entry.tag in entries and entry.tag in _BELOW):
                continue
            if entry.type in _BIG_TYPES and entry.tag not in _BELOW:  # no tag of EXIF needs 8 bytes
                continue
            self._left -= entry.value_size
            if self._left < 0:
                raise ValueError("its metadata overlaps or is too large")
            if entry.tag not in _BELOW:
                entries[entry.tag] = (entry.tag, entry.type, entry.count, source.value(entry))
            elif entry.tag in pointers and (offset := source.number(directory, entry.tag)) is not None:
                start = at + len(below)
                deeper, inner = self.pack(offset, start, _BELOW[entry.tag])
                start += len(deeper)
                below += deeper + pack_directory(source.order, inner, start, big=self._big)
                type, form = (_IFD_8, "Q") if self._big else (_LONG, "L")
                entries[entry.tag] = (entry.tag, type, 1, struct.pack(source.order + form, start))
        return below, list(entries.values())
