"""Upscale the pictures that appear in a folder, for as long as it is watched.

A picture is taken when its file is complete: when it has not changed for a while and, where the system can tell (on
Linux), no program has it open for writing. What was done is in the journal beside the outputs, so that a watch that is
started again continues where the last one ended.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from hasn_cli.batch import run_batch
from hasn_cli.batch.events import Done, Event, Failed, Skipped, Stopped
from hasn_cli.batch.existing_outputs import ExistingOutputs
from hasn_cli.batch.jobs import Job, find_jobs
from hasn_cli.batch.location import readable_suffixes
from hasn_cli.batch.marks import Mark, input_state
from hasn_cli.batch.process import disk_is_full, exists_already
from hasn_cli.batch.settings import Settings
from hasn_cli.batch.walk import OnSkip, Walk
from hasn_cli.errors import HasnError, ImageError, MissingExtraError, OutputError, UsageError
from hasn_cli.files import Placing, make_folder, replacing

STEP = 0.25  # seconds between two looks at files that are not complete yet
RESCAN = 60.0  # seconds after which the folder is searched even if nothing was reported
LONGEST = 120.0  # seconds without a change after which a file is taken although a program has it open
PAUSE = 60.0  # seconds to wait if the disk is full
MOST = 256  # pictures that are given to a batch at once

Wakes = Iterator[bool]
"""Yields whenever it is time to look: whether something has changed in the folder."""


@dataclass(frozen=True)
class Watch:
    """What to watch, and what to do with the pictures.

    Attributes:
        folder: where the pictures appear.
        output: the folder for the results.
        settings: how to enlarge and write each picture.
        recursive: include subfolders; the outputs get the same ones.
        include, exclude, follow_links: see `batch.walk.Walk`.
        suffix: added to the name of each output.
        move_done: the folder that inputs are moved to when they are done; None: they stay.
        settle: seconds for which a file must not have changed.
        on_skip: called with what is left out for a reason that may surprise.

    Raises:
        UsageError: the folders are not different ones, or `folder` is none.
    """

    folder: Path
    output: Path
    settings: Settings
    recursive: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    follow_links: bool = False
    suffix: str = ""
    move_done: Path | None = None
    settle: float = 2.0
    on_skip: OnSkip = lambda path, reason: None

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UsageError(f"{self.folder} is not a folder", "name a folder that exists")
        for other, what in ((self.output, "results"), (self.move_done, "pictures that are done")):
            if other is not None and other.resolve() == self.folder.resolve():
                raise UsageError(f"the folder for the {what} is the watched one", "give another folder")
        if self.move_done is not None and self.move_done.resolve() == self.output.resolve():
            raise UsageError("the folder for the pictures that are done is that for the results", "give another folder")

    def run(self, wakes: Wakes | None = None) -> Generator[Event]:
        """Yield the events of every picture. It ends only by an error, by Ctrl-C, or when it is closed.

        Args:
            wakes: see `Wakes`; by default, the system reports changes.

        Raises:
            WeightsError, DeviceError: no picture can be computed with these settings.
            HasnError: the folder is gone.
        """
        return _Watching(self).run(self._wakes() if wakes is None else wakes)

    def _wakes(self) -> Wakes:
        try:
            import watchfiles
        except ImportError as error:
            raise MissingExtraError("hasn watch", "web") from error
        timeout = int(1000 * min(STEP, self.settle / 2 or STEP))
        try:
            for changes in watchfiles.watch(
                self.folder,
                watch_filter=None,
                debounce=1000,
                rust_timeout=max(50, timeout),
                yield_on_timeout=True,
                recursive=self.recursive,
                ignore_permission_denied=True,
            ):
                yield bool(changes)
        except FileNotFoundError as error:
            raise _gone(self.folder) from error


class _Watching:
    """One run of a watch, and what it knows about the files."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._seen: dict[Path, Mark] = {}  # files that were tried, and their state then
        self._pending: dict[Path, tuple[Mark, float]] = {}  # files that may not be complete, and since when they rest
        self._renewed: dict[Path, Event] = {}  # files that changed while they were computed, and how that ended
        self._said: set[tuple[str, str]] = set()  # what was left out
        self._next_index = 0
        self._wait_until = 0.0

    def run(self, wakes: Wakes) -> Generator[Event]:
        """See `Watch.run`."""
        searched = -RESCAN
        changed = True
        for woken in wakes:
            changed = changed or woken
            now = time.monotonic()
            if now < self._wait_until or not (changed or self._pending or now - searched >= RESCAN):
                continue
            changed, searched = False, now
            yield from self._process(self._complete(now))

    # --- which files are complete ---

    def _complete(self, now: float) -> list[Path]:
        """The files that have not been tried in their present state, and that are complete."""
        found = [path for path in self._files() if not self._is_ours(path)]
        for known in (self._seen, self._pending, self._renewed):
            for path in known.keys() - set(found):
                del known[path]
        complete = []
        for path in found:
            state = input_state(path)
            if state is None or not state["size"] or self._seen.get(path) == state:
                self._pending.pop(path, None)
                continue
            last, since = self._pending.get(path, (None, now))
            if last != state:
                since = now
            self._pending[path] = state, since
            rest = now - since
            if rest >= self._watch.settle and (rest >= LONGEST or not is_being_written(path)):
                complete.append(path)
        return complete[:MOST]

    def _files(self) -> list[Path]:
        watch = self._watch
        walk = Walk(
            readable=readable_suffixes(),
            recursive=watch.recursive,
            include=watch.include,
            exclude=watch.exclude,
            follow_links=watch.follow_links,
            avoid=watch.output.resolve(),
            on_skip=self._note_skipped,
            on_closed=self._note_skipped,
        )
        try:
            return walk.files(watch.folder)
        except OSError as error:
            raise _gone(watch.folder) from error

    def _is_ours(self, path: Path) -> bool:
        """Whether a file is one that this watch has moved."""
        done = self._watch.move_done
        return done is not None and path.resolve().is_relative_to(done.resolve())

    def _note_skipped(self, path: str, reason: str) -> None:
        if (path, reason) not in self._said:
            self._said.add((path, reason))
            self._watch.on_skip(path, reason)

    # --- what becomes of them ---

    def _process(self, paths: list[Path]) -> Iterator[Event]:
        if not paths:
            return
        states = {path: self._pending.pop(path)[0] for path in paths}
        jobs = [self._job(path) for path in paths]
        if self._watch.move_done is not None:
            jobs = list(self._without_losses(jobs))
        for event in run_batch(jobs, self._watch.settings, resume=True, isolate=True):
            if isinstance(event, Done | Skipped | Failed):
                path = self._path_of(event.job)
                yield from self._ended(event, path, states[path])
            else:
                if isinstance(event, Stopped):
                    self._wait_until = time.monotonic() + PAUSE
                yield event

    def _ended(self, event: Done | Skipped | Failed, path: Path, state: Mark) -> Iterator[Event]:
        """Decide what the end of one picture means."""
        now = input_state(path)
        if now is not None and now != state:  # it was not complete after all: it will be done again
            self._renewed[path] = event
            return
        if isinstance(event, Failed):
            if now is None:  # nobody waits for it any more
                return
            if disk_is_full(event.error):
                self._wait_until = time.monotonic() + PAUSE  # and then try it again
            else:
                self._seen[path] = state
            yield event
            _release(event.error)
            return
        earlier = self._renewed.pop(path, None)
        if isinstance(event, Skipped) and isinstance(earlier, Done):  # that was of the file as it is now, after all
            event = earlier
        if now is not None:
            self._seen[path] = state
        yield event
        if self._watch.move_done is not None and now is not None:
            try:
                self._move(path, self._watch.move_done)
            except HasnError as error:
                yield Failed(event.job, error)

    def _job(self, path: Path) -> Job:
        """The job for one file. Each is named alone, so that two files with the same output do not stop all others."""
        watch = self._watch
        below = watch.output / path.relative_to(watch.folder).parent
        (job,) = find_jobs(
            [path], f"{below}{os.sep}", suffix=watch.suffix or None, format=watch.settings.format,
            container=watch.settings.container, stills=watch.settings.encode.first_frame,
            follow_links=watch.follow_links,
        )  # fmt: skip
        self._next_index += 1
        return replace(job, index=self._next_index - 1, root=watch.output, follow_links=watch.follow_links)

    def _path_of(self, job: Job) -> Path:
        assert isinstance(job.source, Path)
        return job.source

    def _without_losses(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Mark the jobs that would lose something.

        When pictures are moved away, a new one with the name of an earlier one is another picture, and not a change of
        the same. So it must replace neither the earlier result nor the earlier input.
        """
        assert self._watch.move_done is not None
        outputs = ExistingOutputs(self._watch.settings, resume=True, keep=False)
        outputs.open(jobs)
        for job in jobs:
            path = self._path_of(job)
            place = self._watch.move_done / path.relative_to(self._watch.folder)
            problem = job.problem
            try:
                verdict = outputs.check(job)
                replaces = verdict.reason is None and verdict.found is not None and verdict.overwrite is True
                if replaces and path not in self._renewed:
                    problem = exists_already(job.target)
                elif os.path.lexists(place):
                    problem = OutputError(
                        f"{place} exists already, so {path} cannot be moved there", "rename one of them"
                    )
            except HasnError:
                pass  # the batch reports it
            yield replace(job, problem=problem)

    def _move(self, path: Path, done: Path) -> None:
        """Move an input to the folder for those that are done, where nothing is replaced.

        Raises:
            OutputError: that is not possible.
        """
        place = done / path.relative_to(self._watch.folder)
        try:
            make_folder(place.parent, done)
            _move_without_replacing(path, place)
        except OSError as error:
            raise OutputError(f"{path} cannot be moved to {place}: {error.strerror}") from error
        self._seen.pop(path, None)


def _move_without_replacing(path: Path, place: Path) -> None:
    if not path.is_symlink():
        try:
            os.link(path, place)  # only a link fails if the place is taken
            path.unlink()
            return
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise
    # another disk, or one without hard links, or a link whose picture has to be copied
    found = path.stat()
    placing = Placing(overwrite=False, models=(found,), times=(found.st_atime_ns, found.st_mtime_ns))
    with path.open("rb") as source, replacing(place, placing) as target:
        shutil.copyfileobj(source, target)
    os.utime(place, ns=(found.st_atime_ns, found.st_mtime_ns))
    path.unlink()


def is_being_written(path: Path) -> bool:
    """Whether a program has the file open for writing. False if the system cannot tell.

    On Linux, a read lease is granted only if no one has (fcntl(2), "Leases").
    """
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with suppress(OSError):
            fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # which is ignored, if somebody opens it in this moment
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(file)
    return False


def _release(error: BaseException | None) -> None:
    """Drop the tracebacks of an error that has been shown: they hold the picture, and reports keep all errors."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _gone(folder: Path) -> HasnError:
    return ImageError(f"{folder}: the watched folder is gone or cannot be read")
