"""Reads and writes JPEG. This module parses the segments; libjpeg-turbo handles the pixels.

Pixels are decoded by simplejpeg, because only it reports broken data, for which libjpeg itself prints just a warning.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
import simplejpeg
from PIL import JpegImagePlugin

from hasn_cli.errors import ImageError
from hasn_cli.images.color import cmyk_to_srgb, srgb_profile
from hasn_cli.images.compression import jpeg_compression
from hasn_cli.images.extended_xmp import HEADER as EXTENSION_HEADER
from hasn_cli.images.iptc import iptc_from_photoshop, photoshop_from_iptc
from hasn_cli.images.limits import Count, Limit, Room
from hasn_cli.images.metadata import decoded_comment, left_out, whole_resolution, with_notices, with_whole_profile
from hasn_cli.images.picture import EncodeOptions, Frame, Metadata, Picture, Pixels, ReplayableFrames, Text
from hasn_cli.images.pointers import GAIN_MAP, kinds_behind
from hasn_cli.images.source import Source

_EXIF = b"Exif\0\0"
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC = b"ICC_PROFILE\0"
_ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"
_PHOTOSHOP = b"Photoshop 3.0\0"
_APP0, _APP1, _APP2, _APP13, _APP14, _COM = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE
_METADATA = (_APP0, _APP1, _APP2, _APP13, _COM)
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_MAX_BODY = 0xFFFF - 2
_PIECE, _MAX_PIECES = _MAX_BODY - 14, 255  # of a profile
_ANY_MARKER = re.compile(rb"\xff[\x01-\xfe]")
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xef\xfe]")  # the markers known to libjpeg that are followed by a length
_MAX_SCANS = 100  # encoders write about ten; a file with hundreds is meant to keep a decoder busy
_WHOLE_SPECTRUM = b"\0\x3f\0"  # the end of a sequential scan's header
_LEFT_OVER = re.compile(r"Corrupt JPEG data: (\d\d?) extraneous bytes before marker 0xd9")
_MAX_CUTS = 8  # one may not be enough: libjpeg counts any number of 0xff with the zero after them as one byte or two
_CMYK = ("CMYK", "YCCK")


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment before the first scan. Like libjpeg, this skips bytes between segments.

    Raises:
        ValueError: the structure is broken.
        TooMuch: there are too many segments.
    """
    return ((marker, body) for marker, body, _ in _placed_segments(data))


def _placed_segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, body and end of each segment before the first scan's data."""
    at = 2
    count = Count("segments")
    while found := _ANY_MARKER.search(data, at):
        count.add()
        marker, at = data[found.end() - 1], found.end()
        if marker == 0x01 or 0xD0 <= marker <= _SOI:
            continue
        if at + 2 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, at)
        if marker == _EOI or length < 2 or at + length > len(data):
            raise ValueError("truncated before its image data")
        at += length
        yield marker, data[at - length + 2 : at], at
        if marker == _SOS:
            return
    raise ValueError("broken before its image data")


def _without_metadata(data: bytes) -> bytes:
    """Remove the segments that pixels do not need, because libjpeg might complain about them."""
    kept = [data[:2]]
    scan = len(data)
    for marker, body, scan in _placed_segments(data):  # noqa: B007 (the end of the last one is used below)
        needed = not (0xE0 <= marker <= 0xEF or marker == _COM) or marker == _APP14 or body[:5] == b"JFIF\0"
        if needed:
            kept.append(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body)
    return b"".join([*kept, data[scan:]])


def read(source: Source, limit: Limit) -> Picture:
    """Read the header. If the file contains several pictures (MPO), only the first one is read."""
    data = source.read()
    parts = list(segments(data))
    frame = next((body for marker, body in parts if marker in _FRAMES), b"")
    depth, height, width, components = struct.unpack_from(">BHHB", frame)
    limit.check(source.name, height, width)
    if depth != 8:
        raise ValueError(f"{depth} bits a sample are not supported")
    check_scans(data)
    metadata = with_notices(with_whole_profile(_metadata(parts)), *map(left_out, _other_parts(data, parts)))

    def frames() -> Iterator[Frame]:
        yield Frame(_decode(source.read(), metadata.icc))

    return Picture(
        name=source.name,
        format="jpeg",
        size=(height, width),
        channels=1 if components == 1 else 3,
        dtype=np.dtype(np.uint8),
        frames=ReplayableFrames(frames),
        lossless=False,
        compression=jpeg_compression(parts),
        metadata=replace(metadata, icc=srgb_profile()) if components == 4 else metadata,
    )


def declared_size(data: bytes) -> tuple[int, int]:
    """Height and width of a JPEG inside another file. Makes the same checks as `read`.

    Raises:
        ValueError, struct.error: it is broken.
        TooMuch: it has too many segments or scans.
    """
    frame = next(body for marker, body in segments(data) if marker in _FRAMES)
    check_scans(data)
    _, height, width = struct.unpack_from(">BHH", frame)
    return height, width


def check_scans(data: bytes) -> None:
    """Check that there are no more scans than an encoder makes: each scan visits all pixels.

    Raises:
        TooMuch: there are more.
    """
    scans = Count("scans", _MAX_SCANS)
    for marker, _ in _markers(data):
        if marker == _SOS:
            scans.add()


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Each marker and its offset, up to the end of the first picture. Later data does not belong to it.

    Like libjpeg, this skips bytes between the end of a segment and the next marker.

    Raises:
        TooMuch: there are too many markers.
    """
    at = 2
    count = Count("segments")
    while found := _MARKER.search(data, at):
        marker = data[found.start() + 1]
        count.add()
        yield marker, found.start()
        if marker == _EOI:
            return
        at = found.end()
        if at + 2 <= len(data):
            at += max(2, struct.unpack_from(">H", data, at)[0])


def _other_parts(data: bytes, parts: list[tuple[int, bytes]]) -> tuple[str, ...]:
    """The kinds of further parts in the file, which are not copied."""
    end = next((at + 2 for marker, at in _markers(data) if marker == _EOI), len(data))
    kinds = kinds_behind(memoryview(data)[end:])
    announced = [GAIN_MAP] if any(marker == _APP2 and body.startswith(_ISO_GAIN_MAP) for marker, body in parts) else []
    return (*announced, *kinds)


def _decode(data: bytes, icc: bytes | None) -> Pixels:
    data = _without_metadata(data)
    try:
        space = simplejpeg.decode_jpeg_header(data)[2]
    except (ValueError, KeyError) as error:
        if isinstance(error, ValueError) and "subsampling" not in str(error):
            raise
        return _decode_oddly_sampled(data, icc)
    wanted = {"Gray": "GRAY"}.get(space, "CMYK" if space in _CMYK else "RGB")
    pixels = _decode_strictly(_with_plain_scans(data), wanted)
    # four components are stored inverted: Adobe started that, and everybody followed
    return cmyk_to_srgb(255 - pixels, icc) if space in _CMYK else pixels


def _decode_oddly_sampled(data: bytes, icc: bytes | None) -> Pixels:
    """Decode a JPEG with a chroma subsampling that simplejpeg does not support. The only damage found is truncation."""
    with JpegImagePlugin.JpegImageFile(io.BytesIO(_without(data, _APP1))) as image:  # Pillow would read EXIF
        pixels = np.asarray(image)
        return cmyk_to_srgb(pixels, icc) if image.mode == "CMYK" else pixels.reshape(*pixels.shape[:2], -1)


def _without(data: bytes, unwanted: int) -> bytes:
    """Remove the segments of one kind before the first scan."""
    kept, start = b"", 0
    for marker, at in _markers(data):
        if marker == _SOS:
            break
        if marker == unwanted:
            kept += data[start:at]
            start = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
    return kept + data[start:]


def _with_plain_scans(data: bytes) -> bytes:
    """Correct the range of coefficients in the header of each sequential scan, which must be the whole range.

    Some encoders write another range. Decoders ignore it, but libjpeg warns about it, and only its first warning is
    reported, so that damage would go unnoticed.
    """
    mended = bytearray(data)
    sequential = False
    for marker, at in _markers(data):
        sequential = sequential or marker in _SEQUENTIAL
        if sequential and marker == _SOS and at + 4 < len(data):
            end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
            if end == at + 8 + 2 * data[at + 4] and end <= len(data):
                mended[end - 3 : end] = _WHOLE_SPECTRUM
    return bytes(mended)


def _decode_strictly(data: bytes, wanted: str) -> Pixels:
    """Decode a JPEG about which libjpeg gives no warning, except for a few extra bytes at the end, which are removed.

    Only the first warning is reported. So the bytes are removed, because ignoring them could hide a later warning.
    """
    for _ in range(_MAX_CUTS):
        try:
            pixels: Pixels = simplejpeg.decode_jpeg(data, wanted)
            return pixels
        except ValueError as error:
            if not (found := _LEFT_OVER.search(str(error))):
                raise
        data = _without_left_over(data, int(found[1]))
    raise ValueError("it has extra bytes at its end")


def _without_left_over(data: bytes, count: int) -> bytes:
    """Remove `count` bytes at the end of the last scan, and any 0xff that follow them as padding."""
    end = next((at for marker, at in _markers(data) if marker == _EOI), 0)
    scans = data[:end].rstrip(b"\xff")
    return scans[: len(scans) - count] + data[end:]


def profile_in(parts: Iterable[tuple[int, bytes]]) -> bytes | None:
    """Join the profile from its pieces in the segments, or None."""
    return _metadata(list(parts)).icc


def _metadata(parts: list[tuple[int, bytes]]) -> Metadata:
    found: dict[str, Any] = {}
    profile: dict[int, bytes] = {}
    texts: list[Text] = []
    extended: list[bytes] = []
    photoshop: list[bytes] = []
    room = Room()
    for marker, body in parts:
        room.take(len(body) if marker in _METADATA else 0)
        if marker == _APP0 and body[:5] == b"JFIF\0" and len(body) >= 12:
            unit, x, y = struct.unpack_from(">BHH", body, 7)
            if unit in (1, 2) and x and y:
                factor = 1.0 if unit == 1 else 2.54
                found["dpi"] = (x * factor, y * factor)
        elif marker == _APP1 and body.startswith(_EXIF):
            found.setdefault("exif", body[len(_EXIF) :])
        elif marker == _APP1 and body.startswith(_XMP):
            found.setdefault("xmp", body[len(_XMP) :])
        elif marker == _APP1 and body.startswith(EXTENSION_HEADER):
            extended.append(body)
        elif marker == _APP2 and body.startswith(_ICC) and len(body) > 14:
            profile.setdefault(body[12], body[14:])
        elif marker == _APP13 and body.startswith(_PHOTOSHOP):
            photoshop.append(body.removeprefix(_PHOTOSHOP))
        elif marker == _COM:
            texts.append(Text("Comment", decoded_comment(body).rstrip("\0")))
    if profile:
        found["icc"] = b"".join(profile[number] for number in sorted(profile))
    # long resources continue in the next segment, and may be split at any byte
    found["iptc"] = next(filter(None, map(iptc_from_photoshop, [b"".join(photoshop), *photoshop])), None)
    return Metadata(text=tuple(texts), extended_xmp=tuple(extended), **found)


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a JPEG with full-resolution colour (4:4:4), and its metadata in segments before the pixels."""
    pixels = next(iter(picture.frames)).pixels
    plane = np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    # Pillow's buffer would be too small for noise at high quality
    encoded = bytes(imagecodecs.jpeg8_encode(plane, options.quality, subsampling="444", optimize=True))
    (jfif_length,) = struct.unpack_from(">H", encoded, 4)
    check_metadata(picture.name, picture.metadata)
    stream.write(encoded[:2])
    for marker, body in _metadata_segments(picture.metadata):
        stream.write(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body)
    stream.write(encoded[4 + jfif_length :])


def check_metadata(name: str, metadata: Metadata) -> None:
    """Check that each piece of metadata fits into a segment, and the profile into the segments that can be numbered.

    Raises:
        ImageError: the metadata or the profile is too large.
    """
    if len(metadata.icc or b"") > _MAX_PIECES * _PIECE:
        message = f"{name}: its colour profile is too large for JPEG"
        raise ImageError(message, "use -f png (--strip does not remove the profile)")
    if any(len(body) > _MAX_BODY for _, body in _metadata_segments(metadata)):
        raise ImageError(f"{name}: its metadata is too large for JPEG", "use --strip or -f png")


def _metadata_segments(metadata: Metadata) -> Iterator[tuple[int, bytes]]:
    density = whole_resolution(metadata.dpi, 1, 0xFFFF)
    yield _APP0, b"JFIF\0\1\1" + struct.pack(">BHHBB", density is not None, *(density or (1, 1)), 0, 0)
    if metadata.exif:
        yield _APP1, _EXIF + metadata.exif
    if metadata.xmp:
        yield _APP1, _XMP + metadata.xmp
        for body in metadata.extended_xmp:
            yield _APP1, body
    if metadata.iptc:
        yield _APP13, _PHOTOSHOP + photoshop_from_iptc(metadata.iptc)
    icc = metadata.icc or b""
    pieces = [icc[at : at + _PIECE] for at in range(0, len(icc), _PIECE)]
    for number, piece in enumerate(pieces, 1):
        yield _APP2, _ICC + bytes([number, len(pieces)]) + piece
    for text in metadata.text:
        # a JPEG comment has no key, so only texts that were comments are written
        if text.key == "Comment":
            words = text.value.encode()
            for at in range(0, len(words), _MAX_BODY):
                yield _COM, words[at : at + _MAX_BODY]
