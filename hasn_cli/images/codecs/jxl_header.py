"""Reads the header of a JPEG XL codestream (ISO/IEC 18181-1, annex D): size, samples and colour.

libjxl converts XYB to the colours that the header names. If the header names them by a profile, libjxl returns linear
light with sRGB's primaries instead, with the bit depth of the header. `with_floats` changes that depth to floats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from hasn_cli.images.limits import MAX_CHANNELS

RGB, GRAY = 0, 1
D65, CUSTOM, DCI = 1, 2, 11
LINEAR, SRGB, UNKNOWN = 8, 13, 2
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
_SIDE_BITS = (9, 13, 18, 30)
_WHITES = {D65: (0.3127, 0.329), 10: (1 / 3, 1 / 3), DCI: (0.314, 0.351)}
_PRIMARIES = {
    1: (0.64, 0.33, 0.3, 0.6, 0.15, 0.06),
    9: (0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
_MAX_EXTRA = MAX_CHANNELS - 3  # all of them are decoded, whether they are needed or not

Field = tuple[int, int]
"""A value, and its number of bits."""


@dataclass(frozen=True)
class Color:
    """A colour encoding, given by names or by a profile after the header.

    Attributes:
        by_profile: a profile defines the colours; the other attributes mean nothing.
        space: RGB, GRAY, or another value, which is not supported.
        white, primaries: chromaticities.
        gamma: of the curve encoded = light ** gamma; None if `transfer` names the curve.
        transfer: the number of the curve in H.273.
    """

    by_profile: bool = False
    space: int = RGB
    white: tuple[float, ...] = _WHITES[D65]
    primaries: tuple[float, ...] = _PRIMARIES[1]
    gamma: float | None = None
    transfer: int = SRGB

    @property
    def is_output(self) -> bool:
        """Whether libjxl converts XYB to these colours."""
        usual = self.transfer in (1, LINEAR, SRGB, 16, 17, 18) or self.gamma is not None
        gray_is_d65 = self.space != GRAY or self.white == _WHITES[D65]
        return not self.by_profile and self.space in (RGB, GRAY) and usual and gray_is_d65


@dataclass
class Header:
    """The fields of the header that this program needs.

    Attributes:
        height, width: as stored.
        orientation: 1 to 8; libjxl applies it.
        moves: it is an animation, or it has a preview.
        bits: per sample.
        floats: the samples are floats.
        xyb: the codestream stores XYB, whatever the original colours are.
    """

    height: int
    width: int
    orientation: int = 1
    moves: bool = False
    bits: int = 8
    floats: bool = False
    xyb: bool = True
    color: Color = field(default_factory=Color)


class _Bits:
    """Reads a codestream bit by bit, starting with the lowest bit of each byte."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")
        self._left = 8 * len(data)
        self.at = 0

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("the file is truncated")
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        self.at += count
        return taken

    def choose(self, *choices: Field) -> int:
        """Read a U32: two bits choose an offset, and the number of bits whose value is added to it."""
        offset, bits = choices[self.take(2)]
        return offset + self.take(bits)

    def enumerated(self) -> int:
        return self.choose((0, 0), (1, 0), (2, 4), (18, 6))

    def side(self) -> int:
        return 1 + self.take(_SIDE_BITS[self.take(2)])


def read_header(codestream: bytes) -> Header:
    """Read the header.

    Raises:
        ValueError: there is no header, or it is not supported.
    """
    return _read(codestream)[0]


def _read(codestream: bytes) -> tuple[Header, dict[str, tuple[int, int]]]:
    """The header, and the first and last bit of the fields that can be written with more bits."""
    if codestream[:2] != b"\xff\x0a":
        raise ValueError("there is no codestream")
    bits = _Bits(codestream[2:])
    spans: dict[str, tuple[int, int]] = {}
    header = Header(*_size(bits))
    spans["size"] = (0, bits.at)
    if bits.take(1):  # all other fields have their defaults
        return header, spans
    extra_fields = bits.take(1)
    if extra_fields:
        header.orientation = 1 + bits.take(3)
        if bits.take(1):
            _size(bits)  # the preferred size on screen
        has_preview, has_animation = bits.take(1), bits.take(1)
        header.moves = bool(has_preview or has_animation)
        if header.moves:
            return header, spans
    start = bits.at
    header.floats, header.bits = _depth(bits)
    spans["depth"] = (start, bits.at)
    bits.take(1)  # whether 16 bits are enough
    extra = bits.choose((0, 0), (1, 0), (2, 4), (1, 12))
    if extra > _MAX_EXTRA:
        raise ValueError(f"{extra} extra channels are not supported")
    for _ in range(extra):
        _skip_extra_channel(bits)
    header.xyb = bool(bits.take(1))
    header.color = _color(bits)
    return header, spans


def _size(bits: _Bits) -> tuple[int, int]:
    """Read height and width: in units of 8 pixels, or with a selected number of bits. The width may be a ratio."""
    small = bool(bits.take(1))
    height = 8 * (bits.take(5) + 1) if small else bits.side()
    ratio = bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height, height * across // down
    return height, 8 * (bits.take(5) + 1) if small else bits.side()


def _sizes(height: int, width: int) -> Iterator[list[Field]]:
    """All ways to write a size that do not use units of 8 pixels."""
    for (by_height, most_high), (by_width, most_wide) in product(enumerate(_SIDE_BITS), repeat=2):
        if height <= 1 << most_high and width <= 1 << most_wide:
            high = [(0, 1), (by_height, 2), (height - 1, most_high)]
            yield [*high, (0, 3), (by_width, 2), (width - 1, most_wide)]


def _depth(bits: _Bits) -> tuple[bool, int]:
    if bits.take(1):
        depth = bits.choose((32, 0), (16, 0), (24, 0), (1, 6))
        bits.take(4)
        return True, depth
    return False, bits.choose((8, 0), (10, 0), (12, 0), (1, 6))


def _skip_extra_channel(bits: _Bits) -> None:
    if bits.take(1):
        return
    kind = bits.enumerated()
    _depth(bits)
    bits.choose((0, 0), (3, 0), (4, 0), (1, 3))
    bits.take(8 * bits.choose((0, 0), (0, 4), (16, 5), (48, 10)))  # its name
    if kind == 0:
        bits.take(1)
    elif kind == 2:
        bits.take(64)
    elif kind == 5:
        bits.choose((1, 0), (0, 2), (3, 4), (19, 8))


def _color(bits: _Bits) -> Color:
    if bits.take(1):
        return Color()
    by_profile, space = bool(bits.take(1)), bits.enumerated()
    if by_profile or space not in (RGB, GRAY):
        return Color(by_profile, space)
    white = bits.enumerated()
    point = _xy(bits) if white == CUSTOM else _WHITES.get(white)
    primaries: tuple[float, ...] | None = _PRIMARIES[1]
    if space == RGB:
        chosen = bits.enumerated()
        primaries = (*_xy(bits), *_xy(bits), *_xy(bits)) if chosen == CUSTOM else _PRIMARIES.get(chosen)
    if point is None or primaries is None:
        raise ValueError("its colour space is not known")
    if bits.take(1):
        return Color(False, space, point, primaries, bits.take(24) / 1e7)
    return Color(False, space, point, primaries, None, bits.enumerated())


def _xy(bits: _Bits) -> tuple[float, float]:
    def coordinate() -> float:
        packed = bits.choose((0, 19), (524288, 19), (1048576, 20), (2097152, 21))
        return (packed >> 1 ^ -(packed & 1)) / 1e6

    return coordinate(), coordinate()


def with_floats(codestream: bytes) -> bytes:
    """Change the header so that it states 32-bit float samples. For XYB, only the header decides the sample type.

    The data after the header (and after a profile, whose length is unknown before it is decoded) begins at a whole
    byte. So the header may only grow by whole bytes. For that, sides are written with more bits than they need.

    Raises:
        ValueError: no such header exists.
    """
    header, spans = _read(codestream)
    if "depth" not in spans:
        raise ValueError("its samples cannot be read as floats")
    depths = ([(1, 1), (0, 2), (7, 4)], [(1, 1), (3, 2), (31, 6), (7, 4)])
    places = [spans["size"], spans["depth"]]
    for fields in product(_sizes(header.height, header.width), depths):
        longer = sum(bits for field in fields for _, bits in field) - sum(end - start for start, end in places)
        if longer % 8 == 0 and longer >= 0:
            return codestream[:2] + _rewritten(codestream[2:], places, fields, longer // 8)
    raise ValueError("its samples cannot be read as floats")


def _rewritten(data: bytes, spans: list[tuple[int, int]], fields: tuple[list[Field], ...], longer: int) -> bytes:
    """Replace the bits in `spans` by `fields`. The result is `longer` bytes longer."""
    value, result, at, done = int.from_bytes(data, "little"), 0, 0, 0
    for (start, end), replacement in zip(spans, fields, strict=True):
        result |= ((value >> done) & ((1 << (start - done)) - 1)) << at
        at += start - done
        for number, bits in replacement:
            result |= number << at
            at += bits
        done = end
    result |= (value >> done) << at
    return result.to_bytes(len(data) + longer, "little")
