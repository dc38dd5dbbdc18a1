"""Where the frames of an animated AVIF lie in its file (ISO/IEC 14496-12, 8.7), so that one cut off can be named."""

from __future__ import annotations

import struct

from hasn_cli.images.codecs.boxes import boxes, declared_length

_MAX_PADDING = 1 << 28


def mended(data: bytes) -> tuple[bytes, int | None]:
    """A file that breaks off, filled up with zeros to its length, and which frame is the first that lacks bytes.

    Returns:
        the file itself and None where nothing is missing, or where it cannot be mended.
    """
    length = declared_length(data)
    if not len(data) < length <= len(data) + _MAX_PADDING:
        return data, None
    try:
        places = _places(data.ljust(length, b"\0"))
    except (ValueError, KeyError, IndexError, struct.error):
        return data, None
    cut = next((index for index, (offset, size) in enumerate(places) if offset + size > len(data)), None)
    return (data.ljust(length, b"\0"), cut) if cut else (data, None)


def _places(data: bytes) -> list[tuple[int, int]]:
    """Offset and length of each frame of the first track."""
    table: dict[bytes, memoryview] = {}
    view: memoryview = memoryview(data)
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        view = dict(reversed(list(boxes(view))))[kind]
    table = dict(boxes(view))
    uniform, count = struct.unpack_from(">II", table[b"stsz"], 4)
    sizes = [uniform] * count if uniform else list(struct.unpack_from(f">{count}I", table[b"stsz"], 12))
    wide = b"co64" in table
    chunks = table[b"co64" if wide else b"stco"]
    (chunk_count,) = struct.unpack_from(">I", chunks, 4)
    offsets = struct.unpack_from(f">{chunk_count}{'Q' if wide else 'I'}", chunks, 8)
    (runs,) = struct.unpack_from(">I", table[b"stsc"], 4)
    firsts = [struct.unpack_from(">III", table[b"stsc"], 8 + 12 * run) for run in range(runs)]
    places: list[tuple[int, int]] = []
    for number, offset in enumerate(offsets, 1):
        per_chunk = next(samples for first, samples, _ in reversed(firsts) if first <= number)
        for _ in range(per_chunk):
            if len(places) < len(sizes):
                places.append((offset, sizes[len(places)]))
                offset += sizes[len(places) - 1]
    return places
