"""Threads that each evaluate a band of a picture and run their operators alone.

Strips are short. An operator that is shared between cores would spend its time at barriers, and lose a whole time slice
at each if another program needs a core. Bands have to wait for each other only once per sweep.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Event
from typing import TypeVar

import torch

from hasn_cli.errors import HasnError
from hasn_cli.inference.devices import synchronize
from hasn_cli.machine import count_cores

T = TypeVar("T")
# read before `alone` or a worker changes the number for new threads
CPU_THREADS = min(torch.get_num_threads(), count_cores())
Job = Generator[float, None, T]  # yields the cost of each strip, returns the band's result


class Workers:
    """Runs jobs in parallel and reports their progress to the calling thread.

    Args:
        count: threads; 0 to run in the calling thread, which suits accelerators.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self.device = max(1, count), device
        self._pool = None
        if count:
            before = torch.get_num_threads()
            self._pool = _started_pool(count)
            torch.set_num_threads(before)  # for other threads that are started later

    def run(self, jobs: Sequence[Job[T]], progress: Callable[[float], None]) -> list[T]:
        """Run all jobs to their ends. `progress` gets each cost, in the calling thread, and may raise to cancel.

        Raises:
            Exception: the first one raised by a job or by `progress`, after all jobs have stopped.
        """
        if self._pool is None:
            return [_drive(job, self._after(progress), Event()) for job in jobs]
        costs: queue.SimpleQueue[float | None] = queue.SimpleQueue()
        stop = Event()
        futures = [self._pool.submit(_drive, job, costs.put, stop) for job in jobs]
        for future in futures:
            future.add_done_callback(lambda _: costs.put(None))
        try:
            running = len(futures)
            while running:
                cost = costs.get()
                if cost is None:
                    running -= 1
                else:
                    progress(cost)
        finally:
            stop.set()
            _settle(futures)
        return [future.result() for future in futures]

    def _after(self, progress: Callable[[float], None]) -> Callable[[float], None]:
        def report(cost: float) -> None:
            synchronize(self.device)
            progress(cost)

        return report

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()


@contextmanager
def alone() -> Iterator[None]:
    """Make operators in the calling thread use no helper threads: idle helpers spin, and bands need their cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Abandoned(Exception):
    """Another job failed, or the caller cancelled."""


def _started_pool(count: int) -> ThreadPoolExecutor:
    """`count` threads, all of them running.

    Raises:
        HasnError: the system cannot start that many threads.
    """
    started = Barrier(count)
    pool = ThreadPoolExecutor(count, "hasn", _one_thread, (started,))
    try:
        for task in [pool.submit(int) for _ in range(count)]:
            task.result()
    except RuntimeError as error:
        started.abort()  # otherwise the threads that did start would wait there for ever
        pool.shutdown()
        raise HasnError(f"cannot start {count} threads: {error}", "set OMP_NUM_THREADS to fewer") from error
    return pool


def _one_thread(started: Barrier) -> None:
    torch.get_num_threads()  # makes this thread read the number now; later, others may have changed it
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # denormal numbers take a hundred times as long and do not change the picture
    started.wait()  # last, so that the caller's next setting is not overwritten


def _drive(job: Job[T], report: Callable[[float], None], stop: Event) -> T:
    try:
        with torch.inference_mode():
            while not stop.is_set():
                report(next(job))
    except StopIteration as end:
        result: T = end.value
        return result
    except BaseException:
        stop.set()
        raise
    raise Abandoned


def _settle(futures: Sequence[Future[T]]) -> None:
    """Wait for all. Raise the error that made the others stop, not `Abandoned`."""
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None and not isinstance(error, Abandoned):
            raise error
