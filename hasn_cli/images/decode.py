"""Turns a file into a `Picture`. The content decides the format, and any fault of the file becomes an `ImageError`."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TypeVar

from hasn_cli.errors import HasnError, ImageError
from hasn_cli.images import codecs
from hasn_cli.images.codecs.raw_structure import is_raw
from hasn_cli.images.following import split_first
from hasn_cli.images.formats import FORMATS, READ_ONLY, sniff
from hasn_cli.images.limits import MAX_FILE_BYTES, MAX_PIXELS, Limit, TooMuch
from hasn_cli.images.metadata import apply_orientation, orientation_of, upright
from hasn_cli.images.picture import Frame, Picture, ReplayableFrames
from hasn_cli.images.source import Source

DEFAULT_MAX_PIXELS = MAX_PIXELS

_HINTS = {
    "heic": "copy it from the phone or camera again, or export it as JPEG there",
    "raw": "copy it from the camera or its card again",
    **dict.fromkeys(READ_ONLY.keys() - {"raw"}, "save it as PNG or TIFF in another program, and upscale that"),
}
"""Format → what to do about a file that is broken or not supported."""


def open_picture(source: Path | bytes, *, max_pixels: int | None = DEFAULT_MAX_PIXELS, name: str = "") -> Picture:
    """Read a picture's header. Its frames are decoded while they are iterated.

    Args:
        source: a file's path, or its bytes. The content decides the format, not the name.
        max_pixels: a picture that declares more pixels is refused before anything is decoded. A limit below the default
            also applies to the sum of all frames or pages; otherwise their sum may be up to `limits.MAX_TOTAL_PIXELS`.
            None or 0 lifts both limits.
        name: for messages; by default the path.

    Returns:
        The picture with its orientation applied.

    Raises:
        ImageError: it is not a picture, is broken or is too large; also raised while the frames are iterated.
        MissingExtraError: the format needs an optional package.
    """
    if isinstance(source, Path) and (source.is_fifo() or source.is_char_device()):
        from hasn_cli.images.stream import read_stream  # here, because that module imports this one

        name = name or str(source)
        with source.open("rb") as stream:
            source = read_stream(stream, max_pixels=max_pixels, name=name)
    origin = Source(source, name, most=MAX_FILE_BYTES if max_pixels else None)
    picture = guarded(origin.name, lambda: _read(origin, Limit(max_pixels or None)))
    orientation = orientation_of(picture.metadata.exif) if picture.metadata.size is None else 1

    def frames() -> Iterator[Frame]:
        iterator = iter(picture.frames)
        for number in count(1):
            part = f", {'page' if picture.paged else 'frame'} {number}" if picture.frame_count > 1 else ""
            frame = guarded(origin.name + part, lambda: next(iterator, None), picture.format)
            if frame is None:
                return
            yield replace(frame, pixels=apply_orientation(frame.pixels, orientation))

    size = picture.size if orientation < 5 else picture.size[::-1]
    metadata = picture.metadata
    if metadata.size is None:  # otherwise its reader has applied the orientation
        metadata = upright(metadata, picture.size, orientation)
    return replace(picture, frames=ReplayableFrames(frames), size=size, metadata=metadata)


def _read(source: Source, limit: Limit) -> Picture:
    format = format_of(source)
    if format is None:
        known = ", ".join([entry.title for entry in FORMATS.values()] + [entry.title for entry in READ_ONLY.values()])
        raise ImageError(f"{source.name}: not a picture of a known format", f"known formats: {known}")
    first, following = split_first(source, format)
    picture = guarded(source.name, lambda: codecs.read(format, first, limit), format)
    picture = replace(picture, following=following)
    limit.check_whole(picture)
    return picture


def format_of(source: Source) -> str | None:
    """The format of a file, by its content; None if it is unknown."""
    format = sniff(source.head)
    if format == "tiff":
        with source.view() as data:
            return "raw" if is_raw(data) else "tiff"
    return format


T = TypeVar("T")


def guarded(name: str, read: Callable[[], T], format: str = "") -> T:
    """Call a decoder and turn its exceptions into an `ImageError`. Decoders raise many kinds for a broken file.

    Args:
        name: for messages.
        read: calls the decoder.
        format: of the file, for the hint.
    """
    hint = _HINTS.get(format)
    try:
        return read()
    except (HasnError, MemoryError):
        raise
    except TooMuch as error:
        raise ImageError(f"{name}: {error}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # decoders raise OSError too, but without an error number
            raise ImageError(f"{name}: {error.strerror}") from error
        if isinstance(error, struct.error | IndexError):  # a header was read beyond the end of what the file contains
            raise ImageError(f"{name}: broken: the file ends too early, or its header is damaged", hint) from error
        words = str(error).split()
        detail = " ".join(words)[:200] if words else type(error).__name__
        raise ImageError(f"{name}: broken or not supported ({detail})", hint) from error
