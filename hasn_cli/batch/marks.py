"""Marks: facts that tell whether a file, or the content of a URL, is still the same."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from hasn_cli.batch import remote
from hasn_cli.decoding.pool import open_picture
from hasn_cli.errors import HasnError
from hasn_cli.files import READ_REGULAR, Written

Mark = dict[str, Any]
"""JSON-able facts that identify a file's content: size, times, and (a fingerprint) its SHA-256."""

READ_WHOLE = 64 << 20  # files up to this many bytes are read only once, for both the decoder and the fingerprint


def output_state(path: Path) -> Mark | None:
    """Facts that change whenever the output at `path` does; None if nothing exists there. A link counts as existing."""
    try:
        found = path.lstat()
    except OSError:
        return None
    kind = {} if stat.S_ISREG(found.st_mode) else {"kind": stat.S_IFMT(found.st_mode)}
    return {"size": found.st_size, "mtime": found.st_mtime_ns, **kind}


def mark_written(written: Written) -> Mark:
    """The fingerprint of an output, computed while it was written."""
    return {"size": written.size, "mtime": written.mtime, "sha256": written.sha256}


def mark_output(target: Path | str, state: Mark) -> Mark:
    """The fingerprint of an existing output: its `state`, and the SHA-256 of its content.

    Raises:
        OSError, HasnError: it cannot be read, or is not a regular file.
    """
    if isinstance(target, str):
        return {**state, "sha256": hashlib.sha256(remote.read(target)).hexdigest()}
    with os.fdopen(os.open(target, READ_REGULAR), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(f"{target} is not a regular file")
        return {**state, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def looks_as_written(mark: Mark, state: Mark) -> bool:
    """Whether an output has the recorded size and times. That is enough to keep it, but not enough to replace it."""
    return bool(mark) and all(mark.get(key) == value for key, value in state.items())


def is_as_written(target: Path | str, mark: Mark, state: Mark) -> bool:
    """Whether an output is exactly the file that was recorded, by size, times and SHA-256."""
    if "sha256" not in mark or not looks_as_written(mark, state):
        return False
    try:
        return bool(mark_output(target, state)["sha256"] == mark["sha256"])
    except (OSError, HasnError):
        return False


def input_state(path: Path) -> Mark | None:
    """Facts that change whenever the input at `path` does; None if it does not exist.

    They include ctime, the time of the last change to the file or its attributes, which programs cannot set.
    """
    try:
        found = path.stat()
    except OSError:
        return None
    return {"size": found.st_size, "mtime": found.st_mtime_ns, "ctime": found.st_ctime_ns}


def mark_input(path: Path, data: bytes | None = None, before: Mark | None = None) -> Mark:
    """The fingerprint of an input: its state, and the SHA-256 of its content.

    Args:
        path: the file.
        data: its content, if it has been read.
        before: its `input_state` before it was read.
    """
    before = before or input_state(path) or {}
    if data is not None:
        return {**before, "sha256": hashlib.sha256(data).hexdigest()}
    with os.fdopen(os.open(path, READ_REGULAR & ~getattr(os, "O_NOFOLLOW", 0)), "rb") as stream:
        return {**before, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def input_unchanged(source: Path | str, mark: Mark, max_pixels: int | None = None) -> bool:
    """Whether an input still has the content that `mark` was made from, even if it was touched, moved or copied.

    A large file is read to its end only if it is a picture within the limit.
    """
    if isinstance(source, str):
        return _url_unchanged(source, mark)
    now = input_state(source)
    if now is None or now["size"] != mark.get("size"):
        return False
    if all(now[key] == mark.get(key) for key in now):
        return True
    if not source.is_file():  # a pipe can be read only once
        return False
    try:
        if now["size"] > READ_WHOLE:
            open_picture(source, max_pixels=max_pixels)
        return bool(mark_input(source)["sha256"] == mark.get("sha256"))
    except (OSError, HasnError):
        return False  # it cannot be read, which is reported when its job runs


def _url_unchanged(url: str, mark: Mark) -> bool:
    now = remote.state(url)
    if not now or now["size"] != mark.get("size"):
        return False
    if len(now) > 1 and all(value == mark.get(key) for key, value in now.items()):
        return True
    return bool(hashlib.sha256(remote.read(url)).hexdigest() == mark.get("sha256"))
