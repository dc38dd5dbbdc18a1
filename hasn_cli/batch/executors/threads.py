"""Processes pictures in threads of this process.

A few threads each read, enlarge and write one picture at a time. The network runs in a thread of its own (`pool.py`),
which they share. While it computes one picture, the next ones are decoded and the previous ones encoded. The number of
threads and `memory_limit.py` limit how many pictures are in memory.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from hasn_cli import files
from hasn_cli.batch.events import Event, Failed, Progress, Skipped, Started
from hasn_cli.batch.existing_outputs import ExistingOutputs
from hasn_cli.batch.jobs import Job
from hasn_cli.batch.memory_limit import MemoryLimit
from hasn_cli.batch.pool import Cancelled, UpscalerPool
from hasn_cli.batch.process import do_job, is_taken
from hasn_cli.batch.settings import Settings
from hasn_cli.decoding.pool import Closed, Decoders, in_use
from hasn_cli.machine import count_cores

PATIENCE = 1.5  # seconds that a stopped batch waits for its threads
WORKERS = 4  # one picture in the network, the others being decoded or encoded
MOST_WORKERS = 32  # for an accelerator, which can use many small pictures at once


def decoders_for(jobs: Sequence[Job], most: int, isolate: bool = False) -> Decoders | None:
    """Processes that decode, if there are several pictures: they keep a crash from ending the whole batch."""
    return Decoders(min(most, len(jobs))) if len(jobs) > 1 or isolate else None


class Threads:
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

    def capacity(self) -> int:
        """See `Executor.capacity`."""
        if self._workers is not None:
            return max(1, self._workers)
        return min(MOST_WORKERS, 2 * count_cores()) if self._pool.accelerated else WORKERS

    def submit(self, job: Job) -> Event | None:
        """See `Executor.submit`. A new thread starts whenever there are fewer than the capacity."""
        if isinstance(job.target, Path):
            self._folders.add(job.target.parent)
        self._inbox.put(job)
        if len(self._threads) < self.capacity():
            thread = threading.Thread(target=self._carry, name=f"pictures {len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return None

    def next_event(self) -> Event | None:
        """See `Executor.next_event`."""
        try:
            return self._outbox.get(timeout=0.5)  # without a timeout, Windows would not deliver Ctrl-C
        except queue.Empty:
            return None

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
