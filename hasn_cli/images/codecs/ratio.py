"""Numbers as the ratio of two 16-bit integers, as PNG's durations and JPEG 2000's resolutions are stored."""

from __future__ import annotations

from fractions import Fraction

_MOST = 0xFFFF


def nearest_ratio(value: float) -> tuple[int, int]:
    """Numerator and denominator, neither over 65535, nearest to a value that is not negative; at most 65535 to 1."""
    if value >= _MOST:
        return _MOST, 1
    ratio = Fraction(value).limit_denominator(int(_MOST / max(value, 1)))
    return ratio.numerator, ratio.denominator
