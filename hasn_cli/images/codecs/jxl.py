"""JPEG XL: codestreams by libjxl (through imagecodecs), the boxes round them here (ISO/IEC 18181-2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import BinaryIO

import imagecodecs
import numpy as np

from hasn_cli.images.codecs.boxes import box, boxes
from hasn_cli.images.metadata import applied
from hasn_cli.images.picture import Again, EncodeOptions, Frame, Metadata, Picture, Pixels
from hasn_cli.images.source import Limit, Source

_SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"
_MAX_UNPACKED = 16 * 1024 * 1024
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height


def read(source: Source, limit: Limit) -> Picture:
    """Read a still JPEG XL. Its size is looked up before; what kind of samples it has, only decoding tells."""
    data = source.read()
    metadata = Metadata()
    codestream: bytes | memoryview = data
    if data.startswith(_SIGNATURE):
        found = list(boxes(data))
        by_kind = dict(reversed(found))
        codestream = by_kind[b"jxlc"] if b"jxlc" in by_kind else by_kind[b"jxlp"][4:]
        metadata = _metadata(found)
    limit.check(source.name, *_size(bytes(codestream[:32])))
    pixels = _decode(data)
    return Picture(
        name=source.name,
        format="jpegxl",
        size=(pixels.shape[0], pixels.shape[1]),
        channels=pixels.shape[2],
        dtype=pixels.dtype,
        frames=Again(lambda: _frames(source)),
        lossless=False,
        # the codestream's own orientation counts, and libjxl has applied it
        metadata=applied(metadata, pixels.shape[:2]),
    )


def _frames(source: Source) -> Iterator[Frame]:
    yield Frame(_decode(source.read()))


def _decode(data: bytes) -> Pixels:
    pixels: Pixels = imagecodecs.jpegxl_decode(data, index=0)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
        raise ValueError(f"its kind, {pixels.shape}, is not supported")
    return pixels.astype(np.float32) if pixels.dtype.kind == "f" else pixels


def _metadata(found: list[tuple[bytes, memoryview]]) -> Metadata:
    """EXIF and XMP, bare or packed; the first of a kind counts, and packed ones that are broken are left out."""
    bodies: dict[bytes, bytes] = {}
    for kind, body in found:
        packed = kind == b"brob"
        inner = bytes(body[:4]) if packed else kind
        if inner in (b"Exif", b"xml ") and inner not in bodies:
            with contextlib.suppress(imagecodecs.BrotliError):
                bodies[inner] = _unpacked(bytes(body[4:])) if packed else bytes(body)
    exif = bodies.get(b"Exif")
    if exif is not None:
        exif = exif[4 + int.from_bytes(exif[:4], "big") :]
    return Metadata(exif=exif, xmp=bodies.get(b"xml "))


def _unpacked(packed: bytes) -> bytes:
    """Brotli's data, which are refused beyond the limit."""
    return bytes(imagecodecs.brotli_decode(packed, out=_MAX_UNPACKED))


class _Bits:
    """Bits of a codestream, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        taken = self._value & ((1 << count) - 1)
        self._value >>= count
        return taken

    def size(self) -> tuple[int, int]:
        """A SizeHeader: height and width."""
        small = bool(self.take(1))
        height = self._length(small)
        ratio = self.take(3)
        if ratio == 0:
            return height, self._length(small)
        across, down = _RATIOS[ratio - 1]
        return height, height * across // down

    def _length(self, small: bool) -> int:
        """A side: in units of 8 pixels, or in as many bits as a selector says."""
        if small:
            return 8 * (self.take(5) + 1)
        return self.take((9, 13, 18, 30)[self.take(2)]) + 1


def _size(codestream: bytes) -> tuple[int, int]:
    """Height and width as the codestream declares them.

    Raises:
        ValueError: it is none, or holds an animation.
    """
    if codestream[:2] != b"\xff\x0a":
        raise ValueError("there is no codestream")
    bits = _Bits(codestream[2:])
    size = bits.size()
    standard = bits.take(1)
    if not standard and bits.take(1):
        bits.take(3)  # the orientation
        if bits.take(1):
            bits.size()  # at which it would like to be shown
        has_preview, has_animation = bits.take(1), bits.take(1)
        if has_preview or has_animation:
            raise ValueError("animated JPEG XL is not supported")
    return size


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a JPEG XL of 8 or 16 bits."""
    pixels = next(iter(picture.frames)).pixels
    lossless = bool(options.lossless)
    encoded = imagecodecs.jpegxl_encode(
        np.ascontiguousarray(pixels if pixels.shape[2] > 1 else pixels[..., 0]),
        level=None if lossless else options.quality,
        lossless=lossless,
        usecontainer=True,
    )
    for kind, body in boxes(bytes(encoded)):
        if kind == b"jxlc":
            if picture.metadata.exif:
                stream.write(box(b"Exif", b"\0\0\0\0", picture.metadata.exif))
            if picture.metadata.xmp:
                stream.write(box(b"xml ", picture.metadata.xmp))
        stream.write(box(kind, bytes(body)))
