"""Read an input from a file, a URL or stdin, and compute the fingerprint for the journal.

The checks come in an order that costs little: the kind of file and its first bytes, then what its header declares. Only
then is a file read to its end.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hasn_cli.batch import remote
from hasn_cli.batch.marks import READ_WHOLE, Mark, input_state, mark_input
from hasn_cli.decoding.pool import open_picture
from hasn_cli.errors import ImageError
from hasn_cli.files import READ_REGULAR
from hasn_cli.images import Picture
from hasn_cli.images.formats import HEAD, sniff
from hasn_cli.images.picture import Frame, ReplayableFrames
from hasn_cli.images.stream import read_stream

if TYPE_CHECKING:
    from hasn_cli.batch.location import Place


def open_input(source: Place, max_pixels: int | None, name: str) -> tuple[Picture, Mark]:
    """Open the picture at a path, a URL, or on the standard input (`-`); returns it and the fingerprint of its file.

    Args:
        source: a path, a URL or `-`.
        max_pixels: see `open_picture`.
        name: the picture's name in messages.

    Raises:
        ImageError: it cannot be read, or the file is changed before all frames are read. This may also be raised while
            the frames are iterated.
    """
    if source == "-":
        data = read_stream(sys.stdin.buffer, max_pixels=max_pixels, name=name)
        return open_picture(data, max_pixels=max_pixels, name=name), {}
    if isinstance(source, str):
        data, mark = _read_url(source, max_pixels, name)
        return open_picture(data, max_pixels=max_pixels, name=name), mark
    return _open_file(source, max_pixels, name)


def _open_file(path: Path, max_pixels: int | None, name: str) -> tuple[Picture, Mark]:
    """Open a file. A small one is read once, a large one is left to the decoder. Neither may change meanwhile."""
    before = input_state(path)  # first, so that a change while the file is read is noticed
    identity = _identity(path)
    if before is None or identity is None or before["size"] > READ_WHOLE:
        picture = open_picture(path, max_pixels=max_pixels, name=name)
        mark = mark_input(path, before=before)
        return replace(picture, frames=ReplayableFrames(lambda: _unless_changed(picture, path, identity))), mark
    try:
        data = _read_small(path, max_pixels, name, wait=len(identity) == 2)
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from None
    _refuse_change(path, identity, name)
    return open_picture(data, max_pixels=max_pixels, name=name), mark_input(path, data, before)


def _read_small(path: Path, max_pixels: int | None, name: str, wait: bool) -> bytes:
    """Read a regular file; or a pipe, if `wait` allows waiting for its writer."""
    flags = READ_REGULAR & ~getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags & ~os.O_NONBLOCK if wait else flags), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            # without `wait`, a pipe has replaced the file since it was checked
            return read_stream(stream, max_pixels=max_pixels, name=name) if wait else b""
        head = stream.read(HEAD)
        return head + stream.read(READ_WHOLE) if sniff(head) else head


def _unless_changed(picture: Picture, path: Path, identity: tuple[int, ...] | None) -> Iterator[Frame]:
    yield from picture.frames
    _refuse_change(path, identity, picture.name)


def _refuse_change(path: Path, identity: tuple[int, ...] | None, name: str) -> None:
    if _identity(path) != identity:
        raise ImageError(f"{name}: was changed while it was read", "try again when no other program writes to it")


def _identity(path: Path) -> tuple[int, ...] | None:
    """Facts that change if the file is replaced or its content changes. For a pipe, only the former."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode):
        return found.st_dev, found.st_ino
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read_url(url: str, max_pixels: int | None, name: str) -> tuple[bytes, Mark]:
    before = remote.state(url) or {}
    size = str(before.get("size", ""))
    if before and not (size.isdecimal() and int(size) <= READ_WHOLE):
        data = remote.read_with(url, lambda stream: read_stream(stream, max_pixels=max_pixels, name=name))
    else:
        data = remote.read(url)
    return data, {**before, "sha256": hashlib.sha256(data).hexdigest()}
