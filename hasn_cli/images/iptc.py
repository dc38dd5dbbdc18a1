"""IPTC records, which most formats hold wrapped in a Photoshop image resource (Adobe, Photoshop File Formats)."""

from __future__ import annotations

import struct

_IPTC_RESOURCE = 0x0404


def iptc_from_photoshop(resources: bytes) -> bytes | None:
    """The bare IPTC-IIM records among Photoshop resources (with or without "Photoshop 3.0"), or None."""
    data = resources.removeprefix(b"Photoshop 3.0\0")
    at = 0
    while data[at : at + 4] == b"8BIM" and at + 12 <= len(data):
        (number,) = struct.unpack_from(">H", data, at + 4)
        name_length = data[at + 6] + 1
        at += 6 + name_length + name_length % 2
        if at + 4 > len(data):
            return None
        (length,) = struct.unpack_from(">L", data, at)
        if number == _IPTC_RESOURCE:
            return data[at + 4 : at + 4 + length]
        at += 4 + length + length % 2
    return None


def photoshop_from_iptc(records: bytes) -> bytes:
    """IPTC-IIM records as the one Photoshop resource, without "Photoshop 3.0" before it."""
    head = b"8BIM" + struct.pack(">HHL", _IPTC_RESOURCE, 0, len(records))
    return head + records + b"\0" * (len(records) % 2)
