"""Who may read an output: never more people than may read what it was made from."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

PRIVATE = 0o600
"""The permissions of a file while it is being written."""


def _read_umask() -> int:
    current = os.umask(0o077)  # there is no other way to ask; a file made just now by another thread would be private
    os.umask(current)
    return current


_UMASK = _read_umask()  # when this is imported, since the process has few other threads then


def settle(file: int, replaced: os.stat_result | None, models: Sequence[os.stat_result] | None) -> None:
    """Give a finished file its permissions, in place of the private ones that it was written with.

    A new file gets what the umask allows, one that replaces another gets that one's permissions. From either is taken
    what the group or others may not do with every one of the `models`. The owner may always read and write.

    Args:
        file: an open file descriptor.
        replaced: the regular file in whose place it comes, if there is one.
        models: the files that the content was made from, none where that came from a stream or a URL; None: unknown,
            so that only the owner may read it.
    """
    if os.name != "posix":
        return
    if replaced is not None and replaced.st_gid != os.fstat(file).st_gid:
        with suppress(OSError):  # not a group of ours: `_for_group` takes care of it
            os.fchown(file, -1, replaced.st_gid)
    group = os.fstat(file).st_gid
    mode = 0o666 & ~_UMASK if replaced is None else _for_group(replaced, group)
    for allowed in [0] if models is None else [_for_group(model, group) for model in models]:
        mode &= allowed | PRIVATE
    os.fchmod(file, mode)


def _for_group(model: os.stat_result, group: int) -> int:
    """The permission bits of `model` for a file that belongs to `group`: strangers to its own group count as others."""
    mode = stat.S_IMODE(model.st_mode) & 0o777
    if model.st_gid == group:
        return mode
    return mode & 0o707 | (mode & 0o007) << 3
