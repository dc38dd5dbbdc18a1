"""Threads that each evaluate a band of a picture, one operator one thread.

Strips are short, so an operator shared between cores spends its time at barriers (and a whole time slice at each, when
something else wants a core). Bands need one meeting a sweep.
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
# before `alone` or a worker changes what a new thread would be told
CPU_THREADS = min(torch.get_num_threads(), count_cores())
Job = Generator[float, None, T]  # yields after each strip what it cost, returns the band's result


class Workers:
    """Runs jobs side by side and reports their progress to the calling thread.

    Args:
        count: threads; 0: run in the calling thread, as accelerators want it.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self.device = max(1, count), device
        self._pool = None
        if count:
            before = torch.get_num_threads()
            self._pool = _started_pool(count)
            torch.set_num_threads(before)  # for threads of others, started later

    def run(self, jobs: Sequence[Job[T]], progress: Callable[[float], None]) -> list[T]:
        """Drive all jobs to their ends; `progress` gets each cost, in the calling thread, and may raise to cancel.

        Raises:
            Exception: the first that a job or `progress` raised, after all jobs have stopped.
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
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


@contextmanager
def alone() -> Iterator[None]:
    """Let the calling thread's operators use no other: a helper that idles spins, and the bands need its core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Stopped(Exception):
    """Another job failed, or the caller gave up."""


def _started_pool(count: int) -> ThreadPoolExecutor:
    """`count` threads, all of them running.

    Raises:
        HasnError: the system gives no more threads.
    """
    started = Barrier(count)
    pool = ThreadPoolExecutor(count, "hasn", _one_thread, (started,))
    try:
        for task in [pool.submit(int) for _ in range(count)]:
            task.result()
    except RuntimeError as error:
        started.abort()  # those that did start wait there, and would for ever
        pool.shutdown()
        raise HasnError(f"cannot start {count} threads: {error}", "set OMP_NUM_THREADS to fewer") from error
    return pool


def _one_thread(started: Barrier) -> None:
    torch.get_num_threads()  # makes this thread take its number now; later it would take what others set meanwhile
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # denormal sums cost a hundred times as much, and are zero to any picture
    started.wait()  # last, so that what the caller sets next stands


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
    raise Stopped


def _settle(futures: Sequence[Future[T]]) -> None:
    """Wait for all, and raise the error behind a stop rather than the stop."""
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None and not isinstance(error, Stopped):
            raise error
