"""The source of a picture's bytes: a file, or bytes in memory."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

from hasn_cli.errors import ImageError
from hasn_cli.images.formats import HEAD
from hasn_cli.images.limits import MAX_FILE_BYTES


class Source:
    """A picture's bytes, which can be opened any number of times.

    Args:
        origin: a file's path, or the bytes themselves.
        name: for messages; by default the path.
        most: the length in bytes of the longest file that `read` accepts; None means any length.

    Raises:
        ImageError: the file does not exist, is a folder, cannot be read or is empty.
    """

    def __init__(self, origin: Path | bytes, name: str = "", most: int | None = MAX_FILE_BYTES) -> None:
        self.origin = origin
        self.most = most
        self.name = name or (str(origin) if isinstance(origin, Path) else "input")
        self.head = self.read_up_to(HEAD)
        if not self.head:
            raise ImageError(f"{self.name}: the file is empty")

    def open(self) -> BinaryIO:
        """Open the bytes as a seekable stream. The caller closes it."""
        if isinstance(self.origin, bytes):
            return io.BytesIO(self.origin)
        return self.origin.open("rb")

    @contextmanager
    def view(self) -> Iterator[bytes | mmap]:
        """All the bytes. Of a file, only the parts that are accessed are read."""
        if isinstance(self.origin, bytes):
            yield self.origin
            return
        with self.origin.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as mapped:
            yield mapped

    def read(self) -> bytes:
        """Read all the bytes.

        Raises:
            ImageError: the file cannot be read, or it is too long.
        """
        if isinstance(self.origin, bytes):
            return self.origin
        if self.too_long:
            assert self.most is not None
            hint = "if you trust the file, lift the limit: --max-input-megapixels 0"
            message = f"{self.name}: the file is longer than {self.most / 2**30:.4g} GiB, the limit for its format"
            raise ImageError(message, hint)
        with self._reading() as stream:
            return stream.read()

    def read_up_to(self, count: int, start: int = 0) -> bytes:
        """At most `count` bytes from the offset `start`; fewer if the file ends earlier."""
        if isinstance(self.origin, bytes):
            return self.origin[start : start + count]
        with self._reading() as stream:
            length = os.fstat(stream.fileno()).st_size  # 0 if it is not a regular file
            stream.seek(start)
            return stream.read(min(count, length or count))  # `read` allocates all the bytes that it is asked for

    @property
    def too_long(self) -> bool:
        """Whether `read` would refuse the file because of its length."""
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
