"""Turns a file into a `Picture`. The content decides the format, and any fault of the file becomes an `ImageError`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from hasn_cli.errors import ImageError
from hasn_cli.images import codecs
from hasn_cli.images.codecs.raw_structure import is_raw
from hasn_cli.images.faults import guarded
from hasn_cli.images.following import split_first
from hasn_cli.images.formats import FORMATS, READ_ONLY, sniff
from hasn_cli.images.limits import MAX_FILE_BYTES, MAX_PIXELS, Limit
from hasn_cli.images.metadata import apply_orientation, orientation_of, upright
from hasn_cli.images.picture import Frame, Picture, ReplayableFrames
from hasn_cli.images.source import Source
from hasn_cli.images.stream import read_stream

DEFAULT_MAX_PIXELS = MAX_PIXELS


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
