"""Writes files safely: each is written next to its target under a temporary name, and locked by the process writing it.

The lock ends with the process, in any container and on any machine. It tells a file that is still being written from a
half-written one that a crash left behind. A process id could not: it means nothing outside its container. Windows has
no such locks, but it does not delete or move an open file either.

The folder may belong to another user, or change while we write. So it is opened once, and everything else happens
inside it with unpredictable names. Links are not followed: a link at the target's name is replaced like any other file,
and a link in place of a folder below the outputs' root is an error.
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
from hasn_cli.permissions import PRIVATE, set_permissions

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
"""Flags to create a new file: it must not exist, and links are not followed."""
READ_REGULAR = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _PLAIN
"""Flags to open a file that should be a regular one: links are not followed, and opening a pipe does not block."""

Overwrite = bool | Literal["same"]
"""Whether an existing file may be replaced: always, never, or only if it contains exactly the same bytes."""


@dataclass(frozen=True)
class Placing:
    """How a finished file is moved to its target.

    Attributes:
        overwrite: whether a file or link that exists at the target by then is replaced.
        models: the files that it was made from: only people who can read all of them can read it. None means unknown:
            only its owner can read it.
        times: its access and modification times in nanoseconds; None means now.
        root: below this folder, links to folders are not followed; None means that all links are followed.
    """

    overwrite: Overwrite = True
    models: tuple[os.stat_result, ...] | None = ()
    times: tuple[int, int] | None = None
    root: Path | None = None


@dataclass(frozen=True)
class Written:
    """A file as it was written: its length, its modification time in nanoseconds and the SHA-256 of its content."""

    size: int
    mtime: int
    sha256: str


def owner() -> str:
    """The name of this process in the names of its unfinished files. No other process anywhere has the same."""
    return f"{_START}{os.getpid():x}"  # with the process id, because a forked process must have another name


@contextlib.contextmanager
def replacing(target: Path, placing: Placing | None = None) -> Iterator[BinaryIO]:
    """Open a temporary file. At the end it is flushed to disk and moved to `target`; after an exception it is deleted.

    Until then, only its owner can read it. A link at the target is replaced, and the file it points to is not touched.

    Raises:
        FileExistsError: the target exists by then and may not be replaced.
        OutputError: a folder below `placing.root` is a link.
        OSError: the file cannot be created, written or moved.
    """
    placing = placing or Placing()
    with _opened(target.parent, placing.root) as folder:
        stream, name = _create(folder)
        try:
            with stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                set_permissions(stream.fileno(), _regular_file_at(folder, target.name), placing.models)
                if LOCKS:
                    _move(folder, stream, name, target, placing.overwrite)  # still locked, so nobody deletes it
            if not LOCKS:
                _move(folder, None, name, target, placing.overwrite)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.unlink(name)
            raise


def write(target: Path, content: bytes) -> None:
    """Write a file with `replacing`. Errors name the target, and not the temporary file that nobody knows.

    Raises:
        OSError: it cannot be written. An existing file stays as it was.
    """
    try:
        with replacing(target) as stream:
            stream.write(content)
    except OSError as error:
        error.filename = str(target)
        raise


def seal(stream: BinaryIO, times: tuple[int, int] | None = None) -> Written:
    """Set the times of a completely written file, and compute its fingerprint.

    This uses the open file and not its final name, at which there may be another file by then.
    """
    stream.flush()
    if times is not None:
        os.utime(stream.fileno(), ns=times)
    digest = _sha256(stream)
    found = os.fstat(stream.fileno())
    return Written(found.st_size, found.st_mtime_ns, digest)


class _Folder:
    """An open folder, and operations on the names in it. Uses its path if the system has no such operations."""

    def __init__(self, path: Path, descriptor: int | None) -> None:
        self.path = path
        self.descriptor = descriptor

    def name(self, name: str) -> str:
        return name if self.descriptor is not None else str(self.path / name)

    def open(self, name: str, flags: int, mode: int = PRIVATE) -> int:
        return os.open(self.name(name), flags, mode, dir_fd=self.descriptor)

    def stat(self, name: str) -> os.stat_result:
        """The status of the name itself: a link is not followed."""
        return os.stat(self.name(name), dir_fd=self.descriptor, follow_symlinks=False)

    def unlink(self, name: str) -> None:
        os.unlink(self.name(name), dir_fd=self.descriptor)

    def replace(self, name: str, new: str) -> None:
        os.replace(self.name(name), self.name(new), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def rename(self, name: str, new: str) -> None:
        """Like `replace`, but on some systems it fails if `new` exists."""
        os.rename(self.name(name), self.name(new), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def link(self, name: str, new: str) -> None:
        os.link(self.name(name), self.name(new), src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)


def private_cache(name: str) -> Path | None:
    """A folder in the user's cache that nobody else can write to, for code; None if there is no such place."""
    from platformdirs import user_cache_path  # here, since most commands need no cache

    folder = user_cache_path("hasn") / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return None
    if os.name == "posix" and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
        return None
    return folder


def make_folder(folder: Path, root: Path | None = None) -> None:
    """Create `folder` and the missing folders above it. Below `root`, links are not followed.

    Raises:
        OutputError: a folder below `root` is a link.
        OSError: it cannot be created.
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
    """Open the folder and return its descriptor. Below `root`, each folder is opened inside the one before."""
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
                message = f"{path}: is a link to a folder; outputs are not written through links"
                raise OutputError(message, "if you trust the link, use --follow-links") from error
            raise
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def _create(folder: _Folder) -> tuple[BinaryIO, str]:
    while True:
        name = f"{PREFIX}{owner()}-{secrets.token_hex(6)}{SUFFIX}"
        # `open` and not `os.fdopen`, so that the stream has a name: some encoders need one
        stream = open(name, "x+b", opener=lambda name, _: folder.open(name, CREATE))  # noqa: SIM115
        with contextlib.suppress(OSError):  # the disk does not support locks
            _lock(stream, wait=True)
        if _is_still(folder, name, stream):
            return stream, name
        stream.close()  # another process deleted it before it was locked


def _is_still(folder: _Folder, name: str, stream: BinaryIO) -> bool:
    """Whether the file with that name is the open one."""
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
        folder.link(name, target.name)  # only a link fails if the target exists
    except FileExistsError:
        if overwrite == "same" and stream is not None and _holds_the_same(folder, target.name, stream):
            folder.replace(name, target.name)
            return
        raise
    except OSError as error:  # the disk does not support links
        if os.path.lexists(folder.path / target.name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from error
        folder.rename(name, target.name)
    else:
        folder.unlink(name)
    if stream is not None and not _is_still(folder, target.name, stream):
        raise OSError(errno.EAGAIN, "another program replaced it while it was written", str(target))


def _holds_the_same(folder: _Folder, name: str, stream: BinaryIO) -> bool:
    """Whether there is a regular file with that name and the same bytes as `stream`."""
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
    """Delete the unfinished files that a process, which has ended, left in `folder`."""
    for path in folder.glob(f"{PREFIX}{owner}-*{SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


def clear_abandoned(folder: Path) -> None:
    """Delete the unfinished files in `folder` that no process is writing any more. Only regular files are deleted."""
    for path in folder.glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError):  # keep a file that is locked, not ours, or on a disk without locks
            if not LOCKS:
                path.unlink()
                continue
            with os.fdopen(os.open(path, READ_REGULAR | os.O_RDWR), "r+b") as stream:  # NFS locks need write access
                if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    _lock(stream, wait=False)
                    path.unlink()


def _lock(stream: BinaryIO, *, wait: bool) -> None:
    if sys.platform != "win32":
        fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
