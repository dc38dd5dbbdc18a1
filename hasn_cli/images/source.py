"""Where the bytes of a picture come from: a file, or bytes that are already here."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import BinaryIO

from hasn_cli.errors import ImageError


class Source:
    """A picture's bytes, openable as often as wanted.

    Args:
        origin: a file's path, or the bytes themselves.
        name: for messages; by default the path.

    Raises:
        ImageError: there is no such file, it is a folder, it cannot be read, or it is empty.
    """

    def __init__(self, origin: Path | bytes, name: str = "") -> None:
        self.origin = origin
        self.name = name or (str(origin) if isinstance(origin, Path) else "input")
        self.head = self._read(64)
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
        """All the bytes."""
        return self._read(-1)

    def _read(self, count: int) -> bytes:
        if isinstance(self.origin, bytes):
            return self.origin if count < 0 else self.origin[:count]
        try:
            with self.origin.open("rb") as stream:
                return stream.read(count)
        except FileNotFoundError:
            raise ImageError(f"{self.name}: no such file") from None
        except IsADirectoryError:
            raise ImageError(f"{self.name}: is a folder, not a picture") from None
        except OSError as error:
            raise ImageError(f"{self.name}: {error.strerror or error}") from None


@dataclass(frozen=True)
class Limit:
    """The most pixels that a picture may declare; None for any number."""

    max_pixels: int | None

    def check(self, name: str, height: int, width: int) -> None:
        """Refuse a declared size.

        Raises:
            ImageError: it is no size, or beyond the limit.
        """
        if height < 1 or width < 1:
            raise ImageError(f"{name}: declares {width}×{height} pixels")
        if self.max_pixels is not None and height * width > self.max_pixels:
            counts = f"{height * width / 1e6:.4g} megapixels, over the limit of {self.max_pixels / 1e6:.4g}"
            hint = "if you trust it: hasn upscale and compare take --max-megapixels N (0: no limit)"
            raise ImageError(f"{name}: declares {width}×{height} pixels, {counts}", hint)
