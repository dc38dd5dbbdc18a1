"""The formats that Pillow reads and writes without loss: JPEG, WebP, AVIF, GIF (reading), BMP, TGA, ICO."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile

from hasn_cli.images.picture import Again, EncodeOptions, Frame, Metadata, Picture
from hasn_cli.images.source import Limit, Source

_PLUGINS = {
    "jpeg": ("JpegImagePlugin", "JpegImageFile"),
    "png": ("PngImagePlugin", "PngImageFile"),
    "webp": ("WebPImagePlugin", "WebPImageFile"),
    "tiff": ("TiffImagePlugin", "TiffImageFile"),
    "avif": ("AvifImagePlugin", "AvifImageFile"),
    "gif": ("GifImagePlugin", "GifImageFile"),
    "jpeg2000": ("Jpeg2KImagePlugin", "Jpeg2KImageFile"),
    "bmp": ("BmpImagePlugin", "BmpImageFile"),
    "ppm": ("PpmImagePlugin", "PpmImageFile"),
    "tga": ("TgaImagePlugin", "TgaImageFile"),
    "ico": ("IcoImagePlugin", "IcoImageFile"),
}
_PIL_NAMES = {"jpeg2000": "JPEG2000"}


def read(source: Source, limit: Limit, format: str) -> Picture:
    """Open a picture with the one Pillow plugin that its content asks for; no other plugin is ever tried."""
    image = _open(source, format)
    limit.check(source.name, image.height, image.width)
    mode = _shown_mode(image)
    count = 1 if format in ("jpeg", "ico") else getattr(image, "n_frames", 1)

    def frames() -> Iterator[Frame]:
        with _open(source, format) as opened:
            for index in range(count):
                opened.seek(index)
                limit.check(source.name, opened.height, opened.width)
                opened.load()
                pixels = np.asarray(opened.convert(mode))
                duration = opened.info.get("duration") if count > 1 else None
                yield Frame(pixels.reshape(*pixels.shape[:2], -1), duration)

    return Picture(
        name=source.name,
        format=format,
        size=(image.height, image.width),
        channels=Image.getmodebands(mode),
        dtype=np.dtype(np.uint8),
        frames=Again(frames),
        frame_count=count,
        loop=image.info.get("loop") if count > 1 else None,
        paged=format == "tiff",
        lossless=format not in ("jpeg", "webp", "avif", "jpeg2000"),
        metadata=_metadata(image),
    )


def _open(source: Source, format: str) -> ImageFile.ImageFile:
    from importlib import import_module

    module, name = _PLUGINS[format]
    plugin = getattr(import_module(f"PIL.{module}"), name)
    image: ImageFile.ImageFile = plugin(source.open())
    return image


def _shown_mode(image: Image.Image) -> str:
    if image.has_transparency_data:
        return "LA" if image.mode in ("L", "1", "LA", "La") else "RGBA"
    return "L" if image.mode in ("1", "L", "I;16", "I") else "RGB"


def _metadata(image: Image.Image) -> Metadata:
    info = image.info
    exif = info.get("exif")
    return Metadata(icc=info.get("icc_profile") or None, exif=exif[6:] if exif and exif[:6] == b"Exif\0\0" else exif)


def write(picture: Picture, stream: BinaryIO, options: EncodeOptions, format: str) -> None:
    images = [Image.fromarray(f.pixels[..., 0] if f.pixels.shape[2] == 1 else f.pixels) for f in picture.frames]
    arguments: dict[str, Any] = {"quality": options.quality}
    if format == "jpeg":
        arguments["subsampling"] = 0
    if picture.metadata.icc:
        arguments["icc_profile"] = picture.metadata.icc
    if picture.metadata.exif:
        arguments["exif"] = b"Exif\0\0" + picture.metadata.exif
    if len(images) > 1:
        arguments |= {"save_all": True, "append_images": images[1:]}
        if not picture.paged:
            arguments |= {"duration": [frame.duration for frame in picture.frames], "loop": picture.loop or 0}
    buffer = io.BytesIO()
    images[0].save(buffer, format=format.upper(), **arguments)
    stream.write(buffer.getvalue())
