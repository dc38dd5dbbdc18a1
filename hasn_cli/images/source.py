"""Where the bytes of a picture come from: a file, or bytes that are already here."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

from hasn_cli.errors import ImageError
from hasn_cli.images.limits import MAX_FILE_BYTES, Limit

__all__ = ["Limit", "Source"]


class Source:
    """A picture's bytes, openable as often as wanted.

    Args:
        origin: a file's path, or the bytes themselves.
        name: for messages; by default the path.
        most: how many bytes of a file `read` takes; None for any number.

    Raises:
        ImageError: there is no such file, it is a folder, it cannot be read, or it is empty.
    """

    def __init__(self, origin: Path | bytes, name: str = "", most: int | None = MAX_FILE_BYTES) -> None:
        self.origin = origin
        self.most = most
        self.name = name or (str(origin) if isinstance(origin, Path) else "input")
        self.head = self.read_up_to(64)
        if not self.head:
            raise ImageError(f"{self.name}: the file is empty")

    def open(self) -> BinaryIO:
        """The bytes as a seekable stream, for the caller to close."""
        if isinstance(self.origin, bytes):
            return io.BytesIO(self.origin)
        return self.origin.open("rb")

    @contextmanager
    def view(self) -> Iterator[bytes | mmap]:
        """All the bytes, a file's without reading more of them than are looked at."""
        if isinstance(self.origin, bytes):
            yield self.origin
            return
        with self.origin.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as mapped:
            yield mapped

    def read(self) -> bytes:
        """All the bytes.

        Raises:
            ImageError: they cannot be read, or they are too many.
        """
        if isinstance(self.origin, bytes):
            return self.origin
        if self.too_long:
            assert self.most is not None
            hint = "if you trust it: hasn upscale and compare take --max-megapixels 0 (no limit)"
            message = f"{self.name}: a picture of its kind is not read beyond {self.most / 2**30:.4g} GiB"
            raise ImageError(message, hint)
        with self._reading() as stream:
            return stream.read()

    def read_up_to(self, count: int, start: int = 0) -> bytes:
        """At most `count` bytes from the offset `start`; fewer if the file ends before."""
        if isinstance(self.origin, bytes):
            return self.origin[start : start + count]
        with self._reading() as stream:
            length = os.fstat(stream.fileno()).st_size  # 0 of what is no regular file
            stream.seek(start)
            return stream.read(min(count, length or count))  # as many bytes as are asked for are reserved

    @property
    def too_long(self) -> bool:
        """Whether `read` would refuse to read the whole file."""
        if isinstance(self.origin, bytes) or self.most is None:
            return False
        with self._reading() as stream:
            return os.fstat(stream.fileno()).st_size > self.most

    @contextmanager
    def _reading(self) -> Iterator[BinaryIO]:
        assert isinstance(self.origin, Path)
        try:
            with self.origin.open("rb") as stream:
                yield stream
        except FileNotFoundError:
            raise ImageError(f"{self.name}: no such file") from None
        except IsADirectoryError:
            raise ImageError(f"{self.name}: is a folder, not a picture") from None
        except OSError as error:
            raise ImageError(f"{self.name}: {error.strerror or error}") from None
