"""Places that are no local path: fsspec URLs such as `s3://bucket/a.jpg` or `memory://a.png`.

fsspec comes with the `cluster` extra, and each scheme's driver (s3fs, gcsfs, …) by itself.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from hasn_cli.errors import HasnError, ImageError, MissingExtraError, OutputError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_url(place: Path | str) -> bool:
    """Whether `place` is an fsspec URL; a single letter before the colon is a Windows drive."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of `url`, and the path that it knows the place by.

    Raises:
        MissingExtraError: fsspec is not installed.
        HasnError: the scheme is unknown, or its driver is not installed.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingExtraError(f"{url} (fsspec)", "cluster") from error
    try:
        system, path = url_to_fs(url)
    except ValueError as error:
        raise HasnError(f"{url}: {error}", "the scheme must be one that fsspec knows") from error
    except ImportError as error:
        raise HasnError(f"{url}: {error}", "install the driver that it names") from error
    return system, str(path)


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


def write(url: str, data: bytes) -> None:
    """Put `data` at `url`; object stores make it appear whole or not at all.

    Raises:
        OutputError: it cannot be put there.
    """
    system, path = filesystem(url)
    try:
        system.makedirs(path.rpartition("/")[0], exist_ok=True)
        system.pipe_file(path, data)
    except Exception as error:
        raise OutputError(f"{url}: cannot be written ({_reason(error)})") from error


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
    """Whether `url` names a folder (or a prefix that holds something)."""
    system, path = filesystem(url)
    return url.endswith("/") or bool(system.isdir(path))


def files(url: str, recursive: bool) -> list[str]:
    """The files below the folder `url`, as paths relative to it."""
    system, path = filesystem(url)
    below = path.rstrip("/") + "/"
    try:
        found = system.find(path, maxdepth=None if recursive else 1)
    except FileNotFoundError:
        return []
    except Exception as error:
        raise ImageError(f"{url}: cannot be listed ({_reason(error)})") from error
    return [name[len(below) :] for name in found if name.startswith(below)]


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
