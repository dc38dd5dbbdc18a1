"""One module a family of formats; each reads from a `Source` under a `Limit` and writes to a stream.

Readers and writers may raise anything over a broken file or an impossible picture: their callers make it an
`ImageError`. What is refused on purpose is a `ValueError` whose message completes "cannot be read: …".
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO

from hasn_cli.images.picture import EncodeOptions, Picture
from hasn_cli.images.source import Limit, Source

# format → module, and the ending of its functions' names where a module serves several formats
_CODECS = {
    "jpeg": ("jpeg", ""),
    "png": ("png", ""),
    "webp": ("pillow", "_webp"),
    "tiff": ("tiff", ""),
    "avif": ("pillow", "_avif"),
    "gif": ("gif", ""),
    "jpeg2000": ("jp2", ""),
    "bmp": ("pillow", "_bmp"),
    "ppm": ("netpbm", ""),
    "pfm": ("netpbm", ""),
    "tga": ("pillow", "_tga"),
    "ico": ("ico", ""),
    "jpegxl": ("jxl", ""),
    "heic": ("heic", ""),
}


def read(format: str, source: Source, limit: Limit) -> Picture:
    """Read a picture's header by the reader of its format."""
    picture: Picture = _function(format, "read")(source, limit)
    return picture


def write(picture: Picture, stream: BinaryIO, format: str, options: EncodeOptions) -> None:
    """Write a picture that its format can hold, to a stream that can be read and sought too."""
    _function(format, "write")(picture, stream, options)


def _function(format: str, name: str) -> Callable[..., Any]:
    module, ending = _CODECS[format]
    function: Callable[..., Any] = getattr(import_module(f"hasn_cli.images.codecs.{module}"), name + ending)
    return function
