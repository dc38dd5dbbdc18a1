"""Files that are being written: each beside its target, under a name of its own, locked by whoever writes it.

The lock ends with its process, in whatever container and on whatever machine that runs, and so tells the half file that
a crash left from the one that is going to be finished; the number of a process tells nothing outside its container.
Windows knows no such locks, but neither does it delete or move a file that is open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

PREFIX = ".hasn-"
SUFFIX = ".part"
LOCKS = sys.platform != "win32"
_START = secrets.token_hex(6)


def owner() -> str:
    """What this process calls itself in the names of its unfinished files: like no other process anywhere."""
    return f"{_START}{os.getpid():x}"  # the number, too: a forked process has another


@contextlib.contextmanager
def replacing(target: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which is flushed to the disk and becomes `target` in the end, or vanishes with an exception.

    Raises:
        FileExistsError: there is a target by then, and it is not to be overwritten.
        OSError: it cannot be made, written or moved.
    """
    stream, path = _create(target.parent)
    try:
        with stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            with contextlib.suppress(FileNotFoundError):
                path.chmod(target.stat().st_mode & 0o777)
            if LOCKS:
                _move(path, target, overwrite)  # while it is locked, lest someone take it for abandoned
        if not LOCKS:
            _move(path, target, overwrite)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _move(path: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        path.replace(target)
        return
    try:
        target.hardlink_to(path)  # alone of all ways to move it, this fails where there is a target
    except FileExistsError:
        raise
    except OSError as error:  # a disk without links
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        path.rename(target)
    else:
        path.unlink()


def clear_own(folder: Path, owner: str) -> None:
    """Delete the unfinished files in `folder` of a process that writes no more."""
    for path in folder.glob(f"{PREFIX}{owner}-*{SUFFIX}"):
        path.unlink(missing_ok=True)


def clear_abandoned(folder: Path) -> None:
    """Delete the unfinished files in `folder` that nobody writes any more."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # locked; or not ours to delete; or on a disk without locks: it stays
            if not LOCKS:
                path.unlink()
                continue
            with path.open("r+b") as stream:
                _lock(stream, wait=False)
                path.unlink()


def _create(folder: Path) -> tuple[BinaryIO, Path]:
    while True:
        # not tempfile: its files are private, while this one is to get the permissions of any new file
        path = folder / f"{PREFIX}{owner()}-{secrets.token_hex(6)}{SUFFIX}"
        stream = path.open("x+b")
        with contextlib.suppress(OSError):  # a disk without locks
            _lock(stream, wait=True)
        if path.exists():
            return stream, path
        stream.close()  # someone cleared it away before it was locked


def _lock(stream: BinaryIO, *, wait: bool) -> None:
    if sys.platform != "win32":
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
