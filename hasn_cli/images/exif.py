"""EXIF, edited in place.

An EXIF block is a small TIFF file: directories (IFDs) of 12-byte entries which point into the block by offset. Maker
notes are proprietary and hold offsets of their own, so nothing may move: the few values that enlarging makes untrue
are overwritten where they stand, and every other byte stays what and where it was (CIPA DC-008, Exif 3.0).
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
_SHORT, _LONG, _RATIONAL, _IFD = 3, 4, 5, 13
MAX_ENTRIES = 4096  # of one directory; cameras write some hundred at most


@dataclass(frozen=True)
class Entry:
    """One entry of a directory: its tag, type and count, where it stands and where its value lies, within the block."""

    tag: int
    type: int
    count: int
    position: int
    value_offset: int
    value_size: int


class Directories:
    """A TIFF structure that can be looked into: an EXIF block, or a whole (classic) TIFF file.

    Args:
        data: the structure from its byte order mark on.

    Raises:
        ValueError: there is no TIFF structure.
    """

    def __init__(self, data: bytes | bytearray | mmap) -> None:
        self.data = data
        orders = {b"II*\0": "<", b"MM\0*": ">"}
        if bytes(data[:4]) not in orders or len(data) < 14:
            raise ValueError("no TIFF structure")
        self.order = orders[bytes(data[:4])]

    @property
    def first(self) -> int:
        """Offset of the main picture's directory."""
        return self._unpack("L", 4)

    def entries(self, directory: int, most: int = MAX_ENTRIES) -> Iterator[Entry]:
        """The entries of the directory at an offset; those that point out of the structure are left out.

        A directory that states more than `most` is none, and has no entries.
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
        """A directory's entry of that tag."""
        return next((entry for entry in self.entries(directory) if entry.tag == tag), None)

    def value(self, entry: Entry) -> bytes:
        """An entry's value as it is stored."""
        return bytes(self.data[entry.value_offset : entry.value_offset + entry.value_size])

    def number(self, directory: int, tag: int) -> int | None:
        """The value of a SHORT or LONG entry, None where there is none."""
        entry = self.find(directory, tag)
        if entry is None or entry.type not in (_SHORT, _LONG, _IFD):
            return None
        return self._unpack("H" if entry.type == _SHORT else "L", entry.value_offset)

    def ratio(self, directory: int, tag: int) -> float | None:
        """The value of a RATIONAL entry, None where there is none, or it is no number."""
        entry = self.find(directory, tag)
        if entry is None or entry.type != _RATIONAL:
            return None
        over, under = (self._unpack("L", entry.value_offset + at) for at in (0, 4))
        return over / under if under else None

    def numbers(self, directory: int, tag: int) -> tuple[float, ...] | None:
        """The values of SHORTs, LONGs or RATIONALs, None where there are none, or not all of them are numbers."""
        entry = self.find(directory, tag)
        if entry is None or entry.type not in (_SHORT, _LONG, _RATIONAL):
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
        """Where the offset of the directory after this one stands, None where the structure ends before."""
        if not 8 <= directory <= len(self.data) - 2:
            return None
        link = directory + 2 + 12 * self._unpack("H", directory)
        return link if link + 4 <= len(self.data) else None

    def _unpack(self, kind: str, offset: int) -> int:
        value: int = struct.unpack_from(self.order + kind, self.data, offset)[0]
        return value


class Exif(Directories):
    """An EXIF block that can be overwritten."""

    data: bytearray

    def __init__(self, data: bytes) -> None:
        super().__init__(bytearray(data))

    def set_number(self, directory: int, tag: int, value: int) -> None:
        """Overwrite a single SHORT or LONG, a SHORT becoming a LONG where need be; without such an entry do nothing."""
        entry = self.find(directory, tag)
        if entry is None or entry.count != 1 or entry.type not in (_SHORT, _LONG):
            return
        type = _LONG if value > 0xFFFF else entry.type
        packed = struct.pack(self.order + ("H" if type == _SHORT else "L"), value)
        struct.pack_into(self.order + "H", self.data, entry.position + 2, type)
        self.data[entry.position + 8 : entry.position + 12] = packed.ljust(4, b"\0")

    def set_numbers(self, directory: int, tag: int, values: tuple[float, ...]) -> bool:
        """Overwrite SHORTs, LONGs or RATIONALs where they stand; False where they do not fit there."""
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
        """Let two single RATIONALs that differ change places; where either is missing do nothing."""
        one, two = self.find(directory, tag), self.find(directory, other)
        if one is None or two is None or self.value(one) == self.value(two):
            return
        if (one.type, one.count) == (two.type, two.count) == (_RATIONAL, 1):
            # their values stay where they are, and the pointers to them change places
            for entry, offset in ((one, two.value_offset), (two, one.value_offset)):
                struct.pack_into(self.order + "L", self.data, entry.position + 8, offset)

    def remove(self, directory: int, tag: int) -> None:
        """Take an entry out of its directory; what follows in the directory moves up, all values stay in place."""
        entry, link = self.find(directory, tag), self.link(directory)
        if entry is None or link is None:
            return
        end = link + 4
        self.data[entry.position : end] = self.data[entry.position + 12 : end] + bytes(12)
        struct.pack_into(self.order + "H", self.data, directory, self._unpack("H", directory) - 1)

    def drop_thumbnail(self) -> None:
        """Unlink the thumbnail's directory and erase the thumbnail; the block is shortened where that moves nothing."""
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
        """Whether the main picture's own directories or values reach into a range, as in a block that is broken."""
        directories = [self.first]
        for tag in (EXIF_IFD, GPS_IFD, INTEROP_IFD):  # the last lies below the first
            directories += [at for above in directories if (at := self.number(above, tag)) is not None]
        for directory in directories:
            link = self.link(directory)
            if link is None or (directory < end and link + 4 > start):
                return True
            if any(e.value_offset < end and e.value_offset + e.value_size > start for e in self.entries(directory)):
                return True
        return False


def check_values(exif: bytes) -> None:
    """See that the first directory's values are no more than the block: libraries read all of them, shared or not.

    Raises:
        TooMuch: they are.
    """
    with suppress(ValueError, struct.error):
        block = Directories(exif)
        values = sum(entry.value_size for entry in block.entries(block.first, most=0xFFFF))
        if values > 2 * len(exif):
            raise TooMuch("its EXIF values overlap")


def _ratio(value: float) -> tuple[int, int]:
    """Numerator and denominator of 32 bits, nearest to a value below 2**32."""
    ratio = Fraction(value).limit_denominator(max(1, int((2**32 - 1) / max(value, 1))))
    return ratio.numerator, ratio.denominator


RawEntry = tuple[int, int, int, bytes]
"""Tag, type, count and stored value."""


def pack_directory(order: str, entries: Iterable[RawEntry], at: int, following: int = 0) -> bytes:
    """A directory that is to stand at offset `at`, its values right behind it.

    Args:
        order: "<" or ">"; the values must be stored in it already.
        entries: in any order; of a tag that comes twice the last counts.
        at: an even offset.
        following: offset of the directory after this one, 0 for none.
    """
    unique = sorted({entry[0]: entry for entry in entries}.values())
    free = at + 2 + 12 * len(unique) + 4
    table, values = bytearray(), bytearray()
    for tag, type, count, value in unique:
        stored = value.ljust(4, b"\0")
        if len(value) > 4:
            stored = struct.pack(order + "L", free + len(values))
            values += value + b"\0" * (len(value) % 2)
        table += struct.pack(order + "HHL", tag, type, count) + stored
    return struct.pack(order + "H", len(unique)) + bytes(table) + struct.pack(order + "L", following) + bytes(values)


_BELOW = {EXIF_IFD: (INTEROP_IFD,), GPS_IFD: (), INTEROP_IFD: ()}


def pack_tree(
    source: Directories,
    directory: int,
    at: int,
    keep: Callable[[int], bool] = lambda tag: True,
    pointers: tuple[int, ...] = (EXIF_IFD, GPS_IFD),
) -> tuple[bytes, list[RawEntry]]:
    """Copy a directory's entries, and the directories below it, out of a structure.

    Args:
        source: where they are.
        directory: its offset there.
        at: where the copies of the directories below are going to stand.
        keep: which of its tags are wanted.
        pointers: tags that point to directories which are copied too.

    Returns:
        the directories below, and the entries of the directory itself, which point to them.

    Raises:
        ValueError: values or directories overlap, so that copying would multiply them, or they are too large.
    """
    tree = _Tree(source, keep)
    return tree.pack(directory, at, pointers, first=True)


class _Tree:
    """Copies directories: each of them once, and no more bytes than the structure has."""

    def __init__(self, source: Directories, keep: Callable[[int], bool]) -> None:
        self._source = source
        self._keep = keep
        self._seen: set[int] = set()
        self._left = min(len(source.data), MAX_METADATA)

    def pack(
        self, directory: int, at: int, pointers: tuple[int, ...], first: bool = False
    ) -> tuple[bytes, list[RawEntry]]:
        """As `pack_tree`."""
        if directory in self._seen:
            raise ValueError("its metadata point to one directory twice")
        self._seen.add(directory)
        source = self._source
        below = b""
        entries: dict[int, RawEntry] = {}
        for entry in source.entries(directory):
            if (first and not self._keep(entry.tag)) or (entry.tag in entries and entry.tag in _BELOW):
                continue
            self._left -= entry.value_size
            if self._left < 0:
                raise ValueError("its metadata overlap, or are too large")
            if entry.tag not in _BELOW:
                entries[entry.tag] = (entry.tag, entry.type, entry.count, source.value(entry))
            elif entry.tag in pointers and (offset := source.number(directory, entry.tag)) is not None:
                start = at + len(below)
                deeper, inner = self.pack(offset, start, _BELOW[entry.tag])
                start += len(deeper)
                below += deeper + pack_directory(source.order, inner, start)
                entries[entry.tag] = (entry.tag, _LONG, 1, struct.pack(source.order + "L", start))
        return below, list(entries.values())
