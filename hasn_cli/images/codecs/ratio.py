"""Converts numbers to ratios of two 16-bit integers, in which PNG stores durations and JPEG 2000 resolutions."""

from __future__ import annotations

from fractions import Fraction

_MOST = 0xFFFF


def nearest_ratio(value: float) -> tuple[int, int]:
    """The 16-bit numerator and denominator nearest to a value of at least 0. Values above 65535 become 65535 to 1."""
    if value >= _MOST:
        return _MOST, 1
    ratio = Fraction(value).limit_denominator(int(_MOST / max(value, 1)))
    return ratio.numerator, ratio.denominator
