"""Estimates the work to decode a JPEG 2000 codestream from its headers alone (ISO/IEC 15444-1, annex A and B).

A few bytes can declare a precinct or a code block for each pixel, or thousands of layers. For each of them, a decoder
allocates memory before it looks at the data.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from hasn_cli.images.limits import Count, TooMuch

_SIZ, _COD, _COC, _SOT, _SOD, _EOC = 0xFF51, 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_FEW = 65_536  # always allowed: a decoder handles this many quickly
_FEW_TILES = 4096  # always allowed; each tile takes about 10 KB
_TILE_SAMPLES = 1024  # the smallest average size of a tile: 32 × 32
_SAMPLES = 64  # the smallest average size of a precinct or block: 8 × 8; encoders use blocks of 32 × 32 or 64 × 64
_PACKET_SAMPLES = 16  # the smallest average size of a packet; each precinct has one packet per layer
_WHOLE = 15  # the exponent of a precinct's sides if none is stated


@dataclass
class _Style:
    """The finest division that any header states for each level (0 is the largest), and the largest layer count."""

    layers: int = 1
    blocks: dict[int, int] = field(default_factory=dict)  # the exponent of a block's area
    precincts: dict[int, tuple[int, int]] = field(default_factory=dict)  # exponents of its width and height

    def add(self, level: int, block: int, across: int, down: int) -> None:
        """Add the values that one header states for a level."""
        known = self.precincts.get(level, (across, down))
        self.precincts[level] = (min(known[0], across), min(known[1], down))
        self.blocks[level] = min(self.blocks.get(level, block), block)


def check(data: bytes) -> None:
    """Check that a codestream is not divided more finely than its pixels justify.

    Raises:
        ValueError: the codestream is broken.
        TooMuch: it is divided too finely.
    """
    head = memoryview(data)
    x1, y1, x0, y0, across, down, tile_x, tile_y = struct.unpack_from(">8I", head, 8)
    (components,) = struct.unpack_from(">H", head, 40)
    if not (across and down and tile_x <= x0 < x1 and tile_y <= y0 < y1):
        raise ValueError("its header states an invalid size")
    tiles = -((x1 - tile_x) // -across) * -((y1 - tile_y) // -down)
    samples = (x1 - x0) * (y1 - y0) * components
    style = _finest(data)
    _bound("tiles", tiles * components, _FEW_TILES + samples // _TILE_SAMPLES)
    width, height = min(across, x1 - x0), min(down, y1 - y0)
    precincts = blocks = 0
    for level, (precinct_wide, precinct_high) in style.precincts.items():
        wide, high = -(width // -(1 << level)), -(height // -(1 << level))
        # a tile may begin in the middle of a precinct, and so extend into one more in each direction
        more = 0 if tiles == 1 and (x0, y0) == (0, 0) else 1
        rows, columns = ((high - 1) >> precinct_high) + 1 + more, ((wide - 1) >> precinct_wide) + 1 + more
        precincts += rows * columns if min(precinct_wide, precinct_high) < _WHOLE else 1
        blocks += (wide * high >> style.blocks[level]) + 1
    precincts, blocks = precincts * tiles * components, blocks * tiles * components
    _bound("precincts", precincts, _FEW + samples // _SAMPLES)
    _bound("blocks", blocks, _FEW + samples // _SAMPLES)
    _bound("packets", precincts * style.layers, _FEW + samples // _PACKET_SAMPLES)


def _bound(what: str, count: int, most: int) -> None:
    if count > most:
        raise TooMuch(f"its pixels are divided into {count} {what}")


def _finest(data: bytes) -> _Style:
    """Combine the values of all headers, including those of tiles."""
    style = _Style()
    for marker, body in _segments(data):
        if marker == _COD:
            (layers,) = struct.unpack_from(">H", body, 2)
            style.layers = max(style.layers, layers)
            _add_style(style, bytes(body[5:]), stated=bool(body[0] & 1))
        elif marker == _COC:  # the component's number takes one byte if there are fewer than 257
            _add_style(style, bytes(body[2:]), stated=bool(body[1] & 1))
    return style


def _add_style(style: _Style, body: bytes, stated: bool) -> None:
    levels, width, height = body[0], (body[1] & 15) + 2, (body[2] & 15) + 2
    if levels > 32 or width + height > 12 or (stated and len(body) < 6 + levels):
        raise ValueError("its header states an invalid coding style")
    sizes = [(byte & 15, byte >> 4) for byte in body[5 : 6 + levels]] if stated else []
    for level in range(levels + 1):
        across, down = sizes[levels - level] if stated else (_WHOLE, _WHOLE)
        # except on the lowest level, a precinct has three bands of half its size, which also limit the size of blocks
        halved = 0 if level == levels else 1
        block = min(width, max(0, across - halved)) + min(height, max(0, down - halved))
        style.add(level, block, across, down)


def _segments(data: bytes) -> Iterator[tuple[int, memoryview]]:
    """Markers and bodies of the segments in the main header and in the headers of all tile-parts.

    Raises:
        ValueError: the structure is broken.
        TooMuch: there are too many segments.
    """
    view = memoryview(data)
    count = Count("segments")
    at, part_end = 2, 0
    while at + 4 <= len(view):
        count.add()
        marker, length = struct.unpack_from(">HH", view, at)
        if marker == _EOC:
            return
        if marker == _SOD:
            if part_end == 0 or part_end <= at:  # the last tile-part, which extends to the end
                return
            at = part_end
            continue
        if marker < 0xFF00 or length < 2 or at + 2 + length > len(view):
            raise ValueError("its codestream is broken")
        if marker == _SOT:
            (size,) = struct.unpack_from(">I", view, at + 6)
            part_end = at + size if size else 0
        yield marker, view[at + 4 : at + 2 + length]
        at += 2 + length
