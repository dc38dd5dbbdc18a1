"""Files that are being written: each beside its target, under a name of its own, locked by whoever writes it.

The lock ends with its process, in whatever container and on whatever machine that runs, and so tells the half file that
a crash left from the one that is going to be finished; the number of a process tells nothing outside its container.
Windows knows no such locks, but neither does it delete or move a file that is open.

The folder may belong to a stranger, or change while we write. So it is opened once, and all that follows happens inside
it by names that cannot be foreseen. No link is followed there: neither one at the target's name, which is replaced as
any other file is, nor one in place of a folder below the outputs' root.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from hasn_cli.errors import OutputError
from hasn_cli.images.permissions import PRIVATE, settle

if sys.platform != "win32":
    import fcntl

PREFIX = ".hasn-"
SUFFIX = ".part"
LOCKS = sys.platform != "win32"
CHUNK = 1 << 20
_START = secrets.token_hex(6)
_BY_DESCRIPTOR = os.open in os.supports_dir_fd
_PLAIN = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _PLAIN
"""How a file is made: by nobody but us, and not through a link."""
READ_REGULAR = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _PLAIN
"""How a file is opened that should be a regular one: no link is followed, and a pipe does not wait for its writer."""

Overwrite = bool | Literal["same"]
"""Whether a file that is there may be replaced: always, never, or only if it holds the very same bytes."""


@dataclass(frozen=True)
class Placing:
    """How a finished file takes its place.

    Attributes:
        overwrite: what becomes of a file, or a link, that is there by then.
        models: the files that it was made from: nobody may read it who may not read them, too. None: only its owner.
        times: its times of access and change, in nanoseconds; None: now.
        root: the folder below which no links to folders are followed; None: all are.
    """

    overwrite: Overwrite = True
    models: tuple[os.stat_result, ...] | None = ()
    times: tuple[int, int] | None = None
    root: Path | None = None


@dataclass(frozen=True)
class Written:
    """A file as it was written: its length, its time of change in nanoseconds, and the SHA-256 of what it holds."""

    size: int
    mtime: int
    sha256: str


def owner() -> str:
    """What this process calls itself in the names of its unfinished files: like no other process anywhere."""
    return f"{_START}{os.getpid():x}"  # the number, too: a forked process has another


@contextlib.contextmanager
def replacing(target: Path, placing: Placing | None = None) -> Iterator[BinaryIO]:
    """A file to write, which is flushed to the disk and becomes `target` in the end, or vanishes with an exception.

    Until then only its owner may read it. A link at the target is replaced, and what it points to stays as it is.

    Raises:
        FileExistsError: there is a target by then, and it may not be replaced.
        OutputError: a folder below `placing.root` is a link.
        OSError: it cannot be made, written or moved.
    """
    placing = placing or Placing()
    with _opened(target.parent, placing.root) as folder:
        stream, name = _create(folder)
        try:
            with stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                settle(stream.fileno(), _regular_file_at(folder, target.name), placing.models)
                if LOCKS:
                    _move(folder, stream, name, target, placing.overwrite)  # while it is locked: nobody clears it away
            if not LOCKS:
                _move(folder, None, name, target, placing.overwrite)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.unlink(name)
            raise


def seal(stream: BinaryIO, times: tuple[int, int] | None = None) -> Written:
    """Set the times of a file that has been written to its end, and take its fingerprint.

    Here and not by the file's name once it is in place, where another file may stand by then.
    """
    stream.flush()
    if times is not None:
        os.utime(stream.fileno(), ns=times)
    digest = _sha256(stream)
    found = os.fstat(stream.fileno())
    return Written(found.st_size, found.st_mtime_ns, digest)


class _Folder:
    """An open folder, and what is done to the names in it; by its path where the system cannot do it otherwise."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self.descriptor = descriptor

    def name(self, name: str) -> str:
        return name if self.descriptor is not None else str(self.path / name)

    def open(self, name: str, flags: int, mode: int = PRIVATE) -> int:
        return os.open(self.name(name), flags, mode, dir_fd=self.descriptor)

    def stat(self, name: str) -> os.stat_result:
        """Of the name itself: a link is not followed."""
        return os.stat(self.name(name), dir_fd=self.descriptor, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        os.unlink(self.name(name), dir_fd=self.descriptor)

    def replace(self, name: str, new: str) -> None:
        os.replace(self.name(name), self.name(new), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def rename(self, name: str, new: str) -> None:
        """As `replace`; where the system can, it fails if there is such a file."""
        os.rename(self.name(name), self.name(new), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def link(self, name: str, new: str) -> None:
        os.link(self.name(name), self.name(new), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)


def make_folder(folder: Path, root: Path | None = None) -> None:
    """Make `folder`, and those above it that are missing; below `root` without following any link.

    Raises:
        OutputError: a folder below `root` is a link.
        OSError: it cannot be made.
    """
    (folder if root is None else root).mkdir(parents=True, exist_ok=True)
    if root is not None:
        with _opened(folder, root, make=True):
            pass


@contextlib.contextmanager
def _opened(folder: Path, root: Path | None, make: bool = False) -> Iterator[_Folder]:
    if not _BY_DESCRIPTOR:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        yield _Folder(folder, None)
        return
    descriptor = _open_below(folder, root, make)
    try:
        yield _Folder(folder, descriptor)
    finally:
        os.close(descriptor)


def _open_below(folder: Path, root: Path | None, make: bool) -> int:
    """A descriptor of the folder; from `root` on, each step is taken inside the folder that the last one opened."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if root is None or not folder.is_relative_to(root) or ".." in folder.relative_to(root).parts:
        return os.open(folder, flags)
    descriptor, path = os.open(root, flags), root
    for part in folder.relative_to(root).parts:
        path = path / part
        try:
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=descriptor)
            below = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
        except OSError as error:
            if path.is_symlink():
                message = f"{path}: is a link to a folder, and outputs are not written through it"
                raise OutputError(message, "--follow-links allows it, if you trust that link") from error
            raise
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def _create(folder: _Folder) -> tuple[BinaryIO, str]:
    while True:
        name = f"{PREFIX}{owner()}-{secrets.token_hex(6)}{SUFFIX}"
        # by `open`, and not `os.fdopen`, so that the stream has a name: some encoders ask for it
        stream = open(name, "x+b", opener=lambda name, _: folder.open(name, CREATE))  # noqa: SIM115
        with contextlib.suppress(OSError):  # a disk without locks
            _lock(stream, wait=True)
        if _is_still(folder, name, stream):
            return stream, name
        stream.close()  # someone cleared it away before it was locked


def _is_still(folder: _Folder, name: str, stream: BinaryIO) -> bool:
    """Whether the file by that name is the open one."""
    try:
        return os.path.samestat(folder.stat(name), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _regular_file_at(folder: _Folder, name: str) -> os.stat_result | None:
    try:
        found = folder.stat(name)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _move(folder: _Folder, stream: BinaryIO | None, name: str, target: Path, overwrite: Overwrite) -> None:
    if overwrite is True:
        folder.replace(name, target.name)
        return
    try:
        folder.link(name, target.name)  # alone of all ways to move it, this fails where there is a target
    except FileExistsError:
        if overwrite == "same" and stream is not None and _holds_the_same(folder, target.name, stream):
            folder.replace(name, target.name)
            return
        raise
    except OSError as error:  # a disk without links
        if os.path.lexists(folder.path / target.name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        folder.rename(name, target.name)
    else:
        folder.unlink(name)
    if stream is not None and not _is_still(folder, target.name, stream):
        raise OSError(errno.EAGAIN, "was replaced by another program while it was written", str(target))


def _holds_the_same(folder: _Folder, name: str, stream: BinaryIO) -> bool:
    """Whether a regular file by that name has the bytes of `stream`."""
    try:
        with os.fdopen(folder.open(name, READ_REGULAR), "rb") as other:
            found = os.fstat(other.fileno())
            same_size = stat.S_ISREG(found.st_mode) and found.st_size == os.fstat(stream.fileno()).st_size
            return same_size and _sha256(other) == _sha256(stream)
    except OSError:
        return False


def _sha256(stream: BinaryIO) -> str:
    stream.seek(0)
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def clear_own(folder: Path, owner: str) -> None:
    """Delete the unfinished files in `folder` of a process that writes no more."""
    for path in folder.glob(f"{PREFIX}{owner}-*{SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


def clear_abandoned(folder: Path) -> None:
    """Delete the unfinished files in `folder` that nobody writes any more; what is no regular file is none of them."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # locked; or not ours to delete; or on a disk without locks: it stays
            if not LOCKS:
                path.unlink()
                continue
            with os.fdopen(os.open(path, READ_REGULAR | os.O_RDWR), "r+b") as stream:  # NFS wants both for a lock
                if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    _lock(stream, wait=False)
                    path.unlink()


def _lock(stream: BinaryIO, *, wait: bool) -> None:
    if sys.platform != "win32":
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
