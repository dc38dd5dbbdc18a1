"""Develops camera RAW files through rawpy (LibRaw), always with the same settings, to 16-bit sRGB.

imageio's rawpy plugin calls the same library, but it decodes the whole picture before it tells the size, so that no
limit could be checked, and it hides why a file cannot be read. rawpy is therefore called directly.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import rawpy

from hasn_cli.errors import ImageError
from hasn_cli.images.codecs import jpeg
from hasn_cli.images.codecs.raw_structure import exif_in, is_complete, packets_in, preview_in
from hasn_cli.images.color import srgb_profile
from hasn_cli.images.exif import EXIF_IFD, Exif
from hasn_cli.images.limits import Limit
from hasn_cli.images.metadata import apply_orientation, upright
from hasn_cli.images.picture import Frame, Metadata, Picture, Pixels, ReplayableFrames
from hasn_cli.images.source import Source

SETTINGS: dict[str, Any] = {
    "output_bps": 16,
    "output_color": rawpy.ColorSpace.sRGB,
    "gamma": (2.4, 12.92),  # sRGB's curve; LibRaw's default is that of BT.709
    "no_auto_bright": True,
    "adjust_maximum_thr": 0.0,  # white is the sensor's, not the brightest sample of this picture
    "highlight_mode": rawpy.HighlightMode.Clip,
    "user_flip": 0,  # turned here, after the crop
}
"""How every file is developed. Nothing in it depends on the picture, except the white balance that the camera chose."""

_DAMAGED = "copy it from the camera or its card again"
_UNKNOWN = "develop it in another program, or convert it to DNG, and upscale the result"
_ORIENTATIONS = {0: 1, 1: 2, 2: 4, 3: 3, 4: 5, 5: 8, 6: 6, 7: 7}  # LibRaw's flip → EXIF's orientation
_LEAST_CROP = 0.55  # of a side: a smaller crop is a digital zoom or an error, which LibRaw ignores, too
_COLOR_SPACE, _SRGB = 0xA001, 1
_REASONS = {
    rawpy.LibRawIOError: ("the file is truncated", _DAMAGED),
    rawpy.LibRawDataError: ("its data are damaged, or the file is truncated", _DAMAGED),
    rawpy.LibRawFileUnsupportedError: ("LibRaw does not know this camera or this kind of compression", _UNKNOWN),
}
_stderr = threading.Lock()


def read(source: Source, limit: Limit) -> Picture:
    """Read a RAW file's header. It is developed when its frame is iterated.

    Raises:
        ImageError: LibRaw does not support the file.
    """
    data = source.read()
    if not is_complete(data):
        raise ImageError(f"{source.name}: the file is truncated", _DAMAGED)
    with _opened(source) as raw:
        sizes = raw.sizes
        channels = 1 if raw.num_colors == 1 else 3
    for height, width in ((sizes.raw_height, sizes.raw_width), (sizes.height, sizes.width)):
        limit.check(source.name, height, width)
    whole, crop = _with_square_pixels(sizes), _crop(sizes)
    limit.check(source.name, *whole)
    stored = (crop[0].stop - crop[0].start, crop[1].stop - crop[1].start) if crop else whole
    orientation = _ORIENTATIONS.get(sizes.flip, 1)
    shown = stored[::-1] if orientation >= 5 else stored

    def frames() -> Iterator[Frame]:
        with _opened(source) as raw:
            pixels = _developed(raw)
        if pixels.shape != (*whole, channels):
            raise ValueError("sensors with slanted rows of pixels are not supported")
        yield Frame(apply_orientation(pixels[crop] if crop else pixels, orientation))

    return Picture(
        name=source.name,
        format="raw",
        size=shown,
        channels=channels,
        dtype=np.dtype(np.uint16),
        frames=ReplayableFrames(frames),
        metadata=upright(_metadata(source, data, limit, channels), stored, orientation),
    )


def _with_square_pixels(sizes: Any) -> tuple[int, int]:
    """Height and width after LibRaw has enlarged the shorter side of pixels that are not square."""
    height, width, aspect = sizes.height, sizes.width, sizes.pixel_aspect
    if 0 < aspect < 0.995:
        return int(height / aspect + 0.5), width
    return (height, int(width * aspect + 0.5)) if aspect > 1.005 else (height, width)


def _crop(sizes: Any) -> tuple[slice, slice] | None:
    """Rows and columns that the camera's crop keeps; None for all. The file counts them on the whole sensor."""
    top, left = sizes.crop_top_margin - sizes.top_margin, sizes.crop_left_margin - sizes.left_margin
    height, width = sizes.crop_height, sizes.crop_width
    inside = 0 <= top <= sizes.height - height and 0 <= left <= sizes.width - width
    large = height >= _LEAST_CROP * sizes.height and width >= _LEAST_CROP * sizes.width
    if not (inside and large) or _with_square_pixels(sizes) != (sizes.height, sizes.width):
        return None
    return slice(top, top + height), slice(left, left + width)


def _developed(raw: Any) -> Pixels:
    """H×W×C samples of 16 bits, not cropped or turned yet."""
    # without a stated white balance, LibRaw would derive one from the picture; this is the one for daylight instead
    stated = raw.camera_whitebalance[0] > 0
    pixels: Pixels = raw.postprocess(use_camera_wb=stated, **SETTINGS)
    return pixels.reshape(*pixels.shape[:2], -1)


@contextmanager
def _opened(source: Source) -> Iterator[Any]:
    """Open a file in LibRaw, and turn its errors into plain words. What LibRaw prints is discarded."""
    with source.open() as stream, _silence():
        try:
            with rawpy.imread(stream) as raw:
                yield raw
        except rawpy.LibRawError as error:
            unnamed = (error.args[0].decode() if isinstance(error.args[0], bytes) else str(error), _UNKNOWN)
            reason, hint = next((known for kind, known in _REASONS.items() if isinstance(error, kind)), unnamed)
            raise ImageError(f"{source.name}: this camera RAW file cannot be developed: {reason}", hint) from error


@contextmanager
def _silence() -> Iterator[None]:
    """Discard what C code writes to standard error. LibRaw reports damage there, and rawpy cannot tell it not to."""
    with _stderr, open(os.devnull, "wb") as nowhere:  # noqa: PTH123
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _metadata(source: Source, data: bytes, limit: Limit, channels: int) -> Metadata:
    """Metadata as stored, with the colour profile of the developed picture."""
    preview = preview_in(data)
    if preview:
        found = jpeg.read(Source(preview, source.name), limit).metadata
        metadata = Metadata(exif=found.exif, xmp=found.xmp, iptc=found.iptc)
    else:
        xmp, iptc = packets_in(data)
        metadata = Metadata(exif=exif_in(data), xmp=xmp, iptc=iptc)
    # a gray picture without a profile has sRGB's curve
    return replace(metadata, icc=srgb_profile() if channels == 3 else None, exif=_of_srgb(metadata.exif))


def _of_srgb(block: bytes | None) -> bytes | None:
    """State sRGB in EXIF: the camera states there in which space it would have stored a JPEG."""
    if block is None:
        return None
    exif = Exif(block)
    private = exif.number(exif.first, EXIF_IFD)
    if private is not None:
        exif.set_number(private, _COLOR_SPACE, _SRGB)
    return bytes(exif.data)
