"""Places that are no local path: fsspec URLs such as `s3://bucket/a.jpg` or `memory://a.png`.

fsspec comes with the `cluster` extra, and each scheme's driver (s3fs, gcsfs, …) by itself.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from hasn_cli.errors import HasnError, ImageError, MissingExtraError, OutputError, UsageError
from hasn_cli.images import unfinished

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DRIVERS = {
    "http": "aiohttp requests",
    "https": "aiohttp requests",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
    "hdfs": "pyarrow",
}
"""Scheme → the packages that fsspec needs for it, as pip takes them."""


def is_url(place: Path | str) -> bool:
    """Whether `place` is an fsspec URL; a single letter before the colon is a Windows drive."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def is_web(place: Path | str) -> bool:
    """Whether `place` is a web address, from which files are read, but to which none are written."""
    return isinstance(place, str) and place.lower().startswith(("http://", "https://"))


def name_of(url: str) -> str:
    """The file name in a URL; of a web address decoded, and without what follows a question mark."""
    if not is_web(url):
        return url.rpartition("/")[2]
    return PurePosixPath(unquote(urlsplit(url).path)).name or "picture"


def local_path(place: Path | str) -> str:
    """`place`, as a path where it is a URL of this machine: `file://…` or `local://…`."""
    text = str(place)
    if text.startswith("file://"):  # whose path is percent-encoded: RFC 8089
        path = unquote(text.removeprefix("file://").removeprefix("localhost"))
        if "\0" in path:
            raise UsageError(f"{text}: a path cannot contain NUL", "%00 in a file:// address stands for it")
        return path.removeprefix("/") if sys.platform == "win32" else path
    return text.removeprefix("local://")


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url`, and the path that it knows the place by.

    Raises:
        MissingExtraError: fsspec is not installed.
        HasnError: the scheme is unknown, its driver is not installed, or the store is out of reach.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError(f"{url} (fsspec)", "cluster") from error
    try:
        system, path = url_to_fs(url)
    except ValueError as error:
        raise HasnError(f"{url}: {error}", "see fsspec's list of protocols, such as https, s3, gs and sftp") from error
    except ImportError as error:
        scheme = url.partition("://")[0].lower()
        driver = _DRIVERS.get(scheme)
        hint = f"pip install {driver}" if driver else "install the package that it names"
        raise HasnError(f"{scheme}:// needs an optional package ({_reason(error)})", hint) from error
    except Exception as error:  # some drivers connect at once
        raise HasnError(f"{url}: cannot be reached ({_reason(error)})") from error
    return system, str(path)


def join(url: str, below: PurePosixPath) -> str:
    """The place `below` the folder `url`, which is given without a slash at its end."""
    return url if below == PurePosixPath() else f"{url}/{below}"


def read(url: str) -> bytes:
    """All bytes at `url`.

    Raises:
        ImageError: there is nothing, or it cannot be fetched.
    """
    system, path = filesystem(url)
    try:
        data: bytes = system.cat_file(path)
    except FileNotFoundError as error:
        raise ImageError(f"{url}: no such file") from error
    except Exception as error:  # each driver has exceptions of its own
        raise ImageError(f"{url}: cannot be read ({_reason(error)})") from error
    return data


def read_with(url: str, reader: Callable[[BinaryIO], bytes]) -> bytes:
    """What `reader` makes of the stream of bytes at `url`.

    Raises:
        ImageError: there is nothing, or it cannot be fetched.
        HasnError: whatever `reader` raises.
    """
    system, path = filesystem(url)
    try:
        with system.open(path, "rb") as stream:
            return reader(stream)
    except HasnError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{url}: no such file") from error
    except Exception as error:  # each driver has exceptions of its own
        raise ImageError(f"{url}: cannot be read ({_reason(error)})") from error


def write(url: str, data: bytes) -> None:
    """Put `data` at `url`, where it appears whole or not at all.

    Raises:
        OutputError: it cannot be put there.
    """
    system, path = filesystem(url)
    try:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        if _moves(system):
            _write_aside(system, path, data)
        else:
            system.pipe_file(path, data)
    except Exception as error:
        raise OutputError(f"{url}: cannot be written ({_reason(error)})") from error


def _moves(system: Any) -> bool:
    """Whether files can be moved there. Object stores have no such thing, but let none appear before it is whole."""
    from fsspec import AbstractFileSystem

    return type(system).mv is not AbstractFileSystem.mv


def _write_aside(system: Any, path: str, data: bytes) -> None:
    folder, slash, _ = path.rpartition("/")
    temporary = f"{folder}{slash}{unfinished.PREFIX}{secrets.token_hex(6)}{unfinished.SUFFIX}"
    try:
        system.pipe_file(temporary, data)
        try:
            system.mv(temporary, path)
        except Exception:  # SMB and some FTP servers move onto no file that is there
            if not system.exists(path):
                raise
            _exchange(system, temporary, path)
    except BaseException:
        with suppress(Exception):
            system.rm_file(temporary)
        raise


def _exchange(system: Any, new: str, path: str) -> None:
    old = f"{new}.old"
    system.mv(path, old)
    try:
        system.mv(new, path)
    except BaseException:
        system.mv(old, path)
        raise
    system.rm_file(old)


def state(url: str) -> dict[str, str] | None:
    """What changes when the file at `url` does: its size and whatever marks its store gives; None where there is none.

    Raises:
        OutputError: the store cannot be asked.
    """
    system, path = filesystem(url)
    system.invalidate_cache()
    try:
        info = system.info(path)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise OutputError(f"{url}: cannot be looked at ({_reason(error)})") from error
    marks = {key: str(info[key]) for key in ("size", "ETag", "etag", "generation", "mtime") if key in info}
    with suppress(Exception):  # not every store has times
        marks["modified"] = str(system.modified(path))
    return marks


def is_folder(url: str) -> bool:
    """Whether `url` names a folder (or a prefix that holds something).

    Raises:
        ImageError: the store cannot be asked.
    """
    system, path = filesystem(url)
    if is_web(url):  # fsspec would fetch the file and look for links in it
        return url.endswith("/")
    try:
        return url.endswith("/") or bool(system.isdir(path))
    except Exception as error:
        raise ImageError(f"{url}: cannot be reached ({_reason(error)})") from error


def relative(url: str, folder: str) -> PurePosixPath | None:
    """The path of `url` below the folder, however both are spelled; None if it does not lie there."""
    (system, path), (other, base) = filesystem(url), filesystem(folder)
    below = base.rstrip("/") + "/"
    return PurePosixPath(path[len(below) :]) if system == other and path.startswith(below) else None


def files(url: str, recursive: bool, on_skip: Callable[[str, str], None]) -> list[str]:
    """The files below the folder `url`, as paths relative to it; told of those whose names are no such paths.

    Object stores take any name, also one such as `//etc/a.png` or `../a.png`, which on a disk would lead elsewhere.
    """
    system, path = filesystem(url)
    below = path.rstrip("/") + "/"
    try:
        found = system.find(path, maxdepth=None if recursive else 1)
    except FileNotFoundError:
        return []
    except Exception as error:
        raise ImageError(f"{url}: cannot be listed ({_reason(error)})") from error
    names = [name[len(below) :] for name in found if name.startswith(below)]
    for name in names:
        if not _is_plain(name) and not name.endswith("/"):  # stores mark folders so
            on_skip(f"{url}/{name}", "no path below the folder")
    return [name for name in names if _is_plain(name)]


def _is_plain(name: str) -> bool:
    return "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
