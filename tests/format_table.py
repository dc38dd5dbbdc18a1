"""Measures the table of formats in docs/pictures.md: each cell is a real round trip.

`python tests/format_table.py` updates the page. "read" reads a file that another library wrote, and "write" writes one
that another library reads. The other cells write a picture, read it back and compare.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
from pictures import WIDE_GAMUT, XMP, animation, dng, full_metadata, photo, picture
from PIL import Image

from hasn_cli.errors import ImageError, install_packages
from hasn_cli.images import FORMATS, READ_ONLY, EncodeOptions, Frame, Metadata, Picture, open_picture, write_picture
from hasn_cli.images.codecs.plugins import PACKAGES, is_available
from hasn_cli.images.color import to_srgb
from hasn_cli.images.exif import EXIF_IFD, GPS_IFD, Exif

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "pictures.md"
BEGIN, END = "<!-- formats:begin -->", "<!-- formats:end -->"
BEGIN_READ_ONLY, END_READ_ONLY = "<!-- read-only:begin -->", "<!-- read-only:end -->"
HEADINGS = ("Format", "read", "write", "16-bit", "float", "alpha", "ICC", "EXIF", "XMP", "frames", "largest side")
YES, NO = "yes", "–"
LOSSLESS = EncodeOptions(lossless=True, quality=100)


def foreign_file(format: str) -> bytes:
    """`photo()` written by another library."""
    pixels = photo()
    buffer = io.BytesIO()
    if format == "jpegxl":
        return bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    if format == "pfm":
        return b"PF\n64 48\n-1.0\n" + photo(dtype=np.float32)[::-1].astype("<f4").tobytes()
    if format == "heic":
        import pillow_heif

        pillow_heif.from_pillow(Image.fromarray(pixels)).save(buffer, quality=100)
    elif format == "ico":
        Image.fromarray(pixels).save(buffer, "ICO", sizes=[(64, 48)], bitmap_format="bmp")
    else:
        Image.fromarray(pixels).save(buffer, format.upper(), quality=95)
    return buffer.getvalue()


def foreign_files(format: str) -> list[bytes]:
    """Files of a format that is only read, made by another library."""
    if format == "raw":
        return [dng(photo(), 6, full=True), dng(photo(31, 46))]
    return [encode() for encode in _FOREIGN[format]]


def photoshop_file(pixels: np.ndarray, icc: bytes = b"") -> bytes:
    """A Photoshop file without layers: 8-bit pixels in planes, not compressed."""
    height, width, channels = pixels.shape
    head = struct.pack(">4sH6xHIIHH", b"8BPS", 1, channels, height, width, 8, 3 if channels > 2 else 1)
    resource = struct.pack(">4sHHI", b"8BIM", 1039, 0, len(icc)) + icc + bytes(len(icc) % 2) if icc else b""
    planes = pixels.transpose(2, 0, 1).tobytes()
    return head + struct.pack(">II", 0, len(resource)) + resource + struct.pack(">IH", 0, 0) + planes


def through_pillow(kind: str, image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _exr() -> bytes:
    os.environ |= {"OPENCV_IO_ENABLE_OPENEXR": "1", "OPENCV_LOG_LEVEL": "SILENT"}
    import cv2

    return cv2.imencode(".exr", photo(dtype=np.float32)[..., ::-1])[1].tobytes()


def _fits() -> bytes:
    from astropy.io import fits

    buffer = io.BytesIO()
    fits.PrimaryHDU(photo(channels=1, dtype=np.uint16)[::-1, :, 0]).writeto(buffer)
    return buffer.getvalue()


def _dicom() -> bytes:
    from imageio.v3 import imwrite

    return imwrite("<bytes>", photo(), plugin="pydicom", extension=".dcm")


_FOREIGN: dict[str, list[Callable[[], bytes]]] = {
    "psd": [lambda: photoshop_file(photo()), lambda: photoshop_file(photo(channels=1), WIDE_GAMUT)],
    "qoi": [lambda: bytes(imagecodecs.qoi_encode(photo())), lambda: bytes(imagecodecs.qoi_encode(photo(channels=4)))],
    "dds": [lambda: through_pillow("DDS", Image.fromarray(photo(channels=4)))],
    "pcx": [
        lambda: through_pillow("PCX", Image.fromarray(photo())),
        lambda: through_pillow("PCX", Image.fromarray(photo()).quantize(16)),
    ],
    "sgi": [lambda: through_pillow("SGI", Image.fromarray(photo()))],
    "xbm": [lambda: through_pillow("XBM", Image.fromarray(photo()).convert("1"))],
    "exr": [_exr],
    "fits": [_fits],
    "dicom": [_dicom],
}


def foreign_pixels(format: str, data: bytes) -> np.ndarray:
    """The pixels that another library reads from a file."""
    if format == "jpegxl":
        return np.asarray(imagecodecs.jpegxl_decode(data))
    if format == "tiff":
        return np.asarray(imagecodecs.tiff_decode(data))
    if format == "pfm":
        body = np.frombuffer(data.split(b"-1.0\n", 1)[1], "<f4").reshape(48, 64, 3)
        return np.rint(body[::-1] * 255)
    if format == "heic":
        import pillow_heif

        return np.asarray(pillow_heif.open_heif(data)[0])
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def through(shown: Picture, format: str, options: EncodeOptions = LOSSLESS) -> Picture:
    """Write a picture and read it again."""
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, options)
    return open_picture(buffer.getvalue())


def pixels_of(shown: Picture) -> np.ndarray:
    return next(iter(shown.frames)).pixels


def close(found: np.ndarray, wanted: np.ndarray, limit: float = 6) -> bool:
    """Whether the mean difference is below `limit` levels of 255: enough for lossy formats, too little for a shift."""
    return found.shape == wanted.shape and float(np.abs(found.astype(float) - wanted).mean()) < limit


def measure(format: str) -> dict[str, str]:
    """Measure the cells of one format's row."""
    return {
        "Format": FORMATS[format].title,
        "read": reading(format),
        "write": writing(format),
        "16-bit": depth(format),
        "float": floats(format),
        "alpha": alpha(format),
        "ICC": profile(format),
        "EXIF": exif_kept(format),
        "XMP": YES if through(picture(photo(), metadata=Metadata(xmp=XMP)), format).metadata.xmp == XMP else NO,
        "frames": frames(format),
        "largest side": f"{FORMATS[format].max_side:,}".replace(",", " "),
    }


def reading(format: str) -> str:
    found = open_picture(foreign_file(format))
    pixels = pixels_of(found)
    if pixels.dtype == np.float32:
        pixels = np.rint(pixels * 255)
    pixels = pixels[..., :3]  # every picture in an icon has an alpha channel
    return YES if close(pixels, photo()) and found.format == format else NO


def writing(format: str) -> str:
    extra = FORMATS[format].extra
    if not close(foreign_pixels(format, written(format)), photo()):
        return NO
    return f"with extra `{extra}`" if extra else YES


def written(format: str) -> bytes:
    buffer = io.BytesIO()
    write_picture(picture(photo()), buffer, format, LOSSLESS)
    return buffer.getvalue()


def depth(format: str) -> str:
    pixels = photo(dtype=np.uint16)
    found = pixels_of(through(picture(pixels), format))
    if found.dtype == np.uint16:
        error = float(np.abs(found.astype(float) - pixels).max())
        return YES if error == 0 else f"{round(-math.log2(2 * error / 65536))} bits"
    if format == "avif":
        data = bytes(imagecodecs.avif_encode(photo(dtype=np.uint16) >> 6, level=100, bitspersample=10))
        found = pixels_of(open_picture(data))
        return "read only" if found.dtype == np.uint16 and close(found / 257, pixels / 257) else NO
    return NO


def floats(format: str) -> str:
    pixels = photo(dtype=np.float32) * 700 - 20  # far outside [0, 1]
    try:
        found = pixels_of(through(picture(pixels), format))
    except ImageError:
        return NO
    return YES if found.dtype == np.float32 and np.array_equal(found, pixels) else NO


def alpha(format: str) -> str:
    pixels = photo(channels=4)
    try:
        found = pixels_of(through(picture(pixels), format))
    except ImageError:
        return NO
    if close(found[..., 3], pixels[..., 3], 1):
        return YES
    return "on or off" if np.array_equal(found[..., 3] == 255, pixels[..., 3] >= 128) else NO


def profile(format: str) -> str:
    found = through(picture(photo(), metadata=Metadata(icc=WIDE_GAMUT)), format)
    if found.metadata.icc == WIDE_GAMUT:
        return YES
    pixels = pixels_of(found)
    pixels = np.rint(pixels * 255) if pixels.dtype == np.float32 else pixels
    return "to sRGB" if close(pixels, to_srgb(photo(), WIDE_GAMUT)) else NO


def exif_kept(format: str) -> str:
    block = through(picture(photo(), metadata=full_metadata()), format).metadata.exif
    if block is None:
        return NO
    found = Exif(block)
    private, gps = found.number(found.first, EXIF_IFD), found.number(found.first, GPS_IFD)
    if private is None or gps is None:
        return NO
    time, latitude = found.find(private, 0x9003), found.find(gps, 2)
    kept = time and latitude and found.value(time).startswith(b"2024:05:06") and latitude.count == 3
    return YES if kept else NO


def frames(format: str) -> str:
    for kind, film in (("animation", animation()), ("pages", pages())):
        try:
            found = through(film, format)
            shown = list(found.frames)
        except ImageError:
            continue
        same = found.loop == film.loop and [f.duration for f in shown] == [f.duration for f in film.frames]
        visible = [(f.pixels * (f.pixels[..., 3:] > 0), g.pixels) for f, g in zip(shown, film.frames, strict=True)]
        if all(close(a, b, 3) for a, b in visible):
            return kind if same else f"{kind}, played forever"
    return NO


def pages() -> Picture:
    film = animation()
    return replace(film, paged=True, loop=None, frames=[Frame(frame.pixels) for frame in film.frames])


def table() -> str:
    """The whole table in Markdown."""
    rows = [measure(format) for format in FORMATS]
    lines = [list(HEADINGS), ["---"] * len(HEADINGS), *([row[heading] for heading in HEADINGS] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_of_read_only() -> str:
    """The table of formats that are only read. A format whose package is missing here is not tried."""
    lines = [["Format", "names", "read", "result"], ["---"] * 4]
    for name, only in READ_ONLY.items():
        read = f"with `{install_packages(PACKAGES[name][1])}`" if name in PACKAGES else YES
        works = not is_available(name) or all(open_picture(data).load().format == name for data in foreign_files(name))
        lines.append([only.title, " ".join(only.suffixes), read if works else NO, FORMATS[only.output].title])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def update(text: str, body: str, begin: str = BEGIN, end: str = END) -> str:
    """`text` with everything between the markers replaced by `body`."""
    return re.sub(f"(?s){begin}.*?{end}", f"{begin}\n{body}\n{end}", text)


if __name__ == "__main__":
    body, read_only = table(), table_of_read_only()
    text = update(PAGE.read_text("utf-8"), body)
    PAGE.write_text(update(text, read_only, BEGIN_READ_ONLY, END_READ_ONLY), "utf-8")
    print(body, read_only, sep="\n\n")
