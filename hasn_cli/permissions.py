"""File permissions of outputs: an output is never readable by more people than the files it was made from."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress

PRIVATE = 0o600
"""The permissions of a file while it is being written."""


def _read_umask() -> int:
    # the umask can only be read by setting it; a file that another thread creates meanwhile would be private
    current = os.umask(0o077)
    os.umask(current)
    return current


_UMASK = _read_umask()  # read at import, when the process has few other threads


def set_permissions(file: int, replaced: os.stat_result | None, models: Sequence[os.stat_result] | None) -> None:
    """Give a finished file its final permissions. While it was written, only its owner could read it.

    A new file gets what the umask allows; a file that replaces another gets the permissions of that one. Then the group
    and others lose every permission that they do not have on all of the `models`. The owner can always read and write.

    Args:
        file: an open file descriptor.
        replaced: the regular file that it replaces, if there is one.
        models: the files that the content was made from; empty if it came from a stream or a URL. None means unknown:
            only the owner may read the file.
    """
    if os.name != "posix":
        return
    if replaced is not None and replaced.st_gid != os.fstat(file).st_gid:
        with suppress(OSError):  # we are not in that group: `_for_group` takes care of it
            os.fchown(file, -1, replaced.st_gid)
    group = os.fstat(file).st_gid
    mode = 0o666 & ~_UMASK if replaced is None else _for_group(replaced, group)
    for allowed in [0] if models is None else [_for_group(model, group) for model in models]:
        mode &= allowed | PRIVATE
    os.fchmod(file, mode)


def _for_group(model: os.stat_result, group: int) -> int:
    """The permission bits of `model` for a file of `group`. If `model` has another group, `group` counts as others."""
    mode = stat.S_IMODE(model.st_mode) & 0o777
    if model.st_gid == group:
        return mode
    return mode & 0o707 | (mode & 0o007) << 3
