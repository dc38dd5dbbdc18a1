"""Check, before anything runs, that no two jobs write to the same place and that none overwrites an input."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hasn_cli.batch import remote
from hasn_cli.errors import HasnError, UsageError

if TYPE_CHECKING:
    from hasn_cli.batch.inputs import Job, Place


def without_repeats(jobs: Iterable[Job]) -> list[Job]:
    """Remove jobs that repeat an earlier one, for example if both a folder and a file in it are named."""
    first: dict[object, Job] = {}
    for job in jobs:
        first.setdefault((_identity(job.source), _key(job.target)), job)
    return list(first.values())


def refuse_clashes(jobs: Sequence[Job]) -> None:
    """Check that all outputs are different files, and that none is an input.

    A link at an output's name is replaced and not followed, so the file that it points to is safe. If that file is an
    input, a single picture is refused, since this is hardly intended. In a batch, it counts as an output that exists.

    Raises:
        UsageError: two outputs are the same file, or an output is an input.
    """
    writers: dict[object, Job] = {}
    read = {_identity(job.source): job for job in jobs if job.source != "-" and job.problem is None}
    for job in jobs:
        if job.problem is not None or job.target == "-":
            continue
        other = writers.setdefault(_key(job.target), job)
        if other is not job:
            message = f"{other.name} and {job.name} would both be written to {job.target}"
            raise UsageError(message, "use another output folder or another format")
        reader = read.get(_identity(job.target))
        if reader is not None and (len(jobs) == 1 or _key(reader.source) == _key(job.target)):
            message = f"the output of {job.name} would overwrite {reader.name}, which is an input"
            raise UsageError(message, "choose another output, give --suffix, or name the folder instead of its files")


def _key(place: Place) -> object:
    """A value that is equal for two names of the same file, even if it does not exist.

    A link counts as a file of its own, because writing replaces it.
    """
    if not isinstance(place, Path):
        return remote.filesystem(place) if remote.is_url(place) else place
    key = os.path.join(os.path.realpath(place.parent), place.name)  # noqa: PTH118 (`place` may end in "..")
    if sys.platform in ("darwin", "win32"):  # where a.png and A.png are the same file, and so are both forms of é
        key = unicodedata.normalize("NFC", key).casefold()
    return key


def _identity(place: Place) -> object:
    """A value that is equal for the same file, whatever links or spellings lead to it. If there is none: its key."""
    try:
        if not isinstance(place, Path):
            return _key(place)
        found = place.stat()
    except HasnError:  # the store cannot be reached, which is reported when the job runs
        return place
    except OSError:
        return _key(place)
    return found.st_dev, found.st_ino
