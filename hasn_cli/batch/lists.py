"""Lists of inputs: the paths that `--files-from` reads."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path

from hasn_cli.errors import UsageError

LARGEST = 1 << 28  # bytes; millions of paths


def read_list(source: str, *, null: bool = False) -> list[str]:
    """Read the paths in a list: one on each line, or each ended by a NUL as from `find -print0`.

    Args:
        source: the list's file, or `-` for the standard input.
        null: the paths are separated by NULs instead of line breaks.

    Raises:
        UsageError: the list cannot be read, or is too long.
    """
    try:
        if source == "-":
            data = sys.stdin.buffer.read(LARGEST + 1)
        else:
            with Path(source).open("rb") as stream:
                data = stream.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}", "--files-from takes a file of paths, or -") from error
    if len(data) > LARGEST:
        raise UsageError(f"{source}: the list is longer than {LARGEST >> 20} MiB", "split it into several lists")
    if not null and b"\0" in data:
        raise UsageError(f"{source}: the list contains NUL bytes", "-0 reads a list whose entries end in NUL")
    entries = data.split(b"\0") if null else data.removeprefix(codecs.BOM_UTF8).splitlines()
    return [os.fsdecode(entry) for entry in entries if entry]
