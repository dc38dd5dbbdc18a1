"""Checks what a TIFF declares before tifffile reads it: its directories, and the pictures inside its strips."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any

import numpy as np
import tifffile

from hasn_cli.images.codecs import jp2, jpeg, jxl
from hasn_cli.images.codecs.pillow import webp_size
from hasn_cli.images.exif import MAX_ENTRIES, TYPE_SIZES
from hasn_cli.images.limits import MAX_FRAMES, MAX_METADATA, Count, TooMuch

_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH, _SAMPLES = 256, 257, 322, 323, 277
_PIECES = (273, 279, 324, 325)  # offsets and lengths of strips and tiles
_SUB_IFDS = 330
_SHORT_LISTS = (258, 338, 339, *range(33628, 33632))  # one value per sample; STK's tags have one per plane
_OTHERS = (330, 42113, 50838, 50839)  # other tags that tifffile reads at once: pictures in a page, GDAL's, ImageJ's
_BYTE_COUNTS = (279, 325)
_TABLES, _MAX_TABLES = 347, 65_536  # JPEG's tables: a few hundred bytes, which are read again for each strip
_METADATA = (270, 305, 700, 33723, 34377, 34675)  # description, software, XMP, IPTC, Photoshop, ICC
_COLOR_MAPS = (301, 320)
_BIG_TYPES = {16: 8, 17: 8, 18: 8}
_MAX_PIECE_TABLES = 1 << 20  # bytes by which tables of strips and tiles may exceed the file: pages do not share them
_SHARED = 2**30  # bytes by which all values together may exceed the file, because pages may share a profile
_MAX_ENTRIES = 40 * MAX_FRAMES  # of all directories
_MAX_SUB_IFDS = 1000  # of one directory: smaller versions of a picture, and masks

_COMPRESSION = tifffile.COMPRESSION
_JPEG = (_COMPRESSION.OJPEG, _COMPRESSION.JPEG, _COMPRESSION.ALT_JPEG, 34892)
_CHECKED: dict[int, Callable[[bytes], tuple[int, int]]] = {
    **dict.fromkeys(_JPEG, jpeg.declared_size),
    **dict.fromkeys((33003, 33004, 33005, 34712), jp2.declared_size),
    34933: lambda data: struct.unpack_from(">II", data, 16)[::-1],  # PNG
    50001: webp_size,
    **dict.fromkeys((50002, 52546), jxl.declared_size),
}
_PLAIN = (1, 2, 3, 4, 5, 8, 32771, 32773, 32946, 34925, 50000, 50013)  # their decoders unpack only a given length
_LERC = 34887


@dataclass
class _Walk:
    """The structure of a file, classic or BigTIFF."""

    data: bytes | mmap
    seen: set[int] = field(default_factory=set)
    value_bytes: int = 0
    table_bytes: int = 0
    piece_bytes: int = 0
    sample_bytes: int = 0

    def __post_init__(self) -> None:
        self.order = "<" if bytes(self.data[:2]) == b"II" else ">"
        self.big = bytes(self.data[2:4]) in (b"+\0", b"\0+")
        self.entry_size, self.inline = (20, 8) if self.big else (12, 4)

    def number(self, kind: str, at: int) -> int:
        """An unsigned integer; raises struct.error beyond the end."""
        value: int = struct.unpack_from(self.order + kind, self.data, at)[0]
        return value

    @property
    def first(self) -> int:
        """Offset of the first directory."""
        return self.number("Q" if self.big else "L", 8 if self.big else 4)

    def entries(self, directory: int) -> Iterator[tuple[int, int, int, int]]:
        """Tag, count, length in bytes and offset of each entry's value."""
        count, at = self.number("Q" if self.big else "H", directory), directory + (8 if self.big else 2)
        for position in range(at, at + self.entry_size * min(count, MAX_ENTRIES), self.entry_size):
            tag, type = self.number("H", position), self.number("H", position + 2)
            values = self.number("Q" if self.big else "L", position + 4)
            length = (TYPE_SIZES | _BIG_TYPES).get(type, 0) * values
            value = position + self.entry_size - self.inline
            yield tag, values, length, value if length <= self.inline else self.number("Q" if self.big else "L", value)

    def following(self, directory: int) -> int:
        """Offset of the next directory, 0 for none."""
        count, at = self.number("Q" if self.big else "H", directory), directory + (8 if self.big else 2)
        end = at + self.entry_size * count
        return self.number("Q" if self.big else "L", end) if end + self.inline <= len(self.data) else 0


def check_directories(data: bytes | mmap) -> None:
    """Check that tifffile will not read more from a file's directories than real files contain.

    Raises:
        TooMuch: there are too many directories, or they contain too much.
        struct.error: the file is truncated.
    """
    walk, pages = _Walk(data), Count("pages", MAX_FRAMES)
    entries = Count("directory entries", min(_MAX_ENTRIES, MAX_ENTRIES + len(data) // 12))
    directory = walk.first
    while 8 <= directory < len(data) and directory not in walk.seen:
        pages.add()
        walk.seen.add(directory)
        try:
            entries.add(_check_directory(walk, directory))
            directory = walk.following(directory)
        except struct.error:  # the error is raised when the page is read
            return


def _check_directory(walk: _Walk, directory: int) -> int:
    """Check one directory. Returns the number of its tags."""
    declared = {}
    counts = {}
    number = 0
    for tag, count, length, offset in walk.entries(directory):
        number += 1
        counts[tag] = count
        if tag in (_WIDTH, _LENGTH, _TILE_WIDTH, _TILE_LENGTH, _SAMPLES) and count == 1 and length in (2, 4, 8):
            declared[tag] = walk.number({2: "H", 4: "L", 8: "Q"}[length], offset)
        if tag in (*_PIECES, *_SHORT_LISTS, *_METADATA, *_COLOR_MAPS, *_OTHERS):
            walk.value_bytes += length
        if tag in _PIECES:
            walk.table_bytes += length
        if tag == _TABLES and length > _MAX_TABLES:
            raise TooMuch("its JPEG tables are too long")
        if tag in _BYTE_COUNTS and length and offset + length <= len(walk.data):
            numbers = np.frombuffer(walk.data[offset : offset + length], f"{walk.order}u{length // count}")
            walk.piece_bytes += int(numbers.sum(dtype=np.float64))
        if tag in _METADATA and length > MAX_METADATA and tag != 270:  # OME describes a whole series of pictures there
            raise TooMuch(f"its metadata takes more than {MAX_METADATA / 2**20:.4g} MiB")
    if walk.value_bytes > len(walk.data) + _SHARED or walk.table_bytes > len(walk.data) + _MAX_PIECE_TABLES:
        raise TooMuch("its directories declare more data than the file contains")
    height, width = declared.get(_LENGTH, 0), declared.get(_WIDTH, 0)
    walk.sample_bytes += height * width * 8 * max(1, declared.get(_SAMPLES, 1))
    if walk.piece_bytes > 2 * len(walk.data) + walk.sample_bytes + _SHARED:
        raise TooMuch("its strips or tiles are longer than the file and its pixels")
    # allow a strip for each row and sample, or tiles of at least 64 pixels
    pieces = 65_536 + 8 * height + height * width * declared.get(_SAMPLES, 1) // 64
    if max(counts.get(tag, 0) for tag in _PIECES) > pieces:
        raise TooMuch(f"it has more than {pieces} strips or tiles in one page")
    if max(counts.get(tag, 0) for tag in _SHORT_LISTS) > 65_536 or counts.get(_SUB_IFDS, 0) > _MAX_SUB_IFDS:
        raise TooMuch("it has too many samples or planes, or too many pictures within a page")
    if max(counts.get(tag, 0) for tag in _COLOR_MAPS) > 3 * 65_536:
        raise TooMuch("its palette is too long")
    return number


def check_pieces(page: Any) -> None:
    """Check that the pictures coded in a page's strips or tiles are not larger than the strips or tiles.

    Args:
        page: a page of tifffile.

    Raises:
        ValueError: a picture is larger, or its size cannot be determined for this compression.
        TooMuch: decoding a picture would take far more work than its pixels justify.
    """
    compression = int(page.compression)
    if compression in _PLAIN:
        return
    size_of = _lerc_size if compression == _LERC else _CHECKED.get(compression)
    if size_of is None:
        raise ValueError(f"compression {getattr(page.compression, 'name', compression)} is not supported")
    if page.is_tiled:
        wide, high = page.tilewidth, page.tilelength
    else:
        wide, high = page.imagewidth, page.rowsperstrip
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    # encoders round sizes up, and the last strip may be as high as the others
    room = 2 * wide * high * len(pieces) + 65_536
    for start, length in pieces:
        if not length:  # an empty piece means zeros
            continue
        data = _piece(page, start, length)
        if compression in _JPEG and page.jpegheader is not None:
            data = page.jpegheader + data
        height, width = size_of(data)
        room -= height * width
        if room < 0:
            raise ValueError(f"a strip or tile of {wide}×{high} pixels contains a picture of {width}×{height}")


def _piece(page: Any, start: int, length: int) -> bytes:
    page.parent.filehandle.seek(start)
    data: bytes = page.parent.filehandle.read(length)
    return data


def _lerc_size(data: bytes) -> tuple[int, int]:
    """Height and width of LERC data (format Lerc2, whose header has a checksum since version 3)."""
    if data[:6] != b"Lerc2 ":
        raise ValueError("its version of LERC is not supported")
    (version,) = struct.unpack_from("<i", data, 6)
    height, width = struct.unpack_from("<ii", data, 14 if version >= 3 else 10)
    bands = struct.unpack_from("<i", data, 22)[0] if version >= 4 else 1
    if min(height, width, bands) < 1 or bands > 8:
        raise ValueError("its LERC data states an invalid size")
    return height, width
