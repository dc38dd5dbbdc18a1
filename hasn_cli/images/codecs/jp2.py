"""Reads and writes JPEG 2000. OpenJPEG (through imagecodecs) handles the codestreams; this module handles the boxes
around them (ISO/IEC 15444-1, annex I)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO
from uuid import UUID

import imagecodecs
import numpy as np

from hasn_cli.images.codecs import codestream
from hasn_cli.images.codecs.boxes import box, boxes
from hasn_cli.images.codecs.ratio import nearest_ratio
from hasn_cli.images.color import cmyk_to_srgb, srgb_profile, unpremultiply, widen
from hasn_cli.images.compression import Compression
from hasn_cli.images.limits import MAX_CHANNELS, Limit
from hasn_cli.images.metadata import INCHES_PER_METRE, with_whole_profile
from hasn_cli.images.picture import EncodeOptions, Frame, Metadata, Picture, Pixels, ReplayableFrames
from hasn_cli.images.source import Source
from hasn_cli.images.spaces import ycc_to_rgb

_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n"
_UUIDS = {
    "exif": UUID("4a706754-6966-6645-7869-662d3e4a5032").bytes,
    "xmp": UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes,
    "iptc": UUID("33c7a4d2-b81d-4723-a0ba-f1a3e097ad38").bytes,
}
_CMYK, _SRGB, _GRAY, _SYCC = 12, 16, 17, 18
_COLOR, _OPACITY, _PREMULTIPLIED = range(3)  # the types of components in a channel definition


@dataclass
class _File:
    """The contents of the boxes and of the codestream's header."""

    width: int
    height: int
    components: int
    depth: int
    lossless: bool
    color: int | None = None
    palette: bool = False
    channels: tuple[int, ...] | None = None
    premultiplied: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)


def read(source: Source, limit: Limit) -> Picture:
    """Read a JP2 file or a bare codestream, 1 to 16 bits deep."""
    contents = source.read()
    file = _parse(contents)
    limit.check(source.name, file.height, file.width)
    check_structure(contents)
    channels = _channels(file)
    metadata = with_whole_profile(Metadata(**file.metadata))

    def frames() -> Iterator[Frame]:
        data = source.read()
        # OpenJPEG would convert to sRGB if it saw a profile, so it gets the boxes only if they contain a palette
        pixels: Pixels = imagecodecs.jpeg2k_decode(data if file.palette else bare(data))
        yield Frame(_shown(file, pixels.reshape(file.height, file.width, -1), metadata.icc))

    return Picture(
        name=source.name,
        format="jpeg2000",
        size=(file.height, file.width),
        channels=channels,
        dtype=np.dtype(np.uint16 if file.depth > 8 and not file.palette else np.uint8),
        frames=ReplayableFrames(frames),
        lossless=file.lossless,
        compression=None if file.lossless else Compression("JPEG 2000"),
        metadata=replace(metadata, icc=srgb_profile()) if file.color == _CMYK else metadata,
    )


def _parse(data: bytes) -> _File:
    if not data.startswith(_SIGNATURE):
        return _codestream(memoryview(data))
    found = list(boxes(data))
    by_kind = dict(reversed(found))
    file = _codestream(by_kind[b"jp2c"])
    for kind, body in boxes(by_kind[b"jp2h"]):
        if kind == b"colr" and body[0] == 1 and file.color is None:
            (file.color,) = struct.unpack_from(">I", body, 3)
        elif kind == b"colr" and body[0] in (2, 3):
            file.metadata.setdefault("icc", bytes(body[3:]))
        elif kind == b"pclr":
            file.palette = True
            file.components = body[2]
        elif kind == b"cdef":
            file.channels, file.premultiplied = _definitions(body)
        elif kind == b"res ":
            file.metadata |= _resolution(body)
    for kind, body in found:
        if kind == b"uuid":
            for name, uuid in _UUIDS.items():
                if body[:16] == uuid:
                    file.metadata[name] = bytes(body[16:]).removeprefix(b"Exif\0\0")
    if file.metadata.get("icc", b"")[16:20] == b"CMYK":
        file.color = _CMYK
    return file


def declared_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG 2000 inside another file. Makes the same checks as `read`.

    Raises:
        ValueError: it is broken or not supported.
        TooMuch: decoding it would take far more work than its pixels justify.
    """
    file = _codestream(memoryview(bare(data)))
    check_structure(data)
    return file.height, file.width


def check_structure(data: bytes) -> None:
    """Check that a file's codestream has no more tiles, precincts, blocks and packets than its pixels justify.

    Raises:
        ValueError: the codestream is broken.
        TooMuch: it has more.
    """
    codestream.check(bare(data))


def _definitions(body: memoryview) -> tuple[tuple[int, ...], bool]:
    """The components that are shown (colours in order, then opacity), and whether the colours are premultiplied."""
    stated = list(struct.iter_unpack(">HHH", body[2:]))
    colors = sorted((association, number) for number, use, association in stated if use == _COLOR)
    opacity = [(number, use) for number, use, _ in stated if use in (_OPACITY, _PREMULTIPLIED)][:1]
    channels = (*(number for _, number in colors), *(number for number, _ in opacity))
    return channels, any(use == _PREMULTIPLIED for _, use in opacity)


def bare(data: bytes) -> bytes:
    """The codestream without the boxes around it."""
    if not data.startswith(_SIGNATURE):
        return data
    return next(bytes(body) for kind, body in boxes(data) if kind == b"jp2c")


def _codestream(data: memoryview) -> _File:
    """Read the markers SIZ and COD.

    Raises:
        ValueError: the codestream is broken or not supported.
    """
    # other bytes may follow the end; the end marker cannot occur within coded data
    if bytes(data[:4]) != b"\xff\x4f\xff\x51" or bytes(data).rfind(b"\xff\xd9") < bytes(data).rfind(b"\xff\x90"):
        raise ValueError("the file is truncated")
    x1, y1, x0, y0 = struct.unpack_from(">IIII", data, 8)
    (components,) = struct.unpack_from(">H", data, 40)
    kinds = set(struct.iter_unpack(">BBB", data[42 : 42 + 3 * components]))
    if len(kinds) != 1 or kinds.copy().pop()[1:] != (1, 1):
        raise ValueError("components of different depth or resolution are not supported")
    if components > MAX_CHANNELS:  # all of them are decoded, whether they are shown or not
        raise ValueError(f"{components} components are not supported")
    depth = kinds.pop()[0] + 1
    if depth > 16:
        raise ValueError("signed samples and samples of more than 16 bits are not supported")
    style = bytes(data[:4096]).find(b"\xff\x52")  # the default coding style
    lossless = style > 0 and bytes(data[style + 13 : style + 14]) == b"\1"  # the reversible wavelet
    return _File(x1 - x0, y1 - y0, components, depth, lossless)


def _channels(file: _File) -> int:
    """The number of channels of the picture as shown.

    Raises:
        ValueError: its colour space is not supported.
    """
    count = len(_order(file))
    if file.color == _CMYK and count == 4:
        return 3
    fits = count in (3, 4) if file.color == _SYCC else file.color in (None, _SRGB, _GRAY) and 1 <= count <= 4
    if not fits:
        raise ValueError(f"{file.components} components in colour space {file.color} are not supported")
    return count


def _order(file: _File) -> tuple[int, ...]:
    """The components that are shown, colours before opacity. With a palette, OpenJPEG has already sorted them."""
    if file.channels is None or file.palette:
        return tuple(range(file.components))
    if max(file.channels, default=0) >= file.components:
        raise ValueError("its channel definitions are invalid")
    return file.channels


def _shown(file: _File, pixels: Pixels, icc: bytes | None) -> Pixels:
    if pixels.shape[2] != file.components:
        raise ValueError("its contents do not match its header")
    pixels = pixels if file.palette else widen(pixels[..., _order(file)], file.depth)
    if file.color == _CMYK:
        return cmyk_to_srgb(pixels, icc)
    if file.color == _SYCC and not file.palette:
        pixels = np.concatenate([ycc_to_rgb(pixels[..., :3]), pixels[..., 3:]], axis=2)
    return unpremultiply(pixels) if file.premultiplied and not file.palette else pixels


def _resolution(body: memoryview) -> dict[str, Any]:
    for _, values in boxes(body):
        top_y, bottom_y, top_x, bottom_x, power_y, power_x = struct.unpack_from(">HHHHbb", values)
        if bottom_x and bottom_y:
            per_metre = (top_x / bottom_x * 10.0**power_x, top_y / bottom_y * 10.0**power_y)
            dpi = (per_metre[0] / INCHES_PER_METRE, per_metre[1] / INCHES_PER_METRE)
            return {"dpi": dpi} if min(dpi) > 0 else {}
    return {}


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a JP2: reversible if lossless, otherwise with a PSNR that rises with the quality (95: about 52 dB)."""
    pixels = next(iter(picture.frames)).pixels
    channels = pixels.shape[2]
    lossless = bool(options.lossless)
    encoded = imagecodecs.jpeg2k_encode(
        np.ascontiguousarray(pixels if channels > 1 else pixels[..., 0]),
        level=None if lossless else 20 + options.quality // 3,
        codecformat="j2k",
        reversible=lossless,
    )
    metadata = picture.metadata
    stream.write(_SIGNATURE + box(b"ftyp", b"jp2 \0\0\0\0jp2 "))
    stream.write(box(b"jp2h", *_header_boxes(pixels, metadata)))
    for name, uuid in _UUIDS.items():
        value = getattr(metadata, name)
        if value:
            stream.write(box(b"uuid", uuid, value))
    stream.write(box(b"jp2c", encoded))


def _header_boxes(pixels: Pixels, metadata: Metadata) -> Iterator[bytes]:
    height, width, channels = pixels.shape
    colors = 1 if channels <= 2 else 3
    yield box(b"ihdr", struct.pack(">IIHBBBB", height, width, channels, 8 * pixels.itemsize - 1, 7, 0, 0))
    if metadata.icc:
        yield box(b"colr", b"\2\0\0", metadata.icc)
    else:
        yield box(b"colr", struct.pack(">BBBI", 1, 0, 0, _GRAY if colors == 1 else _SRGB))
    if channels in (2, 4):
        uses = [(number, 0, number + 1) for number in range(colors)] + [(colors, 1, 0)]
        yield box(b"cdef", struct.pack(">H", channels), *(struct.pack(">HHH", *use) for use in uses))
    if metadata.dpi:
        (*x, x_power), (*y, y_power) = (_scaled(value * INCHES_PER_METRE) for value in metadata.dpi)
        yield box(b"res ", box(b"resc", struct.pack(">HHHHbb", *y, *x, y_power, x_power)))


def _scaled(value: float) -> tuple[int, int, int]:
    """A 16-bit numerator and denominator, and the power of ten to multiply them by."""
    power = 0
    while value > 0xFFFF and power < 127:
        value /= 10
        power += 1
    return *nearest_ratio(value), power
