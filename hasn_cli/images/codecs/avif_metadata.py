"""Adds a profile, EXIF and XMP to a still AVIF that libavif wrote without them (ISO/IEC 14496-12 and 23008-12).

Pillow's writer supports metadata but always converts colours to YCbCr; that of imagecodecs keeps RGB but does not
support metadata.
"""

from __future__ import annotations

import struct

from hasn_cli.images.codecs.boxes import box, boxes
from hasn_cli.images.picture import Metadata

_FULL = bytes(4)  # version 0, no flags
_XMP_TYPE = b"application/rdf+xml\0"


def with_metadata(data: bytes, metadata: Metadata) -> bytes:
    """Add the metadata to the file. The bytes of the pixels do not change.

    Raises:
        ValueError: the file does not have the structure that libavif gives to still pictures.
    """
    file = {kind: bytes(body) for kind, body in boxes(data)}
    parts = {kind: bytes(body) for kind, body in boxes(file[b"meta"][4:])}
    if list(file) != [b"ftyp", b"meta", b"mdat"] or parts[b"iloc"][:6] != _FULL + b"\x44\0":
        raise ValueError("the AVIF has an unknown structure")
    items = []
    if metadata.exif:
        items.append((b"Exif\0", bytes(4) + metadata.exif))
    if metadata.xmp:
        items.append((b"mime\0" + _XMP_TYPE, metadata.xmp))
    if metadata.icc:
        parts[b"iprp"] = _with_profile(parts[b"iprp"], metadata.icc)
    (first,) = struct.unpack_from(">H", parts[b"pitm"], 4)
    numbers = range(_last_item(parts[b"iinf"]) + 1, _last_item(parts[b"iinf"]) + 1 + len(items))
    parts[b"iinf"] = _with_items(parts[b"iinf"], [kind for kind, _ in items], numbers)
    described = [box(b"cdsc", struct.pack(">HHH", number, 1, first)) for number in numbers]
    parts = {b"iref": _FULL} | parts if items else parts
    if items:
        parts[b"iref"] += b"".join(described)
    bodies = [body for _, body in items]
    # offsets count from the beginning of the file, so they change with the length of the box that states them
    grown = len(_meta(parts, _with_places(parts[b"iloc"], 0, 0, bodies, numbers))) - len(box(b"meta", file[b"meta"]))
    places = _with_places(parts[b"iloc"], grown, len(data) + grown + 8, bodies, numbers)
    added = box(b"mdat", *bodies) if items else b""
    return box(b"ftyp", file[b"ftyp"]) + _meta(parts, places) + box(b"mdat", file[b"mdat"]) + added


def _meta(parts: dict[bytes, bytes], places: bytes) -> bytes:
    order = [kind for kind in (b"hdlr", b"pitm", b"iloc", b"iinf", b"iref", b"iprp") if kind in parts]
    return box(b"meta", _FULL, *(box(kind, places if kind == b"iloc" else parts[kind]) for kind in order))


def _last_item(iinf: bytes) -> int:
    return max(int.from_bytes(body[4:6], "big") for _, body in boxes(iinf[6:]))


def _with_items(iinf: bytes, kinds: list[bytes], numbers: range) -> bytes:
    (count,) = struct.unpack_from(">H", iinf, 4)
    # version 2, number, no protection; then the kind, an empty name and fields that depend on the kind
    entries = [
        box(b"infe", b"\2\0\0\0", struct.pack(">HH", number, 0), kind)
        for number, kind in zip(numbers, kinds, strict=True)
    ]
    return iinf[:4] + struct.pack(">H", count + len(kinds)) + iinf[6:] + b"".join(entries)


def _with_places(iloc: bytes, shift: int, start: int, bodies: list[bytes], numbers: range) -> bytes:
    """The places of all items: the existing ones shifted, and the new ones from `start` on."""
    (count,) = struct.unpack_from(">H", iloc, 6)
    result, at = iloc[:6] + struct.pack(">H", count + len(bodies)), 8
    for _ in range(count):
        (extents,) = struct.unpack_from(">H", iloc, at + 4)
        result += iloc[at : at + 6]
        at += 6
        for offset, length in struct.iter_unpack(">II", iloc[at : at + 8 * extents]):
            result += struct.pack(">II", offset + shift, length)
        at += 8 * extents
    for number, body in zip(numbers, bodies, strict=True):
        result += struct.pack(">HHHII", number, 0, 1, start, len(body))
        start += len(body)
    return result


def _with_profile(iprp: bytes, icc: bytes) -> bytes:
    """Add a profile to the properties, and assign it to the main picture, whose entry is the first."""
    found = {kind: bytes(body) for kind, body in boxes(iprp)}
    properties, owners = found[b"ipco"], found[b"ipma"]
    index = sum(1 for _ in boxes(properties)) + 1
    end = 11 + owners[10]
    owners = owners[:10] + bytes([owners[10] + 1]) + owners[11:end] + bytes([index]) + owners[end:]
    return box(b"ipco", properties, box(b"colr", b"prof", icc)) + box(b"ipma", owners)
