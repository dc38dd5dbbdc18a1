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


def is_iptc(records: bytes) -> bool:
    """Whether bytes are whole IPTC-IIM records, one after the other; zeros may fill up after them."""
    at = 0
    while at < len(records) and records[at] == 0x1C:
        if at + 5 > len(records):
            return False
        (length,) = struct.unpack_from(">H", records, at + 3)
        at += 5
        if length & 0x8000:  # so many bytes state the length
            count = length & 0x7FFF
            length = int.from_bytes(records[at : at + count], "big")
            at += count
        at += length
        if at > len(records):
            return False
    return at > 0 and not records[at:].strip(b"\0")


def photoshop_from_iptc(records: bytes) -> bytes:
    """IPTC-IIM records as the one Photoshop resource, without "Photoshop 3.0" before it."""
    head = b"8BIM" + struct.pack(">HHL", _IPTC_RESOURCE, 0, len(records))
    return head + records + b"\0" * (len(records) % 2)
