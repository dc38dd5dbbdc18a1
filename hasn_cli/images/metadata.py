"""Corrects metadata that turning or enlarging a picture makes wrong. Everything else stays the same, byte for byte."""

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

INCHES_PER_METRE = 1 / 0.0254
_XMP_ORIENTATION = ("http://ns.adobe.com/tiff/1.0/", "Orientation")


def apply_orientation(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror H×W×C pixels so that they are shown as an EXIF orientation (1 to 8) says."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def orientation_of(exif: bytes | None) -> int:
    """The orientation that an EXIF block states, 1 to 8; 1 if it states none or an invalid one."""
    block = _parse(exif)
    value = block.number(block.first, ORIENTATION) if block else None
    return value if value is not None and 1 <= value <= 8 else 1


def upright(metadata: Metadata, size: tuple[int, int], orientation: int | None = None) -> Metadata:
    """The metadata of a picture whose orientation has been applied. Every stated orientation becomes 1.

    Places and sizes in EXIF and XMP are turned too. Broken metadata is left out, and so are pointers to other parts of
    the file, because those parts are not copied; `notices` names them. If only EXIF states a resolution, it becomes the
    picture's `dpi`, for formats that store it elsewhere.

    Args:
        metadata: as it was stored.
        size: (height, width) before the orientation is applied.
        orientation: the orientation that has been applied, 1 to 8; by default the one that EXIF states. If it swaps
            rows and columns, the horizontal and the vertical resolution are swapped too.
    """
    metadata = _whole(metadata)
    orientation = orientation_of(metadata.exif) if orientation is None else orientation
    geometry = Geometry.turning(orientation, size)
    block = _parse(metadata.exif)
    lost: tuple[str, ...] = ()
    if block is not None:
        block.set_number(block.first, ORIENTATION, 1)
        if geometry.swaps_axes:
            block.exchange(block.first, X_RESOLUTION, Y_RESOLUTION)
        lost = follow_in_exif(block, geometry)
    if geometry.swaps_axes and metadata.dpi is not None:
        metadata = replace(metadata, dpi=metadata.dpi[::-1])
    if metadata.dpi is None and block is not None:
        metadata = replace(metadata, dpi=_resolution(block))
    metadata = replace(metadata, exif=bytes(block.data) if block else None, size=geometry.after)
    return with_notices(_with_xmp_turned(metadata, geometry), *_lost(lost))


def applied(metadata: Metadata, size: tuple[int, int]) -> Metadata:
    """Like `upright`, for a picture that its decoder has already turned to this (height, width) as EXIF says."""
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
    if GAIN_MAP in dropped:  # it is one of the further pictures after a JPEG, so name it only once
        metadata = replace(metadata, notices=tuple(n for n in metadata.notices if n != left_out(OTHERS)))
    return with_notices(metadata, *notices, *_lost(lost))


def _edited(metadata: Metadata, edit: Callable[[Packet], None]) -> Metadata:
    """Edit the XMP packet and its extension."""
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
    """Remove the extension of a JPEG's XMP, and the reference to it from the packet."""
    if not metadata.extended_xmp:
        return metadata

    def edit(packet: Packet) -> None:
        for node in list(packet.find(EXTENSION_NAME)):
            packet.remove(node)

    metadata = _edited(replace(metadata, extended_xmp=()), edit)
    return with_notices(metadata, left_out(why))


def left_out(what: str) -> str:
    """The notice for something that is not copied to the output."""
    return f"its {what} {'are' if what.endswith(('s', 'data')) else 'is'} left out"


def _lost(names: tuple[str, ...]) -> list[str]:
    return [f"left out, because it would no longer be true: {', '.join(dict.fromkeys(names))}"] if names else []


def with_notices(metadata: Metadata, *notices: str) -> Metadata:
    """Add notices for the user, each only once."""
    if not notices:
        return metadata
    return replace(metadata, notices=tuple(dict.fromkeys(metadata.notices + notices)))


def with_whole_profile(metadata: Metadata) -> Metadata:
    """Remove a broken profile; for readers that convert colours with it."""
    if metadata.icc is None or is_profile(metadata.icc):
        return metadata
    return with_notices(replace(metadata, icc=None), left_out("broken colour profile"))


def _whole(metadata: Metadata) -> Metadata:
    """Remove the broken pieces of metadata."""
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
    """Remove the orientation from an EXIF block; for AVIF, because Pillow rewrites a block that has one."""
    block = _parse(exif)
    if block is None:
        return exif
    block.remove(block.first, ORIENTATION)
    return bytes(block.data)


def resized(metadata: Metadata, size: tuple[int, int], before: tuple[int, int] | None = None) -> Metadata:
    """The metadata of an enlarged picture: places and sizes in pixels are updated, and the old thumbnail is removed.

    Args:
        metadata: the metadata before.
        size: (height, width) of the enlarged picture.
        before: (height, width) to which the metadata refers; by default `metadata.size`.
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
    """A resolution as whole numbers of pixels per `length` inches; None if one of them is not between 1 and `most`."""
    if dpi is None or not all(0.5 < value * length <= most for value in dpi):
        return None
    across, down = (round(value * length) for value in dpi)
    return across, down


def _resolution(block: Exif) -> tuple[float, float] | None:
    """The horizontal and vertical pixels per inch that EXIF states, or None."""
    unit = block.number(block.first, RESOLUTION_UNIT)
    length = {None: 1, 2: 1, 3: 2.54}.get(unit)  # inches, or centimetres
    across, down = (block.ratio(block.first, tag) for tag in (X_RESOLUTION, Y_RESOLUTION))
    return (across * length, down * length) if length and across and down else None


def decoded_comment(data: bytes) -> str:
    """Decode a comment of a format that does not define an encoding: UTF-8, or Latin-1, which accepts any bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _parse(exif: bytes | None) -> Exif | None:
    """Parse a block. None if it is missing, or too broken to be read and passed on."""
    try:
        block = Exif(exif or b"")
        if block.link(block.first) is None:
            return None
        next(block.entries(block.first), None)
    except (ValueError, struct.error):
        return None
    return block
