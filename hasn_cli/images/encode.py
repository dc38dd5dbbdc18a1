"""Writes a `Picture` to a file, which appears complete or not at all."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from hasn_cli.errors import HasnError, ImageError, OutputError
from hasn_cli.files import Placing, Written, replacing, seal
from hasn_cli.images import codecs
from hasn_cli.images.adapt import adapt
from hasn_cli.images.formats import FORMATS
from hasn_cli.images.picture import EncodeOptions, Frame, Picture


def write_picture(
    picture: Picture,
    target: Path | BinaryIO,
    format: str,
    options: EncodeOptions,
    *,
    placing: Placing | None = None,
) -> Written | None:
    """Encode a picture. Its frames are requested one by one, so lazy frames are computed here.

    Args:
        picture: what to write.
        target: a path, at which the file appears complete or not at all; or a stream, which gets the bytes at the end.
        format: the name of a format, as in `Picture.format`.
        options: how to write it.
        placing: how the finished file is moved to its path. By default it replaces an existing file.

    Returns:
        A description of the written file; None for a stream.

    Raises:
        ImageError: the format cannot hold the picture, or its frames turn out to be broken.
        OutputError: the target cannot be written. Its cause is a `FileExistsError` if the file must not be overwritten.
        Exception: any exception that the picture's frames raise.
    """
    if format not in FORMATS:
        raise ImageError(f"{picture.name}: the format {format!r} cannot be written", "use -f png")
    frames = _Watched(picture)
    if options.lossless is None:
        options = replace(options, lossless=picture.lossless and picture.format == format)
    try:
        adapted = adapt(replace(picture, frames=frames), format, options)
        if isinstance(target, Path):
            return _write_file(adapted, target, format, options, placing or Placing())
        buffer = io.BytesIO()
        codecs.write(adapted, buffer, format, options)
        target.write(buffer.getbuffer())
        return None
    except Exception as error:
        if frames.error is not None and error is not frames.error:
            raise frames.error from frames.error.__cause__
        if error is frames.error or isinstance(error, HasnError | MemoryError | BrokenPipeError):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise OutputError(f"{_title(target)}: {error.strerror or error}") from error
        raise ImageError(f"{picture.name}: cannot be written as {FORMATS[format].title} ({error})") from error


class _Watched:
    """A picture's frames. Remembers an exception they raised, to tell it from an error of the encoder."""

    def __init__(self, picture: Picture) -> None:
        self._frames = picture.frames
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[Frame]:
        try:
            yield from self._frames
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise


def _title(target: Path | BinaryIO) -> str:
    return str(target) if isinstance(target, Path) else "output"


def check_target(target: Path) -> None:
    """Check that a picture would not replace a pipe, device or folder, and that its folder can be written to.

    Raises:
        OutputError: `target` exists and is not a regular file or a link to one; or it is a link of the system, such as
            /dev/stdout; or its folder (or the closest existing one above it) is a file, or is not writable.
    """
    if (target.exists() and not target.is_file()) or _is_system_link(target):
        raise OutputError(f"{target}: is not a regular file", "to write to a pipe or device, use -o - and redirect it")
    folder = next(folder for folder in target.absolute().parents if folder.exists())
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file, not a folder", "choose another folder with -o")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: {os.strerror(errno.EACCES)}", "choose another folder with -o")


def _is_system_link(target: Path) -> bool:
    """Whether it is a link in /dev or /proc. Other links are replaced, but these must not be."""
    folder = os.path.realpath(target.parent)
    return target.is_symlink() and (folder == "/dev" or folder.startswith("/proc/"))


def _write_file(picture: Picture, target: Path, format: str, options: EncodeOptions, placing: Placing) -> Written:
    """Encode into a temporary file next to the target, then move it into place. A link is replaced, not followed."""
    check_target(target)
    with replacing(target, placing) as stream:
        codecs.write(picture, stream, format, options)
        return seal(stream, placing.times)
