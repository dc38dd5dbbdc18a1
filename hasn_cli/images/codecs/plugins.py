"""Reads formats that only imageio knows, through one of its plugins: the pixels and what they mean, nothing else.

A plugin is opened by name, only for a file with the signature of its own format, and after its declared size was
checked. Plugins for video (PyAV, FFmpeg) and those that start other programs are never used. pydicom, astropy and
OpenCV are optional: they belong to no extra, because few people need them, and an error names the package to install.
"""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
from imageio.core.request import InitializationError
from imageio.v3 import imopen
from PIL import Image, UnidentifiedImageError

from hasn_cli.errors import ImageError, install_packages
from hasn_cli.images.color import cmyk_to_srgb, srgb_profile, unpremultiply, widen
from hasn_cli.images.limits import Limit
from hasn_cli.images.picture import Frame, Metadata, Picture, Pixels, ReplayableFrames
from hasn_cli.images.source import Source

PACKAGES = {
    "exr": ("cv2", '"opencv-python-headless<5"'),  # the wheels of version 5 do not contain OpenEXR
    "fits": ("astropy", "astropy"),
    "dicom": ("pydicom", "pydicom"),
}
"""Format → the package that its plugin needs besides Pillow, by the name to import and the name to install."""

_open: Any = imopen  # whose types do not know all of its own plugins
_CHANNELS = {"1": 1, "L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "RGBX": 3, "CMYK": 3}
_PSD_DEPTH, _SGI_DEPTH = 22, 3  # offsets in their headers
_DDS_FLAGS = 80  # the offset of the flags of its pixel format
_EXR_HEADER = 1 << 16  # bytes of its header that are searched
_LINEAR = 1.0  # the gamma of OpenEXR, whose primaries are those of sRGB if it names no others


def is_available(format: str) -> bool:
    """Whether the package that a format needs is installed."""
    return format not in PACKAGES or find_spec(PACKAGES[format][0]) is not None


def read_qoi(source: Source, limit: Limit) -> Picture:
    """Read a QOI."""
    return _through_pillow(source, limit, "qoi")


def read_pcx(source: Source, limit: Limit) -> Picture:
    """Read a PCX."""
    return _through_pillow(source, limit, "pcx")


def read_sgi(source: Source, limit: Limit) -> Picture:
    """Read an SGI picture. Of 16-bit samples, Pillow keeps the upper 8 bits; a notice says so."""
    found = _through_pillow(source, limit, "sgi")
    lost = ("only 8 of its 16 bits are read",) if source.head[_SGI_DEPTH] == 2 else ()
    return replace(found, metadata=replace(found.metadata, notices=found.metadata.notices + lost))


def read_dds(source: Source, limit: Limit) -> Picture:
    """Read the largest picture of a DDS texture."""
    compressed = bool(source.head[_DDS_FLAGS] & 4)  # it names a compression, and all of them lose something
    return replace(_through_pillow(source, limit, "dds"), lossless=not compressed)


def read_xbm(source: Source, limit: Limit) -> Picture:
    """Read an XBM. A set bit is black, as for X11 and Netpbm; Pillow takes it for white."""
    found = _through_pillow(source, limit, "xbm")
    shown = ReplayableFrames(lambda: (replace(frame, pixels=255 - frame.pixels) for frame in found.frames))
    return replace(found, frames=shown)


def read_psd(source: Source, limit: Limit) -> Picture:
    """Read the picture of a Photoshop file with all its layers together.

    Raises:
        ValueError: it has 16 or 32 bits, or colours that Pillow does not know.
    """
    (depth,) = struct.unpack_from(">H", source.head, _PSD_DEPTH)
    if depth not in (1, 8):
        raise ValueError(f"Photoshop files with {depth} bits are not supported; save it as TIFF")
    return _through_pillow(source, limit, "psd")


def _through_pillow(source: Source, limit: Limit, format: str) -> Picture:
    with _header(source, format) as image:
        mode = image.palette.mode if image.mode == "P" and image.palette else image.mode
        size, icc = (image.height, image.width), image.info.get("icc_profile")
    limit.check(source.name, *size)
    if mode not in _CHANNELS:
        raise ValueError(f"its colours ({mode}) are not supported")
    if mode == "CMYK":
        profile: bytes | None = srgb_profile()
    else:
        profile = icc or None

    def frames() -> Iterator[Frame]:
        with imopen(source.read(), "r", plugin="pillow") as file:
            stored = np.asarray(next(file.iter())).reshape(*size, -1)
        samples = widen(stored, 1) if stored.dtype == bool else stored
        if mode == "CMYK":
            samples = cmyk_to_srgb(samples, icc)
        yield Frame(samples[..., : _CHANNELS[mode]])

    return _picture(
        source, format, size, _CHANNELS[mode], np.uint8, ReplayableFrames(frames), "Pillow", Metadata(icc=profile)
    )


def _header(source: Source, format: str) -> Image.Image:
    """Open a file as this format only, without decoding it."""
    try:
        return Image.open(source.open(), formats=[format.upper()])
    except UnidentifiedImageError:
        raise ValueError("its header is damaged, or of an unusual kind") from None


def read_exr(source: Source, limit: Limit) -> Picture:
    """Read an OpenEXR picture through OpenCV. Its samples are floats in linear light, which the metadata states."""
    limit.check(source.name, *_exr_size(source.read_up_to(_EXR_HEADER)))
    os.environ.setdefault("OPENCV_IO_ENABLE_OPENEXR", "1")  # OpenCV looks at both when it is imported or first used
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    pixels = _decoded(source, "exr", "opencv", lambda file: file.read(index=0, flags=-1))  # -1: as it is stored
    pixels = unpremultiply(pixels) if pixels.shape[2] in (2, 4) else pixels
    return _whole(source, "exr", limit, pixels, "OpenCV", Metadata(gamma=_LINEAR))


def _exr_size(head: bytes) -> tuple[int, int]:
    """Height and width that an OpenEXR header declares."""
    at = head.index(b"dataWindow\0box2i\0") + 21
    left, top, right, bottom = struct.unpack_from("<4i", head, at)
    return bottom - top + 1, right - left + 1


def read_fits(source: Source, limit: Limit) -> Picture:
    """Read the first picture of a FITS file through astropy. FITS stores rows from the bottom to the top.

    Raises:
        ValueError: it is compressed, so that its size cannot be checked, or its samples are not a plane.
    """
    with source.view() as data:
        if data.find(b"ZIMAGE") >= 0:
            raise ValueError("compressed FITS files are not supported; unpack it with funpack")
    pixels = _decoded(source, "fits", "FITS", lambda file: np.asarray(file.read(index=0)))
    return _whole(source, "fits", limit, pixels[::-1], "FITS")


def read_dicom(source: Source, limit: Limit) -> Picture:
    """Read a DICOM picture through pydicom, as it is meant to be shown: with its window and in its colours.

    Raises:
        ValueError: it has several frames.
    """

    def decode(file: Any) -> Pixels:
        shape, dtype = file.properties().shape, file.properties().dtype
        about = file.metadata()
        if int(about.get("NumberOfFrames") or 1) != 1:
            raise ValueError("DICOM files with several frames are not supported")
        limit.check(source.name, *shape[:2])
        pixels: Pixels = np.asarray(file.read())
        if about.get("PhotometricInterpretation") == "MONOCHROME1":  # zero is white
            pixels = (pixels.max() + pixels.min()) - pixels if dtype.kind == "f" else np.iinfo(dtype).max - pixels
        bits = int(about.get("BitsStored") or 0)
        return widen(pixels, bits) if dtype.kind == "u" and 0 < bits <= 16 else pixels

    return _whole(source, "dicom", limit, _decoded(source, "dicom", "pydicom", decode), "pydicom")


def _decoded(source: Source, format: str, plugin: str, decode: Callable[[Any], Pixels]) -> Pixels:
    """H×W×C samples from a plugin that needs an optional package.

    Raises:
        ImageError: the package is missing, or cannot read the file.
    """
    install = install_packages(PACKAGES[format][1])
    if not is_available(format):
        raise ImageError(f"{source.name}: this format needs another package", install)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged headers, which are either read or refused
            opened: Any = _open(source.read(), "r", plugin=plugin, extension=f".{format}")
            with opened as file:
                pixels = decode(file)
    except InitializationError as error:
        raise ImageError(f"{source.name}: imageio's {plugin} plugin cannot read it", f"try: {install}") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _whole(
    source: Source, format: str, limit: Limit, pixels: Pixels, plugin: str, metadata: Metadata | None = None
) -> Picture:
    """A picture of samples that are decoded already, if they are of a kind that can be enlarged."""
    if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
        raise ValueError(f"it holds samples of the shape {'×'.join(map(str, pixels.shape))}, which are no picture")
    limit.check(source.name, *pixels.shape[:2])
    if pixels.dtype.kind == "f" or (pixels.dtype.kind == "i" and pixels.dtype.itemsize <= 2):
        pixels = pixels.astype(np.float32)
    elif pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"samples of the type {pixels.dtype.name} are not supported")
    pixels = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))
    size, channels = pixels.shape[:2], pixels.shape[2]
    return _picture(source, format, size, channels, pixels.dtype, [Frame(pixels)], plugin, metadata or Metadata())


def _picture(
    source: Source,
    format: str,
    size: tuple[int, int],
    channels: int,
    dtype: Any,
    frames: ReplayableFrames | list[Frame],
    plugin: str,
    metadata: Metadata,
) -> Picture:
    notice = f"read by imageio's {plugin} plugin: pixels{' and colour profile' if metadata.icc else ''} only"
    return Picture(
        name=source.name,
        format=format,
        size=size,
        channels=channels,
        dtype=np.dtype(dtype),
        frames=frames,
        metadata=replace(metadata, notices=(notice,)),
    )
