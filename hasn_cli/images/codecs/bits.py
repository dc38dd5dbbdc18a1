"""Reads the sizes that coded AV1 and HEVC pictures declare (AV1 specification, 5.5; ITU-T H.265, 7.3.2)."""

from __future__ import annotations

_SEQUENCE_HEADER = 1
_SPS = 33


class Bits:
    """Reads a byte string bit by bit, starting with the highest bit of each byte."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """The next bits as a number.

        Raises:
            ValueError: fewer bits are left.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError("the file is truncated")
        return self._value >> self._left & ((1 << count) - 1)

    def golomb(self) -> int:
        """The next number, in exponential Golomb code."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("a number is too long")
        return (1 << zeros) - 1 + self.take(zeros)


def av1_size(data: bytes) -> tuple[int, int] | None:
    """Height and width in the first sequence header among AV1 units; None if there is no such header.

    Raises:
        ValueError: the units are broken.
    """
    at = 0
    while at < len(data):
        head = data[at]
        kind, extended, sized = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        at += 1 + extended
        length = shift = 0
        while sized and at < len(data):
            length |= (data[at] & 127) << shift
            shift += 7
            at += 1
            if not data[at - 1] & 128 or shift > 28:
                break
        if kind == _SEQUENCE_HEADER:
            return _sequence_size(Bits(data[at : at + length] if sized else data[at:]))
        if not sized:
            return None
        at += length
    return None


def _sequence_size(bits: Bits) -> tuple[int, int]:
    bits.take(4)  # the profile, and whether it is a still picture
    if bits.take(1):
        bits.take(5)
    else:
        _skip_operating_points(bits)
    wide, high = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(wide) + 1, bits.take(high) + 1
    return height, width


def _skip_operating_points(bits: Bits) -> None:
    delay_length = None
    if bits.take(1):  # timing information follows
        bits.take(64)
        if bits.take(1):
            bits.golomb()
        if bits.take(1):  # a decoder model follows
            delay_length = bits.take(5) + 1
            bits.take(42)
    shown_later = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_length is not None and bits.take(1):
            bits.take(2 * delay_length + 1)
        if shown_later and bits.take(1):
            bits.take(4)


def hevc_size(configuration: bytes) -> list[tuple[int, int]]:
    """Height and width in each sequence parameter set of an HEVC configuration record (ISO/IEC 14496-15).

    Raises:
        ValueError: it is broken.
    """
    found = []
    at = 23
    for _ in range(configuration[22] if len(configuration) > 22 else 0):
        count = int.from_bytes(configuration[at + 1 : at + 3], "big")
        kind = configuration[at] & 63 if at < len(configuration) else 0
        at += 3
        for _ in range(count):
            length = int.from_bytes(configuration[at : at + 2], "big")
            if at + 2 + length > len(configuration):
                raise ValueError("the file is truncated")
            if kind == _SPS:
                found.append(_sps_size(configuration[at + 2 : at + 2 + length]))
            at += 2 + length
    return found


def _sps_size(unit: bytes) -> tuple[int, int]:
    bits = Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)  # their number minus one
    bits.take(1 + 96)  # profile, tier and level
    present = [bits.take(2) for _ in range(layers)]
    bits.take(2 * (8 - layers) if layers else 0)
    for flags in present:
        bits.take((88 if flags & 2 else 0) + (8 if flags & 1 else 0))
    bits.golomb()
    if bits.golomb() == 3:
        bits.take(1)
    width, height = bits.golomb(), bits.golomb()
    return height, width
