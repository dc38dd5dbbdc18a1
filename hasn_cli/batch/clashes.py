"""No two jobs may write to one place, and none onto an input: found before anything runs."""

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
    """`jobs` without those that read and write the same as an earlier one (a folder, and again a file in it)."""
    first: dict[object, Job] = {}
    for job in jobs:
        first.setdefault((_identity(job.source), _key(job.target)), job)
    return list(first.values())


def refuse_clashes(jobs: Sequence[Job]) -> None:
    """See that no two outputs are one, and none is an input.

    A link at an output's name is replaced and not followed, so what it points to is in no danger. Where it points to an
    input, that is refused for a single picture, since it was hardly meant; in a batch it is an output that exists.

    Raises:
        UsageError: they are.
    """
    writers: dict[object, Job] = {}
    read = {_identity(job.source): job for job in jobs if job.source != "-" and job.problem is None}
    for job in jobs:
        if job.problem is not None or job.target == "-":
            continue
        other = writers.setdefault(_key(job.target), job)
        if other is not job:
            message = f"{other.name} and {job.name} would both be written to {job.target}"
            raise UsageError(message, "name them apart: another folder, another format, or --suffix")
        reader = read.get(_identity(job.target))
        if reader is not None and (len(jobs) == 1 or _key(reader.source) == _key(job.target)):
            message = f"{job.name} would be written onto {reader.name}, which is an input"
            raise UsageError(message, "choose another output, give --suffix, or name the folder instead of its files")


def _key(place: Place) -> object:
    """Equal for two names of one file, there or not; a link at its end is a file of its own, as when it is written."""
    if not isinstance(place, Path):
        return remote.filesystem(place) if remote.is_url(place) else place
    key = os.path.join(os.path.realpath(place.parent), place.name)  # noqa: PTH118 (`place` may end in "..")
    if sys.platform in ("darwin", "win32"):  # their file systems hold a.png, A.png and both forms of é to be one name
        key = unicodedata.normalize("NFC", key).casefold()
    return key


def _identity(place: Place) -> object:
    """The file itself where there is one, so that no link and no other spelling hides that it is an input."""
    try:
        if not isinstance(place, Path):
            return _key(place)
        found = place.stat()
    except HasnError:  # a store out of reach, which is told when its turn comes
        return place
    except OSError:
        return _key(place)
    return found.st_dev, found.st_ino
