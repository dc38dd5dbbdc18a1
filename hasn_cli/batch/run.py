"""Runs a batch of pictures and videos. If one fails, the others continue."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from hasn_cli import files
from hasn_cli.batch.events import Done, Event, Failed, Skipped, Started, Stopped
from hasn_cli.batch.executors import Executor
from hasn_cli.batch.executors.threads import WORKERS, Threads, decoders_for
from hasn_cli.batch.existing_outputs import ExistingOutputs, OnExists
from hasn_cli.batch.jobs import Job
from hasn_cli.batch.pool import Planner
from hasn_cli.batch.process import disk_is_full, meets_every_picture, open_job, plan_job
from hasn_cli.batch.settings import Settings
from hasn_cli.decoding.pool import in_use
from hasn_cli.errors import MissingExtraError, UsageError
from hasn_cli.machine import count_cores


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
        decoders = decoders_for(jobs, count_cores())
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
        from hasn_cli.batch.executors.dask import on_cluster
    except ImportError as error:
        raise MissingExtraError("--cluster", "cluster") from error
    with on_cluster(jobs, settings, outputs, address, workers) as executor:
        yield from run_jobs(executor, jobs, settings)


def _run_here(
    jobs: Sequence[Job], settings: Settings, outputs: ExistingOutputs, workers: int | None, isolate: bool
) -> Iterator[Event]:
    threads = Threads(settings, outputs, workers, decoders_for(jobs, min(workers or WORKERS, count_cores()), isolate))
    try:
        yield from run_jobs(threads, jobs, settings)
    finally:
        threads.dismiss()


def run_jobs(executor: Executor, jobs: Iterable[Job], settings: Settings) -> Iterator[Event]:
    """Give jobs to the executor, a new one whenever one ends. A slow reader of the events slows the batch.

    Raises:
        HasnError: an error that would stop every picture.
    """
    waiting = deque(jobs)
    under_way = 0
    full: str | None = None
    while under_way or (waiting and full is None):
        while waiting and full is None and under_way < executor.capacity():
            refused = executor.submit(waiting.popleft())
            if refused is None:
                under_way += 1
            else:
                yield refused
        event = executor.next_event() if under_way else None
        if event is None:
            continue
        if isinstance(event, Done | Skipped | Failed):
            under_way -= 1
        if isinstance(event, Failed):
            if meets_every_picture(event.error, settings):
                raise event.error
            full = full or (str(event.error) if disk_is_full(event.error) else None)
        yield event
    if full is not None and waiting:
        yield Stopped(full, len(waiting))
