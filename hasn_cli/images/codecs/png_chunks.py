"""PNG's chunks, and the compressed data in them. Both are verified before libpng reads them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from hasn_cli.images.limits import Count

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # by their names not critical, but the pixels depend on them
_PIECE = 1 << 20


def chunks(data: bytes, damaged: list[bytes] | None = None) -> Iterator[tuple[bytes, memoryview]]:
    """Each chunk's type and body, up to IEND.

    Args:
        data: the file.
        damaged: collects the types of chunks with a wrong checksum, if the pixels do not need them; these chunks are
            skipped.

    Raises:
        ValueError: the file ends before IEND, or a chunk that the pixels need has a wrong checksum.
        TooMuch: there are too many chunks.
    """
    view = memoryview(data)
    count = Count("chunks")
    at = len(SIGNATURE)
    while True:
        if at + 12 > len(data):
            raise ValueError("the file is truncated")
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 12 + length
        if end > len(data):
            raise ValueError("the file is truncated")
        kind = data[at + 4 : at + 8]
        count.add()
        if zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            if damaged is None or not kind[:1].islower() or kind in _PIXELS:
                raise ValueError(f"the checksum of chunk {kind.decode('latin-1')!r} is wrong")
            damaged.append(kind)
            at = end
            continue
        if kind == b"IEND":
            return
        yield kind, view[at + 8 : end - 4]
        at = end


def chunk(kind: bytes, body: bytes | memoryview) -> bytes:
    """Build one chunk, with its checksum."""
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(body)), kind, body, struct.pack(">I", checksum)))


def verified(data: list[memoryview], length: int) -> list[memoryview]:
    """Check that the data is complete, and remove bytes after its end. libpng would print warnings about both.

    Raises:
        ValueError, zlib.error: as for `unpack`.
    """
    unused = bytearray()
    for _ in unpack(data, length, unused):
        pass
    pieces = list(data)
    while unused and pieces:
        kept = max(0, len(pieces[-1]) - len(unused))
        del unused[: len(pieces[-1]) - kept]
        pieces[-1] = pieces[-1][:kept]
        if not kept:
            pieces.pop()
    return pieces


def unpack(data: list[memoryview], length: int, unused: bytearray | None = None) -> Iterator[bytes]:
    """Decompress data piece by piece. Bytes after the end of the compressed data are added to `unused`.

    Raises:
        ValueError, zlib.error: the data is corrupt, or does not unpack to `length` bytes.
    """
    worker = zlib.decompressobj()
    for packed in data:
        if worker.eof:
            if unused is not None:
                unused += packed
            continue
        rest: bytes | memoryview = packed
        while rest:
            piece = worker.decompress(rest, _PIECE)
            length -= len(piece)
            if length < 0:
                raise ValueError("it has more image data than pixels")
            yield piece
            rest = worker.unconsumed_tail
        if worker.eof and unused is not None:
            unused += worker.unused_data
    if length or not worker.eof:
        raise ValueError("its image data is truncated")
