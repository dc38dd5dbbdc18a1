"""Reads and writes pictures. Depth, transparency, colour profiles, frames and metadata are all kept."""

from hasn_cli.images.adapt import check_can_hold, notices_of
from hasn_cli.images.decode import DEFAULT_MAX_PIXELS, open_picture
from hasn_cli.images.encode import check_target, write_picture
from hasn_cli.images.formats import (
    FORMATS,
    READ_ONLY,
    SUFFIXES,
    default_output,
    format_for_name,
    suffix_for_format,
)
from hasn_cli.images.picture import EncodeOptions, Frame, Metadata, Picture, Text

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FORMATS",
    "READ_ONLY",
    "SUFFIXES",
    "EncodeOptions",
    "Frame",
    "Metadata",
    "Picture",
    "Text",
    "check_can_hold",
    "check_target",
    "default_output",
    "format_for_name",
    "notices_of",
    "open_picture",
    "suffix_for_format",
    "write_picture",
]
