"""Reads and writes JPEG XL. libjxl (through imagecodecs) handles the codestreams; this module handles the boxes around
them (ISO/IEC 18181-2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

import imagecodecs
import numpy as np

from hasn_cli.errors import ImageError
from hasn_cli.images.codecs.boxes import box, boxes
from hasn_cli.images.codecs.jpeg import profile_in, segments
from hasn_cli.images.codecs.jxl_header import GRAY, Header, read_header, with_floats
from hasn_cli.images.color import srgb_profile
from hasn_cli.images.compression import Compression
from hasn_cli.images.limits import Limit, Room
from hasn_cli.images.metadata import applied
from hasn_cli.images.picture import EncodeOptions, Frame, Metadata, Picture, Pixels, ReplayableFrames
from hasn_cli.images.source import Source
from hasn_cli.images.spaces import from_linear, gamma_colors, named_colors

_SIGNATURE = b"\0\0\0\x0cJXL \r\n\x87\n"
_HEADER = 1 << 16  # bytes, far more than a header takes, apart from extra channels
_LAST = 1 << 31  # marks the last piece of a codestream


def read(source: Source, limit: Limit) -> Picture:
    """Read a still JPEG XL. It is decoded at once, because only its samples tell which colour space they need."""
    data = source.read()
    found = _boxes(data)
    stream = _codestream(data, found)
    header = _still_header(stream)
    limit.check(source.name, header.height, header.width)
    pixels, colors = _decode(data, stream, header)
    if pixels.shape[:2] not in ((header.height, header.width), (header.width, header.height)):
        raise ValueError("its contents do not match its header")
    metadata = replace(_metadata(found), icc=colors.icc, cicp=colors.cicp)
    return Picture(
        name=source.name,
        format="jpegxl",
        size=(pixels.shape[0], pixels.shape[1]),
        channels=pixels.shape[2],
        dtype=pixels.dtype,
        frames=ReplayableFrames(lambda: _frames(source)),
        lossless=False,
        # encoders convert to XYB unless they keep every sample, or every coefficient of a JPEG
        compression=Compression("JPEG XL") if header.xyb or any(kind == b"jbrd" for kind, _ in found) else None,
        # the codestream's own orientation takes precedence, and libjxl has applied it
        metadata=applied(metadata, (pixels.shape[0], pixels.shape[1])),
    )


def declared_size(data: bytes) -> tuple[int, int]:
    """Height and width that a JPEG XL declares, with or without boxes.

    Raises:
        ValueError: it is not a JPEG XL, is an animation, or has more channels than are supported.
    """
    header = _still_header(_codestream(data, _boxes(data)))
    return header.height, header.width


def _boxes(data: bytes) -> list[tuple[bytes, memoryview]]:
    """The boxes of the container; empty for a codestream without one."""
    return list(boxes(data)) if data.startswith(_SIGNATURE) else []


def _still_header(stream: bytes) -> Header:
    """The header of a codestream that is not an animation.

    Raises:
        ValueError: there is no header, or the codestream is an animation.
    """
    header = read_header(stream[:_HEADER])
    if header.moves:
        raise ValueError("animated JPEG XL is not supported")
    return header


def _frames(source: Source) -> Iterator[Frame]:
    data = source.read()
    stream = _codestream(data, _boxes(data))
    yield Frame(_decode(data, stream, read_header(stream[:_HEADER]))[0])


def _codestream(data: bytes, found: list[tuple[bytes, memoryview]]) -> bytes:
    """Return the codestream, which may be split into pieces.

    Raises:
        ValueError: a piece is missing.
    """
    if not found:
        return data
    whole = next((bytes(body) for kind, body in found if kind == b"jxlc"), None)
    if whole is not None:
        return whole
    pieces = [(int.from_bytes(body[:4], "big"), bytes(body[4:])) for kind, body in found if kind == b"jxlp"]
    numbers = [number & ~_LAST for number, _ in pieces]
    if not pieces or numbers != list(range(len(pieces))) or not pieces[-1][0] & _LAST:
        raise ValueError(f"piece {len(pieces) + 1} of its codestream is missing")
    return b"".join(piece for _, piece in pieces)


def _decode(data: bytes, stream: bytes, header: Header) -> tuple[Pixels, Metadata]:
    """Decode the pixels, and describe their colours as metadata.

    Raises:
        ValueError: the pixels are of an unsupported kind.
    """
    color = header.color
    if header.xyb and not color.is_output:
        light = _shaped(imagecodecs.jpegxl_decode(with_floats(stream), index=0)).astype(np.float32)
        dtype = np.float32 if header.floats else np.uint16 if header.bits > 8 else np.uint8
        return from_linear(light, np.dtype(dtype))
    if color.by_profile:
        colors = Metadata(icc=_profile_of_jpeg(data))
    elif color.gamma is not None:
        colors = gamma_colors(color.space == GRAY, color.white, color.primaries, color.gamma)
    else:
        colors = named_colors(color.space == GRAY, color.white, color.primaries, color.transfer)
    pixels = _shaped(imagecodecs.jpegxl_decode(data, index=0))
    return pixels.astype(np.float32) if pixels.dtype.kind == "f" else pixels, colors


def _shaped(pixels: Pixels) -> Pixels:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
        raise ValueError(f"pixels of shape {pixels.shape} are not supported")
    return pixels


def _profile_of_jpeg(data: bytes) -> bytes:
    """The profile of a JPEG that was packed into JPEG XL without loss.

    Raises:
        ImageError: the JPEG XL does not contain a JPEG, so its profile cannot be read.
    """
    try:
        parts = segments(bytes(imagecodecs.jpegxl_decode_jpeg(data, numthreads=1)))
        return profile_in(parts) or srgb_profile()
    except (imagecodecs.JpegxlError, ValueError):
        message = "the colour profile of a lossless JPEG XL cannot be read"
        raise ImageError(message, "convert it first: djxl IN.jxl OUT.png") from None


def _metadata(found: list[tuple[bytes, memoryview]]) -> Metadata:
    """EXIF and XMP, plain or packed. The first of each kind counts; a packed one that is broken is left out."""
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
    """Unpack Brotli data; empty if the data is broken or unpacks to more than there is room for."""
    try:
        return bytes(imagecodecs.brotli_decode(packed, out=room.left))
    except imagecodecs.BrotliError:
        return b""


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a JPEG XL with 8 or 16 bits."""
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
