"""XMP that does not fit into one JPEG segment: an extension in pieces, named by its MD5 (XMP Specification, part 3)."""

from __future__ import annotations

import hashlib
import struct

from hasn_cli.images.xmp import Name

HEADER = b"http://ns.adobe.com/xmp/extension/\0"
EXTENSION_NAME: Name = ("http://ns.adobe.com/xmp/note/", "HasExtendedXMP")
_PIECE = 65_000
_MOST = 256 * 1024 * 1024


def join_extension(bodies: tuple[bytes, ...]) -> bytes | None:
    """Join the extension from the bodies of its segments. None if a part of it is missing or damaged."""
    pieces: dict[int, bytes] = {}
    names, lengths = set(), set()
    for body in bodies:
        head = body[len(HEADER) :]
        if len(head) < 40:
            return None
        names.add(head[:32])
        length, offset = struct.unpack_from(">II", head, 32)
        lengths.add(length)
        pieces[offset] = head[40:]
    joined = b"".join(pieces[offset] for offset in sorted(pieces))
    if len(names) != 1 or lengths != {len(joined)} or len(joined) > _MOST:
        return None
    digest = hashlib.md5(joined, usedforsecurity=False).hexdigest().upper().encode()
    return joined if names == {digest} else None


def split_extension(data: bytes) -> tuple[tuple[bytes, ...], str]:
    """Split an extension into the bodies of segments. Also returns the name by which the packet must refer to it."""
    name = hashlib.md5(data, usedforsecurity=False).hexdigest().upper()
    bodies = [
        HEADER + name.encode() + struct.pack(">II", len(data), at) + data[at : at + _PIECE]
        for at in range(0, len(data), _PIECE)
    ]
    return tuple(bodies), name
