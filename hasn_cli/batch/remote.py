"""Read and write files at fsspec URLs such as `s3://bucket/a.jpg` or `memory://a.png`.

The extra `cluster` installs fsspec. The driver for a scheme (s3fs, gcsfs, …) is installed separately.
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

from hasn_cli.errors import HasnError, ImageError, MissingExtraError, OutputError, UsageError, install_packages
from hasn_cli.files import PREFIX, SUFFIX

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
"""Scheme → the packages that fsspec needs for it, separated by spaces."""


def is_url(place: Path | str) -> bool:
    """Whether `place` is an fsspec URL; a single letter before the colon is a Windows drive."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def is_web(place: Path | str) -> bool:
    """Whether `place` is a web address. Files can be read from there, but not written."""
    return isinstance(place, str) and place.lower().startswith(("http://", "https://"))


def name_of(url: str) -> str:
    """The file name in a URL. In a web address, percent-encoding is decoded and the query is left out."""
    if not is_web(url):
        return url.rpartition("/")[2]
    return PurePosixPath(unquote(urlsplit(url).path)).name or "picture"


def local_path(place: Path | str) -> str:
    """Turn `file://…` and `local://…` into paths, and return everything else as it is."""
    text = str(place)
    if text.startswith("file://"):  # its path is percent-encoded (RFC 8089)
        path = unquote(text.removeprefix("file://").removeprefix("localhost"))
        if "\0" in path:
            raise UsageError(f"{text}: a path cannot contain NUL", "%00 in a file:// address stands for it")
        return path.removeprefix("/") if sys.platform == "win32" else path
    return text.removeprefix("local://")


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url`, and the path in it.

    Raises:
        MissingExtraError: fsspec is not installed.
        HasnError: the scheme is unknown, its driver is not installed, or the store cannot be reached.
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
        hint = install_packages(driver) if driver else "install the package named in the message"
        raise HasnError(f"{scheme}:// needs an optional package ({_reason(error)})", hint) from error
    except Exception as error:  # some drivers connect at once
        raise HasnError(f"{url}: cannot be reached ({_reason(error)})") from error
    return system, str(path)


def join(url: str, below: PurePosixPath) -> str:
    """Append the path `below` to the folder `url`, which must not end in a slash."""
    return url if below == PurePosixPath() else f"{url}/{below}"


def read(url: str) -> bytes:
    """Read all bytes at `url`.

    Raises:
        ImageError: the file does not exist or cannot be read.
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
    """Open `url` as a stream, and return what `reader` reads from it.

    Raises:
        ImageError: the file does not exist or cannot be read.
        HasnError: from `reader`.
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
    """Write `data` to `url`. The file appears complete or not at all.

    Raises:
        OutputError: it cannot be written.
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
    """Whether files can be moved. Object stores cannot move files, but show them only once they are complete."""
    from fsspec import AbstractFileSystem

    return type(system).mv is not AbstractFileSystem.mv


def _write_aside(system: Any, path: str, data: bytes) -> None:
    folder, slash, _ = path.rpartition("/")
    temporary = f"{folder}{slash}{PREFIX}{secrets.token_hex(6)}{SUFFIX}"
    try:
        system.pipe_file(temporary, data)
        try:
            system.mv(temporary, path)
        except Exception:  # SMB and some FTP servers do not replace an existing file by moving another onto it
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
    """Facts that change whenever the file at `url` does: its size, times and tags; None if it does not exist.

    Raises:
        OutputError: the store cannot be reached.
    """
    system, path = filesystem(url)
    system.invalidate_cache()
    try:
        info = system.info(path)
    except FileNotFoundError:
        return None
    except Exception as error:
        raise OutputError(f"{url}: cannot be examined ({_reason(error)})") from error
    marks = {key: str(info[key]) for key in ("size", "ETag", "etag", "generation", "mtime") if key in info}
    with suppress(Exception):  # not every store has times
        marks["modified"] = str(system.modified(path))
    return marks


def is_folder(url: str) -> bool:
    """Whether `url` is a folder, or a prefix that other names begin with.

    Raises:
        ImageError: the store cannot be reached.
    """
    system, path = filesystem(url)
    if is_web(url):  # fsspec would fetch the file and look for links in it
        return url.endswith("/")
    try:
        return url.endswith("/") or bool(system.isdir(path))
    except Exception as error:
        raise ImageError(f"{url}: cannot be reached ({_reason(error)})") from error


def relative(url: str, folder: str) -> PurePosixPath | None:
    """The path of `url` relative to the folder, however both are spelled; None if it is not below the folder."""
    (system, path), (other, base) = filesystem(url), filesystem(folder)
    below = base.rstrip("/") + "/"
    return PurePosixPath(path[len(below) :]) if system == other and path.startswith(below) else None


def files(url: str, recursive: bool, on_skip: Callable[[str, str], None]) -> list[str]:
    """The files below the folder `url`, as paths relative to it.

    Object stores allow any name, even `//etc/a.png` or `../a.png`, which would lead out of a folder on a disk. Such
    names are left out and passed to `on_skip`.
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
        if not _is_plain(name) and not name.endswith("/"):  # a name that ends in a slash marks a folder
            on_skip(f"{url}/{name}", "not a path below the folder")
    return [name for name in names if _is_plain(name)]


def _is_plain(name: str) -> bool:
    return "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
