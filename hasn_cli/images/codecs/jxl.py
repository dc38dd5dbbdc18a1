"""JPEG XL: codestreams by libjxl (through imagecodecs), the boxes round them here (ISO/IEC 18181-2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import imagecodecs
import numpy as np

from hasn_cli.images.codecs.boxes import box, boxes
from hasn_cli.images.limits import MAX_CHANNELS, Limit, Room
from hasn_cli.images.metadata import upright
from hasn_cli.images.picture import Again, EncodeOptions, Frame, Metadata, Picture, Pixels
from hasn_cli.images.source import Source

_SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"
_HEAD = 64  # bytes that hold all that is read of a codestream here
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height


def read(source: Source, limit: Limit) -> Picture:
    """Read a still JPEG XL. Its size is looked up before; what kind of samples it has, only decoding tells."""
    data = source.read()
    metadata = Metadata()
    size = declared_size(data)
    limit.check(source.name, *size)
    if data.startswith(_SIGNATURE):
        # the codestream's own orientation counts, and libjxl has applied it
        metadata = upright(_metadata(list(boxes(data))))
    pixels = _decode(data)
    if pixels.shape[:2] not in (size, size[::-1]):
        raise ValueError("it does not hold what its header says")
    return Picture(
        name=source.name,
        format="jpegxl",
        size=(pixels.shape[0], pixels.shape[1]),
        channels=pixels.shape[2],
        dtype=pixels.dtype,
        frames=Again(lambda: _frames(source)),
        lossless=False,
        metadata=metadata,
    )


def declared_size(data: bytes) -> tuple[int, int]:
    """Height and width that a JPEG XL declares, in boxes or bare.

    Raises:
        ValueError: it is none, holds an animation, or has more channels than are decoded.
    """
    head = data[:_HEAD]
    if data.startswith(_SIGNATURE):
        head = b""
        for kind, body in boxes(data):
            if kind in (b"jxlc", b"jxlp"):
                head += bytes(body[4 if kind == b"jxlp" else 0 :][:_HEAD])
            if len(head) >= _HEAD:
                break
    return _size(head)


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
    """EXIF and XMP, bare or packed; the first of a kind counts, and one that is packed and broken is left out."""
    bodies: dict[bytes, bytes] = {}
    room = Room()
    for kind, body in found:
        packed = kind == b"brob"
        inner = bytes(body[:4]) if packed else kind
        if inner in (b"Exif", b"xml ") and inner not in bodies:
            bodies[inner] = _unpacked(bytes(body[4:]), room) if packed else bytes(body)
            room.take(len(bodies[inner]))
    exif = bodies.get(b"Exif")
    if exif is not None:
        exif = exif[4 + int.from_bytes(exif[:4], "big") :]
    return Metadata(exif=exif or None, xmp=bodies.get(b"xml ") or None)


def _unpacked(packed: bytes, room: Room) -> bytes:
    """Brotli's data; none where they are broken, or unpack to more than there is room for."""
    try:
        return bytes(imagecodecs.brotli_decode(packed, out=room.left))
    except imagecodecs.BrotliError:
        return b""


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

    def extra_channels(self) -> int:
        """From the depth of the samples on: how many channels there are besides colour."""
        is_float = bool(self.take(1))
        if self.take(2) == 3:
            self.take(6)  # a depth that has no number of its own
        self.take(4 if is_float else 0)  # bits of the exponent
        self.take(1)  # whether 16 bits are enough to decode with
        kind = self.take(2)
        return kind if kind < 2 else 2 + self.take(4) if kind == 2 else 1 + self.take(12)

    def _length(self, small: bool) -> int:
        """A side: in units of 8 pixels, or in as many bits as a selector says."""
        if small:
            return 8 * (self.take(5) + 1)
        return self.take((9, 13, 18, 30)[self.take(2)]) + 1


def _size(codestream: bytes) -> tuple[int, int]:
    """Height and width as the codestream declares them.

    Raises:
        ValueError: it is none, holds an animation, or has more channels than are decoded.
    """
    if codestream[:2] != b"\xff\x0a":
        raise ValueError("there is no codestream")
    bits = _Bits(codestream[2:])
    size = bits.size()
    if bits.take(1):  # all is as usual
        return size
    if bits.take(1):
        bits.take(3)  # the orientation
        if bits.take(1):
            bits.size()  # at which it would like to be shown
        has_preview, has_animation = bits.take(1), bits.take(1)
        if has_preview or has_animation:
            raise ValueError("animated JPEG XL is not supported")
    extra = bits.extra_channels()
    if extra > MAX_CHANNELS - 3:  # each is decoded, wanted or not
        raise ValueError(f"{extra} channels besides colour are not supported")
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
