"""EXIF, edited in place.

An EXIF block is a small TIFF file: directories (IFDs) of 12-byte entries which point into the block by offset. Maker
notes are proprietary and hold offsets of their own, so nothing may move: the few values that enlarging makes untrue
are overwritten where they stand, and every other byte stays what and where it was (CIPA DC-008, Exif 3.0).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

IMAGE_WIDTH, IMAGE_LENGTH = 0x0100, 0x0101
ORIENTATION = 0x0112
THUMBNAIL_OFFSET, THUMBNAIL_LENGTH = 0x0201, 0x0202
STRIP_OFFSETS, STRIP_LENGTHS = 0x0111, 0x0117
EXIF_IFD, GPS_IFD, INTEROP_IFD = 0x8769, 0x8825, 0xA005
PIXEL_X_DIMENSION, PIXEL_Y_DIMENSION = 0xA002, 0xA003

TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 129: 1}
_SHORT, _LONG = 3, 4


@dataclass(frozen=True)
class Entry:
    """One entry of a directory: its tag, type and count, where it stands and where its value lies, within the block."""

    tag: int
    type: int
    count: int
    position: int
    value_offset: int
    value_size: int


class Exif:
    """An EXIF block that can be looked into and overwritten.

    Args:
        data: the block from its byte order mark on.

    Raises:
        ValueError: there is no TIFF structure.
    """

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        orders = {b"II*\0": "<", b"MM\0*": ">"}
        if data[:4] not in orders or len(data) < 14:
            raise ValueError("no EXIF block")
        self.order = orders[data[:4]]

    @property
    def first(self) -> int:
        """Offset of the main picture's directory."""
        return self._unpack("L", 4)

    def entries(self, directory: int) -> Iterator[Entry]:
        """The entries of the directory at an offset; those that point out of the block are left out."""
        if not 8 <= directory <= len(self.data) - 2:
            return
        for index in range(self._unpack("H", directory)):
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

    def number(self, directory: int, tag: int) -> int | None:
        """The value of a SHORT or LONG entry, None where there is none."""
        entry = self.find(directory, tag)
        if entry is None or entry.type not in (_SHORT, _LONG, 13):
            return None
        return self._unpack("H" if entry.type == _SHORT else "L", entry.value_offset)

    def set_number(self, directory: int, tag: int, value: int) -> None:
        """Overwrite a single SHORT or LONG, a SHORT becoming a LONG where need be; without such an entry do nothing."""
        entry = self.find(directory, tag)
        if entry is None or entry.count != 1 or entry.type not in (_SHORT, _LONG):
            return
        type = _LONG if value > 0xFFFF else entry.type
        packed = struct.pack(self.order + ("H" if type == _SHORT else "L"), value)
        struct.pack_into(self.order + "H", self.data, entry.position + 2, type)
        self.data[entry.position + 8 : entry.position + 12] = packed.ljust(4, b"\0")

    def set_size(self, height: int, width: int) -> None:
        """Correct the size in pixels wherever the block states it."""
        self.set_number(self.first, IMAGE_WIDTH, width)
        self.set_number(self.first, IMAGE_LENGTH, height)
        exif = self.number(self.first, EXIF_IFD)
        if exif is not None:
            self.set_number(exif, PIXEL_X_DIMENSION, width)
            self.set_number(exif, PIXEL_Y_DIMENSION, height)

    def drop_thumbnail(self) -> None:
        """Unlink the thumbnail's directory and erase the thumbnail; the block is shortened where that moves nothing."""
        link = self._link(self.first)
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
        if end + 8 >= len(self.data):
            del self.data[start:]

    def _link(self, directory: int) -> int | None:
        """Where the offset of the next directory stands."""
        if not 8 <= directory <= len(self.data) - 2:
            return None
        link = directory + 2 + 12 * self._unpack("H", directory)
        return link if link + 4 <= len(self.data) else None

    def _overlaps(self, start: int, end: int) -> bool:
        """Whether the main picture's own directories or values reach into a range, as in a block that is broken."""
        directories = [self.first]
        directories += [at for tag in (EXIF_IFD, GPS_IFD) if (at := self.number(self.first, tag)) is not None]
        for directory in directories:
            link = self._link(directory)
            if link is None or (directory < end and link + 4 > start):
                return True
            if any(e.value_offset < end and e.value_offset + e.value_size > start for e in self.entries(directory)):
                return True
        return False

    def _unpack(self, kind: str, offset: int) -> int:
        value: int = struct.unpack_from(self.order + kind, self.data, offset)[0]
        return value
