"""Reads HEIC through pi-heif (libheif, libde265), and writes it through pillow-heif (also x265), an optional package.

Both contain their own copy of libheif and may be loaded in one process. pi-heif always reads, so that a file gives the
same pixels whether pillow-heif is installed or not.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np
import pi_heif

from hasn_cli.errors import MissingExtraError
from hasn_cli.images.codecs import items
from hasn_cli.images.codecs.boxes import declared_length, top_kinds
from hasn_cli.images.codecs.pillow import metadata_from
from hasn_cli.images.color import code_points, widen
from hasn_cli.images.compression import Compression
from hasn_cli.images.limits import Limit
from hasn_cli.images.metadata import applied, left_out, with_notices
from hasn_cli.images.picture import EncodeOptions, Frame, Picture, ReplayableFrames
from hasn_cli.images.pointers import DEPTH_MAP, GAIN_MAP, OTHERS, VIDEO
from hasn_cli.images.source import Source


def read(source: Source, limit: Limit) -> Picture:
    """Read the main picture of an HEIC file. Samples of more than 8 bits become 16-bit samples."""
    data = source.read()
    items.check(source.name, data, limit)
    items.check_types(data)
    with _opened(data) as file:
        image, count = _main_picture(file), len(file)
    width, height = image.size
    limit.check(source.name, height, width)
    depth = image.info.get("bit_depth", 8)
    metadata = metadata_from(image.info)
    colors = image.info.get("nclx_profile")
    if metadata.icc is None and colors:
        cicp = code_points(colors["color_primaries"], colors["transfer_characteristics"])
        metadata = replace(metadata, cicp=cicp)
    metadata = with_notices(metadata, *map(left_out, _other_parts(image.info, count, data)))

    def frames() -> Iterator[Frame]:
        with _opened(source.read()) as again:
            # copied, because pi-heif frees the pixels together with `again`
            pixels = np.array(_main_picture(again)).reshape(height, width, -1)
        # pi-heif returns deeper samples in the upper bits of 16
        yield Frame(pixels if depth <= 8 else widen(pixels >> (16 - depth), depth))

    return Picture(
        name=source.name,
        format="heic",
        size=(height, width),
        channels=len(image.mode.partition(";")[0]),
        dtype=np.dtype(np.uint16 if depth > 8 else np.uint8),
        frames=ReplayableFrames(frames),
        lossless=False,
        compression=None if items.stores_rgb(data) else Compression("HEIC"),
        # libheif has applied the file's own orientation; the one in EXIF is only a copy of it
        metadata=applied(metadata, (height, width)),
    )


def _main_picture(file: Any) -> Any:
    if not len(file):
        raise ValueError("it holds no picture in HEVC, the one coding of HEIF that is supported")
    return file[file.primary_index]


@contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """Open a file in pi-heif.

    Raises:
        ValueError: it ends before the end of its pictures; also raised for an error within the block.
        Exception: it is broken in another way.
    """
    try:
        yield pi_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    except Exception as error:
        if declared_length(data) > len(data):
            raise ValueError("the file is truncated") from error
        raise


def _other_parts(info: Mapping[str, Any], count: int, data: bytes) -> Iterator[str]:
    """The kinds of further pictures in the file, which are not copied."""
    if any("gainmap" in str(kind).lower() for kind in info.get("aux") or ()):
        yield GAIN_MAP
    if info.get("depth_images"):
        yield DEPTH_MAP
    if count > 1:
        yield OTHERS
    if b"mpvd" in top_kinds(data):
        yield VIDEO


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions) -> None:
    """Write an HEIC with full-resolution colour: 8 bits, or 12 bits for 16-bit pixels.

    Raises:
        MissingExtraError: pillow-heif is not installed.
    """
    heif = _encoder(picture.name)
    pixels = next(iter(picture.frames)).pixels
    height, width = picture.size
    if pixels.shape[2] == 2:
        pixels = pixels[..., (0, 0, 0, 1)]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[2]] + (";16" if pixels.dtype == np.uint16 else "")
    heif.options.SAVE_HDR_TO_12_BIT = True
    file = heif.from_bytes(mode=mode, size=(width, height), data=pixels.tobytes())
    metadata = picture.metadata
    buffer = io.BytesIO()
    # for the encoder, -1 means lossless
    quality = -1 if options.lossless else options.quality
    file.save(buffer, quality=quality, chroma=444, exif=metadata.exif, xmp=metadata.xmp, icc_profile=metadata.icc)
    stream.write(buffer.getbuffer())


def _encoder(name: str) -> Any:
    try:
        import pillow_heif
    except ImportError:
        raise MissingExtraError(f"{name}: writing HEIC", "heic") from None
    return pillow_heif
