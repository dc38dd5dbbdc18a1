"""Where inputs and outputs are: a path, an fsspec URL or a standard stream; and which names are those of inputs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from hasn_cli.batch import remote
from hasn_cli.errors import HasnError
from hasn_cli.video import containers

Place = Path | str
"""A file: a local path; an fsspec URL; or `-`, the standard stream."""


def readable_suffixes() -> frozenset[str]:
    """The file suffixes of pictures and videos that are taken from folders, in lower case and with the dot."""
    return picture_suffixes() | (containers.SUFFIXES - containers.AMBIGUOUS)


def picture_suffixes() -> frozenset[str]:
    """The file suffixes that `hasn_cli.images` reads, in lower case and with the dot."""
    from hasn_cli.images.formats import SUFFIXES

    return frozenset(SUFFIXES)


def is_video(source: Place) -> bool:
    """Whether an input is a video: by its name, else by its first bytes. Pictures come first."""
    from hasn_cli.images.formats import HEAD, SUFFIXES, sniff

    if source == "-":
        head = peeked(sys.stdin.buffer)
    elif isinstance(source, str) or not source.is_file():
        return containers.has_video_name(str(source))
    else:
        if source.suffix.lower() in SUFFIXES:
            return False
        try:
            with source.open("rb") as stream:
                head = stream.read(max(HEAD, containers.HEAD))
        except OSError:
            return False
    return containers.has_video_name(str(source)) or (sniff(head[:HEAD]) is None and containers.is_video(head))


def peeked(stream: BinaryIO) -> bytes:
    """The first bytes of a stream, which stay in it. None, if it cannot keep them."""
    peek = getattr(stream, "peek", None)
    return bytes(peek(containers.HEAD)) if peek is not None else b""


def is_folder(text: str) -> bool:
    """Whether a name given by the user is that of a folder, here or at a URL."""
    if text == "-":
        return False
    try:
        return remote.is_folder(text) if remote.is_url(text) else Path(text).is_dir()
    except (OSError, HasnError):  # it cannot be reached, which is reported when its job runs
        return False


def resolved(folder: Place) -> Place:
    """A folder without links; a URL as it is."""
    return folder.resolve() if isinstance(folder, Path) else folder


def join(folder: Place, below: PurePosixPath) -> Place:
    """The place with the path `below` in a folder."""
    if isinstance(folder, Path):
        return folder / below
    return remote.join(folder, below)


def lies_below(target: Place, folder: Place) -> bool:
    """Whether `target` is below `folder` by its name. Links are not resolved."""
    if isinstance(target, Path):
        return Path(os.path.normpath(target.absolute())).is_relative_to(os.path.normpath(Path(folder).absolute()))
    below = PurePosixPath(target.removeprefix(f"{folder}/"))
    return not below.is_absolute() and ".." not in below.parts


def same_folder(folder: Place, source: Place) -> bool:
    """Whether a file lies directly in a folder."""
    if isinstance(folder, Path) and isinstance(source, Path):
        return folder.exists() and source.parent.resolve() == folder.resolve()
    return isinstance(source, str) and re.sub(r"/[^/]*$", "", source) == str(folder)
