"""One module for each family of formats. Each reads from a `Source` under a `Limit` and writes to a stream.

Readers and writers may raise any exception for a broken file or an unsupported picture: their callers turn it into an
`ImageError`. If they refuse a file on purpose, they raise a `ValueError` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO

from hasn_cli.images.limits import Limit
from hasn_cli.images.picture import EncodeOptions, Picture
from hasn_cli.images.source import Source

# format → module, and the ending of its functions' names if the module serves several formats
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
    "raw": ("raw", ""),
    **{name: ("plugins", f"_{name}") for name in ("psd", "qoi", "dds", "pcx", "sgi", "xbm", "exr", "fits", "dicom")},
}


def read(format: str, source: Source, limit: Limit) -> Picture:
    """Read a picture's header with the reader for its format."""
    picture: Picture = _function(format, "read")(source, limit)
    return picture


def write(picture: Picture, stream: BinaryIO, format: str, options: EncodeOptions) -> None:
    """Write a picture, which the format must be able to hold. The stream must also support reading and seeking."""
    _function(format, "write")(picture, stream, options)


def loads(format: str) -> bool:
    """Whether the packages that read a format can be imported."""
    try:
        import_module(f"hasn_cli.images.codecs.{_CODECS[format][0]}")
    except ImportError:
        return False
    return True


def _function(format: str, name: str) -> Callable[..., Any]:
    module, ending = _CODECS[format]
    function: Callable[..., Any] = getattr(import_module(f"hasn_cli.images.codecs.{module}"), name + ending)
    return function
