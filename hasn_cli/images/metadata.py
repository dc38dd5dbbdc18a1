"""Metadata corrected where turning and enlarging make it untrue; everything else stays byte by byte as it was."""

from __future__ import annotations

import re
import struct
from dataclasses import replace

import numpy as np

from hasn_cli.images.exif import ORIENTATION, RESOLUTION_UNIT, X_RESOLUTION, Y_RESOLUTION, Exif
from hasn_cli.images.picture import Metadata, Pixels


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


def upright(metadata: Metadata, orientation: int | None = None) -> Metadata:
    """The metadata of a picture whose orientation has been applied: wherever one is stated it becomes 1.

    Where EXIF alone states a resolution, it becomes the picture's `dpi`, for formats that keep it elsewhere.

    Args:
        metadata: as it was stored.
        orientation: what has been applied, 1 to 8; by default what EXIF states. Where it lays the picture on its side,
            the horizontal resolution becomes the vertical one.
    """
    aside = (orientation_of(metadata.exif) if orientation is None else orientation) >= 5
    block = _parse(metadata.exif)
    if block is not None:
        block.set_number(block.first, ORIENTATION, 1)
        if aside:
            block.exchange(block.first, X_RESOLUTION, Y_RESOLUTION)
    if aside and metadata.dpi is not None:
        metadata = replace(metadata, dpi=metadata.dpi[::-1])
    if metadata.dpi is None and block is not None:
        metadata = replace(metadata, dpi=_resolution(block))
    xmp = metadata.xmp and _set_in_xmp(metadata.xmp, b"tiff:Orientation", 1)
    return replace(metadata, exif=bytes(block.data) if block else None, xmp=xmp)


def without_orientation(exif: bytes) -> bytes:
    """An EXIF block that states no orientation; for AVIF, where Pillow would else write the block anew."""
    block = _parse(exif)
    if block is None:
        return exif
    block.remove(block.first, ORIENTATION)
    return bytes(block.data)


def resized(metadata: Metadata, size: tuple[int, int]) -> Metadata:
    """The metadata of a picture that now has this (height, width): no old thumbnail, the true number of pixels."""
    height, width = size
    block = _parse(metadata.exif)
    if block is not None:
        block.set_size(height, width)
        block.drop_thumbnail()
    xmp = metadata.xmp
    if xmp:
        for name, value in (("tiff:ImageWidth", width), ("tiff:ImageLength", height)):
            xmp = _set_in_xmp(xmp, name.encode(), value)
        for name, value in (("exif:PixelXDimension", width), ("exif:PixelYDimension", height)):
            xmp = _set_in_xmp(xmp, name.encode(), value)
    return replace(metadata, exif=bytes(block.data) if block else None, xmp=xmp)


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
        next(block.entries(block.first), None)
    except (ValueError, struct.error):
        return None
    return block


def _set_in_xmp(xmp: bytes, name: bytes, value: int) -> bytes:
    """Overwrite an integer property of an XMP packet, written as an attribute or as an element."""
    number = str(value).encode()
    xmp = re.sub(rb"(\b" + name + rb"\s*=\s*[\"'])\s*\d+\s*([\"'])", rb"\g<1>" + number + rb"\g<2>", xmp)
    return re.sub(rb"(<" + name + rb">)\s*\d+\s*(</" + name + rb">)", rb"\g<1>" + number + rb"\g<2>", xmp)
