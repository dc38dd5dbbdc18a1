"""Pictures for tests (from installed packages, or made here), and replacements for the network."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import skimage
import tifffile
from PIL import Image

from hasn_cli.images import EncodeOptions, Frame, Metadata, Picture, Text, open_picture, write_picture
from hasn_cli.images.codecs.tiff import _append_metadata
from hasn_cli.images.exif import Exif

SKIMAGE = Path(skimage.__file__).parent / "data"
ICC_FOLDER = Path("/usr/share/color/icc/ghostscript")
LOSSLESS = EncodeOptions(lossless=True)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="1"/></x:xmpmeta>'
IPTC = b"\x1c\x02\x50\x00\x05Hello"
WIDE_GAMUT = bytes(imagecodecs.cms_profile("adobergb"))
MAKER_NOTE = b"MAKER\0\1\2\3 offsets live here" + bytes(range(200))


def photo(height: int = 48, width: int = 64, channels: int = 3, dtype: type = np.uint8) -> np.ndarray:
    """H×W×C pixels of the astronaut. Alpha is a ramp from transparent to opaque; 16-bit samples get 8 bits of noise."""
    with Image.open(SKIMAGE / "astronaut.png") as image:
        rgb = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BOX))
    gray = rgb.mean(axis=2, keepdims=True).astype(np.uint8)
    alpha = np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], gray.shape)
    pixels = np.concatenate(((gray,) if channels <= 2 else (rgb,)) + ((alpha,) if channels in (2, 4) else ()), axis=2)
    if dtype == np.uint16:
        noise = np.random.default_rng(1).integers(0, 256, pixels.shape)
        return np.where(pixels == 255, 65535, pixels.astype(np.uint16) * 256 + noise).astype(np.uint16)
    return pixels if dtype == np.uint8 else (pixels / 255).astype(dtype)


def picture(pixels: np.ndarray, format: str = "png", **fields: object) -> Picture:
    """A still picture with these pixels."""
    height, width, channels = pixels.shape
    fields.setdefault("frames", [Frame(pixels)])
    return Picture("test", format, (height, width), channels, pixels.dtype, **fields)  # type: ignore[arg-type]


def animation(format: str = "png", count: int = 3, **fields: object) -> Picture:
    """A disc that moves over a transparent canvas, in frames of 100, 150, 200 … milliseconds, played 3 times."""
    frames = []
    rows, columns = np.mgrid[:40, :56]
    for index in range(count):
        inside = (rows - 20) ** 2 + (columns - 12 - 8 * index) ** 2 < 100
        pixels = np.zeros((40, 56, 4), np.uint8)
        pixels[inside] = (200, 40 * index, 30, 255)
        frames.append(Frame(pixels, 100.0 + 50 * index))
    fields = {"frame_count": count, "loop": 3} | fields
    return picture(frames[0].pixels, format, frames=frames, **fields)


def exif(orientation: int = 1, size: tuple[int, int] = (48, 64), thumbnail: bool = True, order: str = ">") -> bytes:
    """An EXIF block as cameras write it: maker, orientation, size, time, maker note, GPS, thumbnail."""
    jpeg = io.BytesIO()
    Image.new("RGB", (16, 12), "red").save(jpeg, "JPEG")

    def directory(entries: list[tuple[int, int, int, bytes]], at: int, following: int = 0) -> bytes:
        free = at + 2 + 12 * len(entries) + 4
        table, values = b"", b""
        for tag, kind, count, value in entries:
            if len(value) > 4:
                value, values = struct.pack(order + "L", free + len(values)), values + value + bytes(len(value) % 2)
            table += struct.pack(order + "HHL", tag, kind, count) + value.ljust(4, b"\0")
        return struct.pack(order + "H", len(entries)) + table + struct.pack(order + "L", following) + values

    def short(value: int) -> bytes:
        return struct.pack(order + "H", value)

    def long(value: int) -> bytes:
        return struct.pack(order + "L", value)

    private = [
        (0x9003, 2, 20, b"2024:05:06 07:08:09\0"),
        (0x927C, 7, len(MAKER_NOTE), MAKER_NOTE),
        (0xA002, 3, 1, short(size[1])),
        (0xA003, 3, 1, short(size[0])),
    ]
    gps = [(1, 2, 2, b"N\0"), (2, 5, 3, struct.pack(order + "6L", 52, 1, 31, 1, 12, 1))]
    first = 8
    main = [(0x010F, 2, 6, b"Maker\0"), (0x0112, 3, 1, short(orientation)), (0x8769, 4, 1, b""), (0x8825, 4, 1, b"")]
    second = first + len(directory(main, first))
    third = second + len(directory(private, second))
    fourth = third + len(directory(gps, third))
    main[2:] = [(0x8769, 4, 1, long(second)), (0x8825, 4, 1, long(third))]
    block = directory(main, first, fourth if thumbnail else 0) + directory(private, second) + directory(gps, third)
    if thumbnail:
        small = [(0x0103, 3, 1, short(6)), (0x0201, 4, 1, b""), (0x0202, 4, 1, long(jpeg.tell()))]
        end = fourth + len(directory(small, fourth))
        small[1] = (0x0201, 4, 1, long(end))
        block += directory(small, fourth) + jpeg.getvalue()
    return (b"II*\0" if order == "<" else b"MM\0*") + long(first) + block


def full_metadata(icc: bytes | None = WIDE_GAMUT) -> Metadata:
    """Metadata of every kind."""
    texts = (Text("Comment", "a comment"), Text("Title", "Grüße"), Text("Author", "日本", "ja", "作者"))
    return Metadata(icc=icc, exif=exif(), xmp=XMP, iptc=IPTC, dpi=(300.0, 300.0), text=texts)


def interlaced(pixels: np.ndarray, bits: int) -> bytes:
    """A PNG in seven passes (Adam7) with unfiltered rows, from H×W×C stored values."""
    height, width, channels = pixels.shape
    raw = b""
    for first_row, first_column, row_step, column_step in (
        (0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)
    ):  # fmt: skip
        part = pixels[first_row::row_step, first_column::column_step]
        for row in part if part.size else ():
            digits = (row.reshape(-1)[:, None] >> np.arange(bits - 1, -1, -1)) & 1
            raw += b"\0" + np.packbits(digits.astype(np.uint8)).tobytes()
    head = struct.pack(">IIBBBBB", width, height, bits, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n"
    for body in (b"IHDR" + head, b"IDAT" + zlib.compress(raw), b"IEND"):
        data += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data


_TO_CAMERA = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.969266, 1.8760108, 0.041556], [0.0556434, -0.2040259, 1.0572252]]
)


def dng(rgb: np.ndarray, orientation: int = 1, *, light: float = 1.0, full: bool = False, edge: int = 0) -> bytes:
    """A camera RAW file of 8-bit sRGB pixels, as a DNG with a Bayer pattern, 14 bits and a reddish white balance.

    Its first directory is a preview of a quarter of the size. `light` multiplies the light on the sensor. `full` adds
    EXIF, XMP and IPTC. The camera's crop leaves out `edge` pixels on each side.
    """
    scaled = rgb / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    neutral = np.array([0.5, 1.0, 0.7])  # what the sensor sees of white
    seen = np.rint(256 + np.clip(linear * neutral * light, 0, 1) * (16383 - 256)).astype(np.uint16)
    mosaic = seen[..., 1].copy()
    mosaic[0::2, 0::2], mosaic[1::2, 1::2] = seen[0::2, 0::2, 0], seen[1::2, 1::2, 2]

    def ratios(values: np.ndarray) -> list[int]:
        return [part for value in values.ravel() for part in (round(value * 10_000), 10_000)]

    about = [
        (50706, 1, 4, (1, 4, 0, 0), True),  # DNG's version
        (271, 2, 0, "Maker", True),
        (272, 2, 0, "Model 1", True),
        (50708, 2, 0, "Maker Model 1", True),
        (274, 3, 1, orientation, True),
        (50721, 10, 9, ratios(neutral[:, None] * _TO_CAMERA), True),  # from XYZ to the camera's colours
        (50728, 5, 3, ratios(neutral), True),
        (50778, 3, 1, 21, True),  # D65
    ]
    pattern = [(33421, 3, 2, (2, 2), True), (33422, 1, 4, (0, 1, 1, 2), True)]  # red and green, green and blue
    if edge:
        height, width = mosaic.shape
        pattern += [(50719, 4, 2, (edge, edge), True), (50720, 4, 2, (width - 2 * edge, height - 2 * edge), True)]
    levels = [(50714, 3, 1, 256, True), (50717, 3, 1, 16383, True)]
    options = {"metadata": None, "software": False}
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        preview = np.ascontiguousarray(rgb[::4, ::4])
        file.write(preview, photometric="rgb", subfiletype=1, subifds=1, extratags=about, **options)
        file.write(mosaic, photometric="cfa", extratags=pattern + levels, **options)
    if full:
        metadata = Metadata(xmp=XMP, iptc=IPTC)
        _append_metadata(buffer, metadata, Exif(exif(orientation, order="<")))
    return buffer.getvalue()


class Nearest:
    """An upscaler that repeats pixels and records its inputs."""

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.calls: list[tuple[tuple[int, ...], str]] = []

    def upscale(self, image: np.ndarray, progress: Callable[[float], None] | None = None) -> np.ndarray:
        assert image.shape[2] in (1, 3)
        self.calls.append((image.shape, image.dtype.name))
        if progress is not None:
            progress(0.5)
            progress(1.0)
        return image.repeat(self.scale, axis=0).repeat(self.scale, axis=1)


class Overshooting(Nearest):
    """An upscaler that overshoots at edges, as networks do: bicubic, sharpened, clipped to the dtype."""

    def upscale(self, image: np.ndarray, progress: Callable[[float], None] | None = None) -> np.ndarray:
        full = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
        size = (image.shape[1] * self.scale, image.shape[0] * self.scale)
        planes = []
        for channel in range(image.shape[2]):
            plane = Image.fromarray(image[..., channel].astype(np.float32) / np.float32(full))
            planes.append(np.asarray(plane.resize(size, Image.Resampling.BICUBIC)))
        large = np.stack(planes, axis=2)
        large = large + 0.5 * (large - np.roll(large, 1, axis=1))
        if image.dtype.kind == "f":
            return large
        return np.clip(np.rint(large * full), 0, full).astype(image.dtype)


def encoded(shown: Picture, format: str = "png", options: EncodeOptions = LOSSLESS) -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, options)
    return buffer.getvalue()


def pixels_of(data: bytes | Path) -> np.ndarray:
    """The pixels of the first frame."""
    return next(iter(open_picture(data).frames)).pixels


def saved(image: Image.Image, format: str, **arguments: object) -> bytes:
    """The bytes of a file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **arguments)
    return buffer.getvalue()


def document(*pages: np.ndarray) -> Picture:
    """A picture with several pages."""
    return picture(pages[0], "tiff", frames=[Frame(page) for page in pages], frame_count=len(pages), paged=True)
