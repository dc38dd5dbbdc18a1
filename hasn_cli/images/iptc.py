"""IPTC records, which most formats store inside a Photoshop image resource (Adobe, Photoshop File Formats)."""

from __future__ import annotations

import struct

_IPTC_RESOURCE = 0x0404


def iptc_from_photoshop(resources: bytes) -> bytes | None:
    """Find the IPTC-IIM records in Photoshop resources (with or without "Photoshop 3.0" before them), or None."""
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
    """Whether the bytes are complete IPTC-IIM records, one after the other. Zeros may follow as padding."""
    at = 0
    while at < len(records) and records[at] == 0x1C:
        if at + 5 > len(records):
            return False
        (length,) = struct.unpack_from(">H", records, at + 3)
        at += 5
        if length & 0x8000:  # the other bits say how many bytes the length takes
            count = length & 0x7FFF
            length = int.from_bytes(records[at : at + count], "big")
            at += count
        at += length
        if at > len(records):
            return False
    return at > 0 and not records[at:].strip(b"\0")


def photoshop_from_iptc(records: bytes) -> bytes:
    """Wrap IPTC-IIM records in a single Photoshop resource, without "Photoshop 3.0" before it."""
    head = b"8BIM" + struct.pack(">HHL", _IPTC_RESOURCE, 0, len(records))
    return head + records + b"\0" * (len(records) % 2)
