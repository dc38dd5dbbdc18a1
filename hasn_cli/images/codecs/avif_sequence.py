"""Finds the frames of an animated AVIF in its file (ISO/IEC 14496-12, 8.7), to report a frame that is cut off."""

from __future__ import annotations

import struct

from hasn_cli.images.codecs.boxes import boxes, declared_length
from hasn_cli.images.limits import MAX_FRAMES, TooMuch

_MAX_PADDING = 1 << 28


def mended(data: bytes) -> tuple[bytes, int | None]:
    """Pad a truncated file with zeros to its declared length, and find the first frame that is incomplete.

    Returns:
        The padded file and the index of that frame; the file itself and None if it is complete or cannot be mended.
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
    if count > MAX_FRAMES:
        raise TooMuch(f"it has more than {MAX_FRAMES} frames")
    sizes = [uniform] * count if uniform else list(struct.unpack_from(f">{count}I", table[b"stsz"], 12))
    wide = b"co64" in table
    chunks = table[b"co64" if wide else b"stco"]
    (chunk_count,) = struct.unpack_from(">I", chunks, 4)
    offsets = struct.unpack_from(f">{chunk_count}{'Q' if wide else 'I'}", chunks, 8)
    (runs,) = struct.unpack_from(">I", table[b"stsc"], 4)
    places: list[tuple[int, int]] = []
    run = samples = 0
    for number, offset in enumerate(offsets, 1):
        # runs of chunks with the same number of samples, in order; each run states its first chunk
        while run < runs and struct.unpack_from(">I", table[b"stsc"], 8 + 12 * run)[0] <= number:
            (samples,) = struct.unpack_from(">I", table[b"stsc"], 12 + 12 * run)
            run += 1
        for size in sizes[len(places) : len(places) + samples]:
            places.append((offset, size))
            offset += size
        if len(places) == len(sizes):
            break
    return places
