"""Process a batch of pictures. If one fails, the others continue.

A few threads each read, enlarge and write one picture at a time. The network runs in a thread of its own (`pool.py`),
which they share. While it computes one picture, the next ones are decoded and the previous ones encoded. The number of
threads and `memory_limit.py` limit how many pictures are in memory.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from hasn_cli import files
from hasn_cli.batch.events import Done, Event, Failed, Progress, Skipped, Started, Stopped
from hasn_cli.batch.existing_outputs import ExistingOutputs, OnExists
from hasn_cli.batch.inputs import Job
from hasn_cli.batch.memory_limit import MemoryLimit
from hasn_cli.batch.pool import Cancelled, Planner, UpscalerPool
from hasn_cli.batch.settings import Settings
from hasn_cli.batch.work import disk_is_full, do_job, is_taken, meets_every_picture, open_job, plan_job
from hasn_cli.decoding.pool import Closed, Decoders, in_use
from hasn_cli.errors import MissingExtraError, UsageError
from hasn_cli.machine import count_cores

__all__ = [
    "Done",
    "Event",
    "Failed",
    "Job",
    "OnExists",
    "Progress",
    "Settings",
    "Skipped",
    "Started",
    "Stopped",
    "UpscalerPool",
    "plan_batch",
    "run_batch",
]

PATIENCE = 1.5  # seconds that a stopped batch waits for its threads
WORKERS = 4  # one picture in the network, the others being decoded or encoded
MOST_WORKERS = 32  # for an accelerator, which can use many small pictures at once


def run_batch(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    on_exists: OnExists = "error",
    workers: int | None = None,
    resume: bool = False,
    journal: bool = True,
    cluster: str | None = None,
    isolate: bool = False,
) -> Generator[Event, None, None]:
    """Run all jobs and yield events as they happen.

    Closing the generator, or Ctrl-C inside it, stops everything within two seconds. No unfinished output remains.

    Args:
        jobs: from `find_jobs`.
        settings: how to enlarge and write each picture.
        on_exists: what to do if an output exists already.
        workers: the number of pictures to work on at once, at least 1. None: chosen for the device or the cluster.
        resume: skip the pictures that, by the journal, were made from the same input with the same settings.
        journal: keep a journal beside the outputs if there are several jobs, or with `resume`, which needs it.
        cluster: `tcp://HOST:PORT` of a Dask scheduler, or `local:N` for N worker processes on this machine.
        isolate: decode even a single picture in another process, so that a crash does not end this one.

    Raises:
        WeightsError, DeviceError: no picture can be computed with these settings.
        UsageError: `resume` without a journal, or settings that cannot work for any picture.
    """
    _check_resume(resume, journal)
    outputs = ExistingOutputs(settings, on_exists=on_exists, resume=resume, keep=resume or (journal and len(jobs) > 1))
    outputs.open(jobs)
    if resume:
        for folder in {job.target.parent for job in jobs if isinstance(job.target, Path) and job.problem is None}:
            files.clear_abandoned(folder)
    try:
        if cluster is not None:
            yield from _run_there(jobs, settings, outputs, cluster, workers)
        else:
            yield from _run_here(jobs, settings, outputs, workers, isolate)
    finally:
        outputs.close()


def plan_batch(
    jobs: Sequence[Job],
    settings: Settings,
    *,
    on_exists: OnExists = "error",
    resume: bool = False,
    journal: bool = True,
) -> Generator[Event, None, None]:
    """Yield `Started`, `Skipped` or `Failed` for each job, as `run_batch` would. Nothing is written.

    Raises:
        WeightsError, DeviceError, UsageError: as `run_batch` does.
    """
    _check_resume(resume, journal)
    outputs = ExistingOutputs(settings, on_exists=on_exists, resume=resume, keep=False)
    outputs.open(jobs)
    planner = Planner(settings)
    with ExitStack() as stack:
        decoders = _decoders_for(jobs, count_cores())
        if decoders is not None:
            stack.callback(decoders.close)
        for job in jobs:
            try:
                reason = outputs.check(job).reason
                if reason is not None:
                    event: Event = Skipped(job, reason)
                else:
                    with in_use(decoders):
                        event = _plan(job, settings, planner)
            except Exception as error:
                if meets_every_picture(error, settings):
                    raise
                event = Failed(job, error)
            yield event


def _plan(job: Job, settings: Settings, planner: Planner) -> Started:
    if job.video and not settings.encode.first_frame:
        from hasn_cli.batch.clips import plan_clip  # here, because it imports FFmpeg

        return plan_clip(job, settings, planner)
    return plan_job(job, open_job(job, settings)[0], settings, planner)


def _check_resume(resume: bool, journal: bool) -> None:
    if resume and not journal:
        raise UsageError("--resume needs the journal, which --no-journal turns off", "leave one of them out")


def _run_there(
    jobs: Sequence[Job], settings: Settings, outputs: ExistingOutputs, address: str, workers: int | None
) -> Iterator[Event]:
    try:
        from hasn_cli.batch.cluster import run_on_cluster
    except ImportError as error:
        raise MissingExtraError("--cluster", "cluster") from error
    yield from run_on_cluster(jobs, settings, outputs, address, workers)


def _run_here(
    jobs: Sequence[Job], settings: Settings, outputs: ExistingOutputs, workers: int | None, isolate: bool
) -> Iterator[Event]:
    crew = _Crew(settings, outputs, workers, _decoders_for(jobs, min(workers or WORKERS, count_cores()), isolate))
    try:
        yield from crew.work(jobs)
    finally:
        crew.dismiss()


def _decoders_for(jobs: Sequence[Job], most: int, isolate: bool = False) -> Decoders | None:
    """Processes that decode, if there are several pictures: they keep a crash from ending the whole batch."""
    return Decoders(min(most, len(jobs))) if len(jobs) > 1 or isolate else None


class _Crew:
    """The threads that process pictures, and the networks and memory that they share."""

    def __init__(
        self, settings: Settings, outputs: ExistingOutputs, workers: int | None, decoders: Decoders | None
    ) -> None:
        self._decoders = decoders
        self._settings = settings
        self._outputs = outputs
        self._workers = workers
        self._pool = UpscalerPool(settings)
        self._memory = MemoryLimit(settings.memory)
        self._inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._folders: set[Path] = set()

    def work(self, jobs: Iterable[Job]) -> Iterator[Event]:
        """Give jobs to the threads, a new one whenever one ends. A slow reader of the events slows the batch."""
        waiting = deque(jobs)
        under_way = 0
        full: str | None = None
        while True:
            while waiting and full is None and under_way < self._limit():
                self._assign(waiting.popleft())
                under_way += 1
            if under_way == 0:
                break
            event = self._next()
            if isinstance(event, Done | Skipped | Failed):
                under_way -= 1
            if isinstance(event, Failed):
                if meets_every_picture(event.error, self._settings):
                    raise event.error
                full = full or (str(event.error) if disk_is_full(event.error) else None)
            yield event
        if full is not None and waiting:
            yield Stopped(full, len(waiting))

    def dismiss(self) -> None:
        """Stop everything. If a thread does not stop in time, delete its unfinished files."""
        self._pool.stop()
        self._memory.close()
        if self._decoders is not None:
            self._decoders.close()
        for _ in self._threads:
            self._inbox.put(None)
        deadline = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._pool.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            for folder in self._folders:
                files.clear_own(folder, files.owner())

    def _limit(self) -> int:
        """The largest number of pictures to work on at once."""
        if self._workers is not None:
            return max(1, self._workers)
        return min(MOST_WORKERS, 2 * count_cores()) if self._pool.accelerated else WORKERS

    def _assign(self, job: Job) -> None:
        if isinstance(job.target, Path):
            self._folders.add(job.target.parent)
        self._inbox.put(job)
        if len(self._threads) < self._limit():
            thread = threading.Thread(target=self._carry, name=f"pictures {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _next(self) -> Event:
        while True:
            try:
                return self._outbox.get(timeout=0.5)  # without a timeout, Windows would not deliver Ctrl-C
            except queue.Empty:
                continue

    def _carry(self) -> None:
        """Process pictures from the inbox until told to stop. Runs in each thread."""
        while (job := self._inbox.get()) is not None:
            try:
                with in_use(self._decoders):
                    event = self._do(job)
                self._outbox.put(event)
            except (Cancelled, Closed):
                return
            except Exception as error:
                if is_taken(error):
                    self._outputs.disown(job)
                self._outbox.put(Failed(job, error))

    def _do(self, job: Job) -> Event:
        verdict = self._outputs.check(job)
        if verdict.reason is not None:
            return Skipped(job, verdict.reason)

        def tell(event: Started | Progress) -> None:
            if isinstance(event, Started):
                self._outputs.begin(job)
            self._outbox.put(event)

        if job.video and not self._settings.encode.first_frame:
            from hasn_cli.batch.clips import do_clip  # here, because it imports FFmpeg

            resume = self._outputs.resume
            done, receipt = do_clip(job, self._settings, self._pool, self._memory, tell, verdict.overwrite, resume)
        else:
            done, receipt = do_job(job, self._settings, self._pool, self._memory, tell, verdict.overwrite)
        self._outputs.finish(job, receipt)
        return done
