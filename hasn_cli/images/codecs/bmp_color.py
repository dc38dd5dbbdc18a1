"""Reads the colour space of a BMP of version 4 or 5 (Microsoft, BITMAPV5HEADER)."""

from __future__ import annotations

import struct
from typing import Any

_HEADER = 14  # offset of the header
_CALIBRATED, _EMBEDDED = 0, int.from_bytes(b"MBED", "big")
_XYZ = 2.0**-30
_GAMMA = 2.0**-16


def read_colors(data: bytes) -> dict[str, Any]:
    """The profile, or primaries and gamma, as fields of `Metadata`; empty if the file states sRGB or nothing."""
    (size,) = struct.unpack_from("<L", data, _HEADER)
    if size < 108 or len(data) < _HEADER + size:
        return {}
    (space,) = struct.unpack_from("<L", data, _HEADER + 56)
    if space == _EMBEDDED and size >= 124:
        offset, length = struct.unpack_from("<LL", data, _HEADER + 112)
        profile = data[_HEADER + offset : _HEADER + offset + length]
        return {"icc": profile} if profile else {}
    if space != _CALIBRATED:
        return {}
    numbers = struct.unpack_from("<12l", data, _HEADER + 60)
    corners = [[value * _XYZ for value in numbers[at : at + 3]] for at in (0, 3, 6)]
    gammas = [value * _GAMMA for value in numbers[9:]]
    sums = [sum(corner) for corner in corners]
    if min(sums) <= 0 or min(gammas) <= 0:
        return {}
    white = [sum(column) for column in zip(*corners, strict=True)]
    points = [*_xy(white), *(value for corner in corners for value in _xy(corner))]
    return {"chromaticities": tuple(points), "gamma": 3 / sum(gammas)}


def _xy(xyz: list[float]) -> tuple[float, float]:
    return xyz[0] / sum(xyz), xyz[1] / sum(xyz)
