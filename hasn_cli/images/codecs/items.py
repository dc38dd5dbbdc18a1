"""Checks what AVIF and HEIC files declare (ISO/IEC 14496-12 and 23008-12) before a library decodes them.

These files state sizes twice, in the boxes and in the coded pictures. Items may share their bytes, so a few bytes of a
file can expand to many.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from hasn_cli.images.codecs.bits import av1_size, hevc_size
from hasn_cli.images.codecs.boxes import boxes
from hasn_cli.images.exif import check_values
from hasn_cli.images.limits import MAX_FRAMES, MAX_METADATA, Count, Limit, Room

_METADATA = (b"Exif", b"mime", b"uri ")
_PICTURES = (b"hvc1", b"av01", b"grid", b"iovl", b"iden")
_PROFILE_ROOM = 8 * MAX_METADATA  # bytes of the profiles of all pictures together; pictures may share a profile
_INSIDE = {  # boxes that contain boxes, and the number of bytes before the first box in them
    b"meta": 4,
    b"iprp": 0,
    b"ipco": 0,
    b"moov": 0,
    b"trak": 0,
    b"mdia": 0,
    b"minf": 0,
    b"stbl": 0,
    b"stsd": 8,
    b"av01": 78,
    b"hvc1": 78,
    b"hev1": 78,
}
_MAX_LAYERS = 100  # of all overlays together; each layer is decoded
_SLACK = 64  # pixels by which a coded picture may be larger than its visible part


@dataclass
class _Found:
    """The contents of the boxes."""

    sizes: set[tuple[int, int]] = field(default_factory=set)
    coded: list[tuple[int, int]] = field(default_factory=list)
    kinds: dict[int, bytes] = field(default_factory=dict)
    places: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    chunks: list[int] = field(default_factory=list)
    inputs: dict[int, list[int]] = field(default_factory=dict)  # the items from which an item is composed
    described: dict[int, int] = field(default_factory=dict)  # the number of pictures that a metadata item describes
    profiles: int = 0  # bytes


def check(name: str, data: bytes, limit: Limit) -> None:
    """Check that no picture in the file is over the limit, or larger than the sizes that the file declares.

    Args:
        name: for messages.
        data: an AVIF or HEIC file.
        limit: for each of its pictures, including thumbnails and alpha channels.

    Raises:
        ImageError: a picture is too large.
        ValueError: a coded picture is larger than any size that the file declares.
        TooMuch: the file has too many parts, or too much metadata.
    """
    found, room, count = _Found(), Room(), Count("boxes")
    for kind, body in _walk(data, count):
        _note(found, kind, body, room, count)
    for number, places in found.places.items():
        if found.kinds.get(number) in _METADATA:
            # libraries read it again for each picture that it belongs to
            room.take(sum(length for _, length in places) * max(1, found.described.get(number, 1)))
        if found.kinds.get(number) == b"Exif":
            _check_exif(b"".join(data[start : start + length] for start, length in places if start >= 0))
    pieces = {number for inputs in found.inputs.values() for number in inputs}
    pictures = sum(kind in _PICTURES and number not in pieces for number, kind in found.kinds.items())
    Room(_PROFILE_ROOM).take(found.profiles * max(1, pictures))
    room.take(found.profiles)
    layers = Count("layers", _MAX_LAYERS)
    for number, inputs in found.inputs.items():
        if found.kinds.get(number) == b"iovl":
            layers.add(len(inputs))
            if any(found.kinds.get(below) == b"iovl" for below in inputs):
                raise ValueError("overlays of overlays are not supported")
    for height, width in found.sizes:
        limit.check(name, height, width)
    for height, width in [*found.coded, *_av1_sizes(found, data)]:
        limit.check(name, height, width)
        if not any(height <= high + _SLACK and width <= wide + _SLACK for high, wide in found.sizes):
            raise ValueError(f"it contains a picture of {width}×{height} pixels, larger than it declares")


def stores_rgb(data: bytes) -> bool:
    """Whether the pictures are stored as RGB instead of YCbCr: encoders do this to keep every sample."""
    at = data.find(b"colrnclx")
    return at >= 0 and data[at + 12 : at + 14] == b"\0\0"


def check_types(data: bytes) -> None:
    """Check that the types of all items are text, because pi-heif crashes if they are not.

    Raises:
        ValueError: one is not.
    """
    count = Count("boxes")
    for kind, body in _walk(data, count):
        for _, entry in _walk(body[6 if body[0] == 0 else 8 :], count) if kind == b"iinf" else ():
            at = 10 if entry[0] >= 3 else 8
            _, *described = bytes(entry[at + 4 :]).split(b"\0")  # the item's name, then the type of its content
            try:
                (bytes(entry[at : at + 4]) + b"".join(described[:1])).decode()
            except UnicodeDecodeError:
                raise ValueError("the type of one of its items is damaged") from None


def _check_exif(item: bytes) -> None:
    """Check an EXIF item, because libraries read it to compare its orientation with that of the file."""
    block = item[4 + int.from_bytes(item[:4], "big") :]
    check_values(block.removeprefix(b"Exif\0\0"))


def _walk(data: bytes | memoryview, count: Count, depth: int = 0) -> Iterator[tuple[bytes, memoryview]]:
    """Each box, including nested ones. Like decoders, this ignores trailing data that is not a valid box."""
    try:
        for kind, body in boxes(data):
            count.add()
            yield kind, body
            if kind in _INSIDE and depth < 10:
                yield from _walk(body[_INSIDE[kind] :], count, depth + 1)
    except ValueError:
        return


def _note(found: _Found, kind: bytes, body: memoryview, room: Room, count: Count) -> None:
    if kind == b"ispe":
        width, height = struct.unpack_from(">II", body, 4)
        found.sizes.add((height, width))
    elif kind in (b"av01", b"hvc1", b"hev1") and len(body) > 28:  # the size of a track
        width, height = struct.unpack_from(">HH", body, 24)
        found.sizes.add((height, width))
    elif kind == b"hvcC":
        found.coded += hevc_size(bytes(body))
    elif kind == b"colr" and bytes(body[:4]) in (b"prof", b"rICC"):
        found.profiles += len(body)
    elif kind == b"stsz":
        Count("frames", MAX_FRAMES).add(struct.unpack_from(">I", body, 8)[0])
    elif kind in (b"stts", b"ctts", b"stsc", b"stco", b"co64", b"stss"):
        count.add(len(body) // 4)
        if kind in (b"stco", b"co64") and len(body) >= (12 if kind == b"stco" else 16):
            found.chunks.append(struct.unpack_from(">I" if kind == b"stco" else ">Q", body, 8)[0])
    elif kind == b"iinf":
        found.kinds |= _kinds(body, count)
    elif kind == b"iref":
        _note_references(found, body, count)
    elif kind == b"iloc":
        found.places |= _places(body, count)


def _kinds(body: memoryview, count: Count) -> dict[int, bytes]:
    """Number and type of each item."""
    found = {}
    for _, entry in _walk(body[6 if body[0] == 0 else 8 :], count):
        wide = entry[0] >= 3
        (number,) = struct.unpack_from(">I" if wide else ">H", entry, 4)
        found[number] = bytes(entry[10:14] if wide else entry[8:12])
    return found


def _note_references(found: _Found, body: memoryview, count: Count) -> None:
    """Note from which items an item is composed, and how many pictures it describes."""
    size = 2 if body[0] == 0 else 4
    for kind, entry in _walk(body[4:], count):
        (items,) = struct.unpack_from(">H", entry, size)
        count.add(items)
        number = int.from_bytes(entry[:size], "big")
        if kind == b"dimg":
            numbers = [int.from_bytes(entry[at : at + size], "big") for at in range(size + 2, len(entry), size)]
            found.inputs.setdefault(number, []).extend(numbers[:items])
        elif kind == b"cdsc":
            found.described[number] = found.described.get(number, 0) + items


def _places(body: memoryview, count: Count) -> dict[int, list[tuple[int, int]]]:
    """Offset in the file and length of each item's pieces. The offset is -1 if a piece is not in this file."""
    version = body[0]
    lengths = (body[4] >> 4, body[4] & 15, body[5] >> 4, body[5] & 15 if version else 0)
    offset_size, length_size, base_size, index_size = lengths
    at = 6
    places: dict[int, list[tuple[int, int]]] = {}

    def number(size: int) -> int:
        nonlocal at
        at += size
        if at > len(body):
            raise ValueError("the file is truncated")
        return int.from_bytes(body[at - size : at], "big")

    for _ in range(number(4 if version == 2 else 2)):
        count.add()
        item = number(4 if version == 2 else 2)
        elsewhere = bool(number(2) & 15) if version else False
        elsewhere = bool(number(2)) or elsewhere  # the file that contains it; 0 is this one
        base = number(base_size)
        extents = number(2)
        count.add(extents)
        pieces = []
        for _ in range(extents):
            number(index_size)
            offset, length = number(offset_size), number(length_size)
            pieces.append((-1 if elsewhere else base + offset, length))
        places[item] = pieces
    return places


def _av1_sizes(found: _Found, data: bytes) -> Iterator[tuple[int, int]]:
    """Height and width of each coded AV1 picture: of items, and of the first picture of a track."""
    starts = [places[0][0] for item, places in found.places.items() if places and found.kinds.get(item) == b"av01"]
    for start in (*starts, *found.chunks):
        if 0 <= start < len(data) and (size := av1_size(data[start : start + 512])) is not None:
            yield size
