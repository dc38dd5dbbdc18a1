"""Metadata corrected where turning and enlarging make it untrue; everything else stays byte by byte as it was."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hasn_cli.images.color import is_profile
from hasn_cli.images.exif import ORIENTATION, RESOLUTION_UNIT, X_RESOLUTION, Y_RESOLUTION, Exif
from hasn_cli.images.extended_xmp import EXTENSION_NAME, join_extension, split_extension
from hasn_cli.images.geometry import Geometry
from hasn_cli.images.iptc import is_iptc
from hasn_cli.images.picture import Metadata, Pixels
from hasn_cli.images.pixel_properties import follow, follow_in_exif
from hasn_cli.images.pointers import GAIN_MAP, OTHERS, drop_pointers
from hasn_cli.images.xmp import Packet

_XMP_ORIENTATION = ("http://ns.adobe.com/tiff/1.0/", "Orientation")


def apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror H×W×C pixels as EXIF's orientation 1 to 8 says they are to be shown."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def orientation_of(exif: bytes | None) -> int:
    """The orientation that an EXIF block states, 1 to 8; 1 where it states none or nonsense."""
    block = _parse(exif)
    value = block.number(block.first, ORIENTATION) if block else None
    return value if value is not None and 1 <= value <= 8 else 1


def upright(metadata: Metadata, size: tuple[int, int], orientation: int | None = None) -> Metadata:
    """The metadata of a picture whose orientation has been applied: wherever one is stated it becomes 1.

    Places and sizes in EXIF and XMP follow the turn. What is broken is left out, and so is what points to other parts
    of the file, none of which come along; `notices` names them. Where EXIF alone states a resolution, it becomes the
    picture's `dpi`, for formats that keep it elsewhere.

    Args:
        metadata: as it was stored.
        size: (height, width) before the orientation is applied.
        orientation: what has been applied, 1 to 8; by default what EXIF states. Where it lays the picture on its side,
            the horizontal resolution becomes the vertical one.
    """
    metadata = _whole(metadata)
    orientation = orientation_of(metadata.exif) if orientation is None else orientation
    geometry = Geometry.turning(orientation, size)
    block = _parse(metadata.exif)
    lost: tuple[str, ...] = ()
    if block is not None:
        block.set_number(block.first, ORIENTATION, 1)
        if geometry.aside:
            block.exchange(block.first, X_RESOLUTION, Y_RESOLUTION)
        lost = follow_in_exif(block, geometry)
    if geometry.aside and metadata.dpi is not None:
        metadata = replace(metadata, dpi=metadata.dpi[::-1])
    if metadata.dpi is None and block is not None:
        metadata = replace(metadata, dpi=_resolution(block))
    metadata = replace(metadata, exif=bytes(block.data) if block else None, size=geometry.after)
    return with_notices(_with_xmp_turned(metadata, geometry), *_lost(lost))


def applied(metadata: Metadata, size: tuple[int, int]) -> Metadata:
    """As `upright`, of a picture that its decoder has turned to this (height, width); EXIF states a copy of that."""
    orientation = orientation_of(metadata.exif)
    return upright(metadata, size if orientation < 5 else size[::-1], orientation)


def _with_xmp_turned(metadata: Metadata, geometry: Geometry) -> Metadata:
    dropped: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def edit(packet: Packet) -> None:
        nonlocal dropped, lost
        for node in packet.find(_XMP_ORIENTATION):
            packet.set(node, "1")
        dropped += drop_pointers(packet)
        lost += follow(packet, geometry)

    metadata = _edited(metadata, edit)
    notices = [left_out(kind) for kind in dict.fromkeys(dropped)]
    if GAIN_MAP in dropped:  # which is one of the further pictures behind a JPEG
        metadata = replace(metadata, notices=tuple(n for n in metadata.notices if n != left_out(OTHERS)))
    return with_notices(metadata, *notices, *_lost(lost))


def _edited(metadata: Metadata, edit: Callable[[Packet], None]) -> Metadata:
    """The metadata with its XMP, and the extension of it, edited."""
    if metadata.xmp is None:
        return metadata
    try:
        packet = Packet(metadata.xmp)
    except ValueError:
        return with_notices(replace(metadata, xmp=None, extended_xmp=()), left_out("broken XMP"))
    edit(packet)
    extension = metadata.extended_xmp
    if extension and (joined := join_extension(extension)) is not None:
        with contextlib.suppress(ValueError):
            more = Packet(joined)
            edit(more)
            if more.to_bytes() != joined:
                extension, name = split_extension(more.to_bytes())
                for node in packet.find(EXTENSION_NAME):
                    packet.set(node, name)
    return replace(metadata, xmp=packet.to_bytes(), extended_xmp=extension)


def without_extension(metadata: Metadata, why: str = "extension of the XMP, which only JPEG can hold,") -> Metadata:
    """The metadata without the extension of JPEG's XMP; the packet does not refer to it then."""
    if not metadata.extended_xmp:
        return metadata

    def edit(packet: Packet) -> None:
        for node in list(packet.find(EXTENSION_NAME)):
            packet.remove(node)

    metadata = _edited(replace(metadata, extended_xmp=()), edit)
    return with_notices(metadata, left_out(why))


def left_out(what: str) -> str:
    """The words for something that does not come along."""
    return f"its {what} {'are' if what.endswith(('s', 'data')) else 'is'} left out"


def _lost(names: tuple[str, ...]) -> list[str]:
    return [f"left out, since what it states would be untrue: {', '.join(dict.fromkeys(names))}"] if names else []


def with_notices(metadata: Metadata, *notices: str) -> Metadata:
    """The metadata, and what is to be told of it; nothing is told twice."""
    if not notices:
        return metadata
    return replace(metadata, notices=tuple(dict.fromkeys(metadata.notices + notices)))


def with_whole_profile(metadata: Metadata) -> Metadata:
    """The metadata without a profile that is broken; for readers that convert by it."""
    if metadata.icc is None or is_profile(metadata.icc):
        return metadata
    return with_notices(replace(metadata, icc=None), left_out("broken colour profile"))


def _whole(metadata: Metadata) -> Metadata:
    """The metadata without the pieces that are broken."""
    checks: tuple[tuple[str, str, Callable[[bytes], bool]], ...] = (
        ("exif", "EXIF data", lambda data: _parse(data) is not None),
        ("iptc", "IPTC data", is_iptc),
    )
    metadata = with_whole_profile(metadata)
    for name, title, fits in checks:
        value = getattr(metadata, name)
        if value is not None and not fits(value):
            changes: dict[str, Any] = {name: None}
            metadata = with_notices(replace(metadata, **changes), left_out(f"broken {title}"))
    if metadata.extended_xmp and join_extension(metadata.extended_xmp) is None:
        return without_extension(metadata, "broken extension of the XMP")
    return metadata


def without_orientation(exif: bytes) -> bytes:
    """An EXIF block that states no orientation; for AVIF, where Pillow would else write the block anew."""
    block = _parse(exif)
    if block is None:
        return exif
    block.remove(block.first, ORIENTATION)
    return bytes(block.data)


def resized(metadata: Metadata, size: tuple[int, int], before: tuple[int, int] | None = None) -> Metadata:
    """The metadata of a picture that now has this (height, width): no old thumbnail, true places and sizes in pixels.

    Args:
        metadata: of the picture before.
        size: as it is now.
        before: (height, width) that the metadata is about; by default what it says itself.
    """
    geometry = Geometry(1, before or metadata.size or size, size)
    block = _parse(metadata.exif)
    lost: tuple[str, ...] = ()
    if block is not None:
        lost = follow_in_exif(block, geometry)
        block.drop_thumbnail()

    def edit(packet: Packet) -> None:
        nonlocal lost
        lost += follow(packet, geometry)

    metadata = replace(metadata, exif=bytes(block.data) if block else None, size=size)
    return with_notices(_edited(metadata, edit), *_lost(lost))


def whole_resolution(dpi: tuple[float, float] | None, length: float, most: int) -> tuple[int, int] | None:
    """A resolution as whole numbers of pixels per `length` inches; None where one of them is not from 1 to `most`."""
    if dpi is None or not all(0.5 < value * length <= most for value in dpi):
        return None
    across, down = (round(value * length) for value in dpi)
    return across, down


def _resolution(block: Exif) -> tuple[float, float] | None:
    """Horizontal and vertical pixels per inch as EXIF states them."""
    unit = block.number(block.first, RESOLUTION_UNIT)
    length = {None: 1, 2: 1, 3: 2.54}.get(unit)  # inches, or centimetres
    across, down = (block.ratio(block.first, tag) for tag in (X_RESOLUTION, Y_RESOLUTION))
    return (across * length, down * length) if length and across and down else None


def decoded_comment(data: bytes) -> str:
    """A comment of a format that says nothing of its encoding: UTF-8, or else Latin-1, which takes any bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _parse(exif: bytes | None) -> Exif | None:
    """The block, or None where it is too broken to be read, and so to be handed on."""
    try:
        block = Exif(exif or b"")
        if block.link(block.first) is None:
            return None
        next(block.entries(block.first), None)
    except (ValueError, struct.error):
        return None
    return block
