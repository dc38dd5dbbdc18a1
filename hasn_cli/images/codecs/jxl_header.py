"""What a JPEG XL codestream says of itself before its frames (ISO/IEC 18181-1, annex D): size, samples, colour.

libjxl hands out what is stored in XYB in the colours that the header names, and where it names them by a profile, in
linear light with sRGB's primaries, of whatever depth the header states. `with_floats` makes that floats.
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
_MAX_EXTRA = MAX_CHANNELS - 3  # each is decoded, wanted or not

Field = tuple[int, int]
"""A value, and of how many bits."""


@dataclass(frozen=True)
class Color:
    """A colour encoding by names, or by a profile that follows the header.

    Attributes:
        by_profile: nothing else is said.
        space: RGB, GRAY, or another that pictures do not have.
        white, primaries: chromaticities.
        gamma: of the curve, encoded = light ** gamma; None where `transfer` says it.
        transfer: H.273's number of the curve.
    """

    by_profile: bool = False
    space: int = RGB
    white: tuple[float, ...] = _WHITES[D65]
    primaries: tuple[float, ...] = _PRIMARIES[1]
    gamma: float | None = None
    transfer: int = SRGB

    @property
    def is_output(self) -> bool:
        """Whether libjxl converts to it from XYB."""
        usual = self.transfer in (1, LINEAR, SRGB, 16, 17, 18) or self.gamma is not None
        gray_is_d65 = self.space != GRAY or self.white == _WHITES[D65]
        return not self.by_profile and self.space in (RGB, GRAY) and usual and gray_is_d65


@dataclass
class Header:
    """The header, as far as it matters here.

    Attributes:
        height, width: as stored.
        orientation: 1 to 8; libjxl applies it.
        moves: it is an animation, or has a preview before it.
        bits: of a sample.
        floats: samples are floats.
        xyb: the codestream's colours are XYB, whatever the original's are.
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
    """Bits of a codestream, the lowest of each byte first."""

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
        """A U32: two bits choose an offset and a number of bits to add to it."""
        offset, bits = choices[self.take(2)]
        return offset + self.take(bits)

    def enumerated(self) -> int:
        return self.choose((0, 0), (1, 0), (2, 4), (18, 6))

    def side(self) -> int:
        return 1 + self.take(_SIDE_BITS[self.take(2)])


def read_header(codestream: bytes) -> Header:
    """Read the header.

    Raises:
        ValueError: there is none.
    """
    return _read(codestream)[0]


def _read(codestream: bytes) -> tuple[Header, dict[str, tuple[int, int]]]:
    """The header, and where those of its fields that can be written longer begin and end."""
    if codestream[:2] != b"\xff\x0a":
        raise ValueError("there is no codestream")
    bits = _Bits(codestream[2:])
    spans: dict[str, tuple[int, int]] = {}
    header = Header(*_size(bits))
    spans["size"] = (0, bits.at)
    if bits.take(1):  # all as usual
        return header, spans
    extra_fields = bits.take(1)
    if extra_fields:
        header.orientation = 1 + bits.take(3)
        if bits.take(1):
            _size(bits)  # at which it would like to be shown
        has_preview, has_animation = bits.take(1), bits.take(1)
        header.moves = bool(has_preview or has_animation)
        if header.moves:
            return header, spans
    start = bits.at
    header.floats, header.bits = _depth(bits)
    spans["depth"] = (start, bits.at)
    bits.take(1)  # whether 16 bits suffice
    extra = bits.choose((0, 0), (1, 0), (2, 4), (1, 12))
    if extra > _MAX_EXTRA:
        raise ValueError(f"{extra} extra channels are not supported")
    for _ in range(extra):
        _skip_extra_channel(bits)
    header.xyb = bool(bits.take(1))
    header.color = _color(bits)
    return header, spans


def _size(bits: _Bits) -> tuple[int, int]:
    """Height and width: in units of 8 pixels, or in as many bits as a selector says; or the width by a ratio."""
    small = bool(bits.take(1))
    height = 8 * (bits.take(5) + 1) if small else bits.side()
    ratio = bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return height, height * across // down
    return height, 8 * (bits.take(5) + 1) if small else bits.side()


def _sizes(height: int, width: int) -> Iterator[list[Field]]:
    """All ways to write a size without units of 8 pixels."""
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
    """The codestream with a header that states samples of 32-bit floats; for XYB, the header alone decides on them.

    What follows the header begins at a whole byte, after a profile of a length that only decoding tells. So the header
    must become longer by whole bytes, for which sides are written in more bits than they need.

    Raises:
        ValueError: there is no way to make it so.
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
    """Bits with those in some spans replaced; so many bytes longer."""
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
