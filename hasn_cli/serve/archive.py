"""A ZIP archive that is sent while it is made, so that it takes neither memory nor disk."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

PIECE = 1 << 18  # bytes


def archive(files: Sequence[tuple[str, Path]]) -> Iterator[bytes]:
    """The pieces of a ZIP archive.

    Args:
        files: the names in the archive, as from `unique_names`, and the files. One that has been deleted meanwhile is
            left out. Pictures are compressed already, so they are stored as they are.
    """
    out = _Outlet()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
        for name, path in files:
            try:
                stream = path.open("rb")
            except OSError:
                continue
            entry = zipfile.ZipInfo(name, time.localtime()[:6])
            entry.external_attr = 0o644 << 16
            with stream, made.open(entry, "w", force_zip64=path.stat().st_size >= 1 << 31) as member:
                while piece := stream.read(PIECE):
                    member.write(piece)
                    yield out.taken()
            yield out.taken()
    yield out.taken()


def unique_names(names: Sequence[str]) -> list[str]:
    """The same names, with a number added to those that were there before, even if they differ only in case."""
    used: set[str] = set()
    unique = []
    for name in names:
        path, number, candidate = PurePosixPath(name), 2, name
        while candidate.casefold() in used:
            candidate = str(path.with_name(f"{path.stem} ({number}){path.suffix}"))
            number += 1
        used.add(candidate.casefold())
        unique.append(candidate)
    return unique


class _Outlet(io.RawIOBase):
    """A file that can only be written, and whose content is taken away piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self._pieces.append(piece)
        return len(piece)

    def taken(self) -> bytes:
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)
