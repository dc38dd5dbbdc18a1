"""Reads and writes the formats that Pillow handles well: WebP, AVIF, BMP and TGA."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from PIL import AvifImagePlugin, BmpImagePlugin, Image, ImageFile, TgaImagePlugin, WebPImagePlugin

from hasn_cli.images.codecs import bmp_rle, items
from hasn_cli.images.codecs.animation import Film, to_image
from hasn_cli.images.codecs.avif_metadata import with_metadata
from hasn_cli.images.codecs.avif_sequence import mended
from hasn_cli.images.codecs.bmp_color import read_colors
from hasn_cli.images.codecs.webp_writing import write_animation
from hasn_cli.images.color import code_points, opaque_if_unused, unpremultiply, widen
from hasn_cli.images.compression import Compression
from hasn_cli.images.limits import MAX_FRAMES, Count, Limit, Room
from hasn_cli.images.metadata import INCHES_PER_METRE, left_out, whole_resolution, with_notices, without_orientation
from hasn_cli.images.picture import EncodeOptions, Frame, Metadata, Picture, Pixels, ReplayableFrames
from hasn_cli.images.pointers import GAIN_MAP
from hasn_cli.images.source import Source
from hasn_cli.machine import count_cores

_GAIN_MAP_ITEM = b"\0\0tmap\0"  # no protection, then the item's type
_AVIF_SPEED = 6  # Pillow's default
_TGA_ATTRIBUTES = 494  # offset in a TGA's extension area of the byte that says what its alpha means
_TGA_UNUSED, _TGA_PREMULTIPLIED = (0, 1, 2), 4  # no alpha or undefined; colour multiplied by alpha
_BMP_RESOLUTION = 38  # its offset in the file
_WEBP_METADATA = (b"ICCP", b"EXIF", b"XMP ")


def read_webp(source: Source, limit: Limit) -> Picture:
    """Read a WebP. Its size is checked before it is opened, because opening it allocates the whole canvas."""
    data = source.read()
    source, broken = _mended_webp(source, data)
    chunks, frames = _riff_chunks(source.read() if broken else data)
    height, width = _webp_size(chunks)
    limit.check(source.name, height, width)
    limit.check_total(source.name, height * width * max(1, frames))
    first = bytes(chunks.get(b"ANMF", b"")[16 : 16 + 64])  # the first frame of an animation
    exact = b"VP8L" in chunks or b"VP8L" in first
    picture = _read(source, limit, "webp", WebPImagePlugin.WebPImageFile, lossless=exact, broken=broken)
    return replace(picture, compression=None if exact else Compression("WebP"))


def webp_size(data: bytes) -> tuple[int, int]:
    """Height and width that a WebP declares. Raises the same exceptions as `read_webp`."""
    return _webp_size(_riff_chunks(data)[0])


def _webp_size(chunks: dict[bytes, memoryview]) -> tuple[int, int]:
    if (extended := chunks.get(b"VP8X")) is not None:
        width, height = (int.from_bytes(extended[at : at + 3], "little") + 1 for at in (4, 7))
    elif (lossless := chunks.get(b"VP8L")) is not None:
        bits = int.from_bytes(lossless[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", chunks[b"VP8 "], 6))
    return height, width


def _mended_webp(source: Source, data: bytes) -> tuple[Source, str | None]:
    """Remove the incomplete last frame of a truncated animation, and return a message that names it."""
    if int.from_bytes(data[4:8], "little") + 8 <= len(data) or data[12:16] != b"VP8X":
        return source, None
    at, frames, count = 12, 0, Count("chunks")
    while (end := at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")) <= len(data) and at + 8 <= len(data):
        count.add()
        frames += data[at : at + 4] == b"ANMF"
        at = end + end % 2
    if not frames:
        return source, None
    whole = data[:at] + bytes(max(0, at - len(data)))
    mended = whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:]
    return Source(mended, source.name), f"frame {frames + 1} is damaged (the file is truncated)"


def _riff_chunks(data: bytes) -> tuple[dict[bytes, memoryview], int]:
    """The first chunk of each type, and the number of frames.

    Raises:
        ValueError: the file is truncated.
        TooMuch: there are too many chunks, or too much metadata.
    """
    (length,) = struct.unpack_from("<I", data, 4)
    if length + 8 > len(data):
        raise ValueError("the file is truncated")
    found: dict[bytes, memoryview] = {}
    count, frames, room = Count("chunks"), Count("frames", MAX_FRAMES), Room()
    at = 12
    while at + 8 <= length + 8:
        kind, (size,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        count.add()
        frames.add(kind == b"ANMF")
        room.take(size if kind in _WEBP_METADATA else 0)
        found.setdefault(kind, memoryview(data)[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return found, frames.count


def read_avif(source: Source, limit: Limit) -> Picture:
    """Read an AVIF. A still picture of 10 or 12 bits becomes 16-bit samples."""
    data, cut = mended(source.read())
    broken = None
    if cut is not None:
        source, broken = Source(data, source.name), f"frame {cut + 1} is damaged (the file is truncated)"
    items.check(source.name, data, limit)
    configuration = data.find(b"av1C")
    flags = data[configuration + 6] if 0 < configuration < len(data) - 6 else 0
    depth = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    picture = _read(source, limit, "avif", AvifImagePlugin.AvifImageFile, depth=depth, broken=broken, whole=cut)
    picture = replace(picture, compression=None if items.stores_rgb(data) else Compression("AVIF"))
    if _GAIN_MAP_ITEM in data:
        picture = replace(picture, metadata=with_notices(picture.metadata, left_out(GAIN_MAP)))
    at = data.find(b"colrnclx") + 8
    if at < 8 or picture.metadata.icc is not None:
        return picture
    primaries, transfer = struct.unpack_from(">HH", data, at)
    return replace(picture, metadata=replace(picture.metadata, cicp=code_points(primaries, transfer)))


def read_bmp(source: Source, limit: Limit) -> Picture:
    """Read a BMP of any depth, compressed or not. Like other programs, this ignores alpha that is 0 everywhere."""
    data = source.read()
    colors = read_colors(data)
    if bmp_rle.compression_of(source.head) in (bmp_rle.RLE8, bmp_rle.RLE4):
        source = Source(bmp_rle.unpacked(source.name, data, limit), source.name)
    picture = _with_used_alpha(_read(source, limit, "bmp", BmpImagePlugin.BmpImageFile))
    return replace(picture, metadata=replace(picture.metadata, **colors))


def read_tga(source: Source, limit: Limit) -> Picture:
    """Read a TGA. Its header says how many bits of a pixel are alpha; if it says 0, the alpha bits are ignored.

    An extension area (version 2.0 of the format) may also say that alpha is unused, or that the colour is premultiplied
    by it.
    """
    has_map, bits = source.head[1], source.head[17] & 15
    picture = _read(source, limit, "tga", TgaImagePlugin.TgaImageFile, opaque=not bits and not has_map)
    kind = _tga_alpha(source)
    if kind == _TGA_PREMULTIPLIED and picture.has_alpha:
        return _changed(picture, unpremultiply)
    # the bits in the header do not describe the alpha of a palette
    return _with_used_alpha(picture) if has_map or kind in _TGA_UNUSED else picture


def _tga_alpha(source: Source) -> int | None:
    """The meaning of alpha according to the extension area; None if there is no such area."""
    with source.view() as data:
        if len(data) < 26 or data[-18:-2] != b"TRUEVISION-XFILE":
            return None
        (at,) = struct.unpack("<L", data[-26:-22])
        return data[at + _TGA_ATTRIBUTES] if 0 < at < len(data) - _TGA_ATTRIBUTES else None


def _with_used_alpha(picture: Picture) -> Picture:
    """Make the picture opaque if its alpha is 0 in every pixel: nobody keeps an invisible picture."""
    return _changed(picture, opaque_if_unused) if picture.has_alpha else picture


def _changed(picture: Picture, change: Callable[[Pixels], Pixels]) -> Picture:
    before = picture.frames
    return replace(
        picture, frames=ReplayableFrames(lambda: (replace(frame, pixels=change(frame.pixels)) for frame in before))
    )


def _read(
    source: Source,
    limit: Limit,
    format: str,
    plugin: Callable[[BinaryIO], ImageFile.ImageFile],
    lossless: bool | None = None,
    depth: int = 8,
    opaque: bool = False,
    broken: str | None = None,
    whole: int | None = None,
) -> Picture:
    with plugin(source.open()) as image:
        limit.check(source.name, image.height, image.width)
        count = int(whole or getattr(image, "n_frames", 1) or 1)  # `whole` is the number of complete frames, if known
        mode = _shown_mode(image)
        mode = mode.removesuffix("A") if opaque else mode
        size = (image.height, image.width)
        info = dict(image.info)
        deep = depth > 8 and count == 1

    def frames() -> Iterator[Frame]:
        with plugin(source.open()) as opened:
            for index in range(count):
                opened.seek(index)
                opened.load()
                # Pillow only returns 8 bits, but it has checked that nothing is broken
                pixels = (
                    widen(imagecodecs.avif_decode(source.read()), depth) if deep else np.asarray(opened.convert(mode))
                )
                yield Frame(pixels.reshape(*size, -1), opened.info.get("duration", 0) if count > 1 else None)
        if broken:
            raise ValueError(broken)

    return Picture(
        name=source.name,
        format=format,
        size=size,
        channels=Image.getmodebands(mode),
        dtype=np.dtype(np.uint16 if deep else np.uint8),
        frames=ReplayableFrames(frames),
        frame_count=count,
        broken=broken,
        loop=info.get("loop", 0) if count > 1 else None,
        lossless=format in ("bmp", "tga") if lossless is None else lossless,
        metadata=metadata_from(info),
    )


def _shown_mode(image: Image.Image) -> str:
    """The mode, out of L, LA, RGB and RGBA, that keeps all the information of an image that has just been opened."""
    if image.has_transparency_data:
        return "LA" if image.mode in ("L", "LA") else "RGBA"
    if image.mode == "P":
        palette = image.getpalette("RGB") or []
        return "L" if palette[0::3] == palette[1::3] == palette[2::3] else "RGB"
    return "L" if image.mode in ("1", "L") else "RGB"


def metadata_from(info: Mapping[Any, Any]) -> Metadata:
    """Convert the `info` of Pillow or pillow-heif to metadata."""
    exif: bytes = info.get("exif") or b""
    xmp = info.get("xmp") or None
    dpi = info.get("dpi")
    return Metadata(
        icc=info.get("icc_profile") or None,
        exif=exif.removeprefix(b"Exif\0\0") or None,
        xmp=xmp.encode() if isinstance(xmp, str) else xmp,
        dpi=(float(dpi[0]), float(dpi[1])) if dpi and all(dpi) else None,
    )


def write_webp(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a WebP, with or without loss."""
    if picture.frame_count > 1:
        write_animation(picture, stream, options)
        return
    arguments: dict[str, Any] = {
        "quality": options.quality,
        "lossless": bool(options.lossless),
        "exact": True,
        "method": 4,
    }
    _save(picture, stream, "WEBP", arguments)


def write_avif(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write an AVIF with 8 bits and full-resolution colour. A still picture can be written without loss.

    The frames of an animation are passed to libavif one by one, which keeps them compressed.
    """
    exif = picture.metadata.exif and without_orientation(picture.metadata.exif)
    picture = replace(picture, metadata=replace(picture.metadata, exif=exif))
    if options.lossless and picture.frame_count == 1:
        pixels = np.asarray(to_image(next(iter(picture.frames)).pixels))
        # Pillow only supports YCbCr, which loses information at any quality
        encoded = imagecodecs.avif_encode(
            pixels, level=100, speed=_AVIF_SPEED, primaries=1, transfer=13, numthreads=count_cores()
        )
        stream.write(with_metadata(bytes(encoded), picture.metadata))
        return
    gray = picture.channels == 1 and picture.frame_count == 1
    quality = 100 if options.lossless else options.quality
    _save(picture, stream, "AVIF", {"quality": quality, "subsampling": "4:0:0" if gray else "4:4:4"})


def _save(picture: Picture, stream: BinaryIO, format: str, arguments: dict[str, Any]) -> None:
    metadata = picture.metadata
    for key, value in (("icc_profile", metadata.icc), ("exif", metadata.exif), ("xmp", metadata.xmp)):
        if value:
            arguments[key] = value
    buffer = io.BytesIO()
    if picture.frame_count > 1:
        film = Film(picture)
        film.save(buffer, format, save_all=True, duration=film.durations, **arguments)
    else:
        to_image(next(iter(picture.frames)).pixels).save(buffer, format, **arguments)
    stream.write(buffer.getbuffer())


def write_bmp(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a BMP: 8-bit gray, 24-bit RGB, or 32-bit RGBA with a header that declares the alpha channel."""
    pixels = np.asarray(to_image(next(iter(picture.frames)).pixels))
    encoded = bytearray(imagecodecs.bmp_encode(pixels))
    resolution = whole_resolution(picture.metadata.dpi, INCHES_PER_METRE, 2**31 - 1)
    struct.pack_into("<ll", encoded, _BMP_RESOLUTION, *(resolution or (0, 0)))
    stream.write(encoded)


def write_tga(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write a run-length encoded TGA."""
    pixels = next(iter(picture.frames)).pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, "TGA", compression="tga_rle")
    stream.write(buffer.getbuffer())
