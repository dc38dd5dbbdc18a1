"""Lists of inputs: the paths that `--files-from` reads."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path

from hasn_cli.errors import UsageError

LARGEST = 1 << 28  # bytes; some millions of paths


def read_list(source: str, *, null: bool = False) -> list[str]:
    """The paths in a list: one a line, or ended by NULs as `find -print0` gives them.

    Args:
        source: the list's file, or `-` for the standard input.
        null: NULs stand between the paths, which may then hold anything.

    Raises:
        UsageError: the list cannot be read, or never ends.
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
        raise UsageError(f"{source}: the list is longer than {LARGEST >> 20} MiB", "give it in several parts")
    if not null and b"\0" in data:
        raise UsageError(f"{source}: the list holds NUL bytes", "-0 reads a list whose entries end in NUL")
    entries = data.split(b"\0") if null else data.removeprefix(codecs.BOM_UTF8).splitlines()
    return [os.fsdecode(entry) for entry in entries if entry]
