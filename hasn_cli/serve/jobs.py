"""`Jobs`: the queue of pictures, the threads that compute them, and the files that belong to them.

Everything but the computing happens in the thread of the event loop, so nothing here needs a lock. A job's pixels are
in memory only while it is computed; until then it is a file in the server's private folder.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hasn_cli.batch.events import Done, Progress, Started
from hasn_cli.decoding.pool import Closed
from hasn_cli.errors import HasnError, ImageError, MissingExtraError, OutputError, UsageError, WeightsError
from hasn_cli.serve.asking import Asked, media_type, result_name
from hasn_cli.serve.engine import Cancelled, Engine
from hasn_cli.serve.limits import Limits

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
ENDED = (DONE, FAILED, CANCELLED)
SWEEP = 10.0  # seconds between two looks for what has expired
PAUSE = 0.1  # seconds between two messages to one listener
ALIVE = 15.0  # seconds after which a listener gets a sign of life

log = logging.getLogger("hasn.serve")


class Refused(Exception):
    """A request that cannot be accepted now.

    Args:
        status: the HTTP status.
        message, hint: as of a `HasnError`.
        retry_after: seconds after which another attempt makes sense, or None.
    """

    def __init__(self, status: int, message: str, hint: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.hint = hint
        self.retry_after = retry_after


@dataclass(eq=False)
class Task:
    """One picture on its way.

    Attributes:
        id: hard to guess; whoever knows it may read the result.
        folder: its own folder, with the files `input` and, when it is done, `result`.
        length: of the input, in bytes.
        previews: the lengths of the previews, by the names of their files.
        status: the HTTP status that a failure means.
        ended: when it ended, as `time.monotonic()`.
    """

    id: str
    asked: Asked
    folder: Path
    length: int = 0
    state: str = WAITING
    fraction: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    hint: str | None = None
    status: int = 200
    format: str | None = None
    result_length: int = 0
    previews: dict[str, int] = field(default_factory=dict)
    ended: float = 0.0
    stop: str | None = None  # why it must end: "cancelled" or "time"
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def source(self) -> Path:
        return self.folder / "input"

    @property
    def result(self) -> Path:
        return self.folder / "result"

    @property
    def result_name(self) -> str:
        """The name to save the result under, a relative path."""
        return result_name(self.asked.name, self.asked.settings, self.format or "png")

    @property
    def media_type(self) -> str:
        return media_type(self.format or "")

    def to_dict(self) -> dict[str, Any]:
        """The job as JSON-able values."""
        values: dict[str, Any] = {
            "id": self.id,
            "name": self.asked.name,
            "state": self.state,
            "progress": round(self.fraction, 3),
            **self.facts,
        }
        if self.state == DONE:
            values |= {"result": f"/jobs/{self.id}/result", "result_name": self.result_name, "type": self.media_type,
                       "bytes": self.result_length}  # fmt: skip
        if self.state == FAILED:
            values |= {"error": self.error, "hint": self.hint}
        return values


class Jobs:
    """All jobs of one server.

    Args:
        engine: computes the pictures.
        folder: the server's private folder.
        limits: see `Limits`.
        workers: how many pictures are computed at a time.
        on_end: called with each job that has ended.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        limits: Limits | None = None,
        *,
        workers: int = 2,
        on_end: Callable[[Task], None] = lambda task: None,
    ) -> None:
        self.engine = engine
        self.limits = limits or Limits()
        self.closing = asyncio.Event()
        self._folder = folder
        self._on_end = on_end
        self._tasks: dict[str, Task] = {}
        self._waiting: dict[str, Task] = {}
        self._more = asyncio.Event()  # there may be some in `_waiting`
        self._coming = 0  # uploads under way
        self._stored = 0  # bytes
        self._pace = 1.0  # seconds that a picture took lately, on average
        self._numbers = itertools.count()
        self._listeners: set[_Listener] = set()
        self._left: dict[str, float] = {}  # group → when its last listener left
        self._workers = workers
        self._threads = ThreadPoolExecutor(workers, "pictures")
        self._previews = ThreadPoolExecutor(1, "previews")
        self._running: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to work. Called once the event loop runs."""
        self._running = [asyncio.create_task(self._work()) for _ in range(self._workers)]
        self._running.append(asyncio.create_task(self._sweep()))
        threading.Thread(target=self.engine.warm_up, name="warm-up", daemon=True).start()

    def stop(self) -> None:
        """Cancel everything, without waiting: the first step of the end."""
        self.closing.set()
        for listener in self._listeners:
            listener.wake.set()
        for task in self._tasks.values():
            if task.state not in ENDED:
                task.stop, task.state = CANCELLED, CANCELLED
                task.over.set()  # so that those who wait for it get an answer
        for running in self._running:
            running.cancel()
        self.engine.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._previews.shutdown(wait=False, cancel_futures=True)

    # --- accepting ---

    def __getitem__(self, id: str) -> Task:
        return self._tasks[id]

    def of_group(self, group: str) -> list[Task]:
        """The jobs of a group, in the order in which they came."""
        return [task for task in self._tasks.values() if task.asked.group == group]

    @property
    def stored(self) -> int:
        """Bytes of all uploads and results."""
        return self._stored

    @contextmanager
    def admitted(self, length: int | None) -> Iterator[None]:
        """Hold a place in the queue while an upload of `length` bytes (None: unknown) comes in.

        Raises:
            Refused: it is too large, or there is no room for it.
        """
        limits = self.limits
        if length is not None and length > limits.upload + (1 << 16):
            raise too_large(limits.upload)
        if len(self._waiting) + self._coming >= limits.waiting:
            wait = min(max(1, math.ceil(self._pace * len(self._waiting) / self._workers / 4)), 60)
            raise Refused(429, f"{limits.waiting} pictures are waiting already", "try again later", wait)
        if self._stored + (length or 0) > limits.stored or len(self._tasks) >= limits.kept:
            hint = "fetch or delete finished results, or wait until they expire"
            raise Refused(507, "the server has no more room for pictures", hint, 60)
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1

    async def accept(self, asked: Asked, body: AsyncIterator[bytes]) -> Task:
        """Store an upload and put it into the queue. Called within `admitted`.

        Args:
            asked: what to do with it.
            body: the picture's file, in pieces.

        Raises:
            Refused: it is empty or too large, or the disk is full.
            Exception: whatever `body` raises. Then nothing is kept.
        """
        task = Task(secrets.token_urlsafe(16), asked, self._folder / f"{next(self._numbers):08x}")
        try:
            task.folder.mkdir(mode=0o700)
            await self._store(task, body)
            if self.closing.is_set():
                raise Refused(503, "the server is stopping")
        except BaseException as error:
            self._forget_files(task)
            if isinstance(error, OSError):
                raise Refused(507, "the server cannot store the picture", "try again later", 60) from error
            raise
        self._tasks[task.id] = task
        self._waiting[task.id] = task
        self._more.set()
        self._tell(task)
        return task

    async def _store(self, task: Task, body: AsyncIterator[bytes]) -> None:
        with task.source.open("xb") as stream:
            async for piece in body:
                task.length += len(piece)
                self._stored += len(piece)
                if task.length > self.limits.upload:
                    raise too_large(self.limits.upload)
                if self._stored > self.limits.stored:
                    raise Refused(507, "the server has no more room for pictures", "try again later", 60)
                stream.write(piece)
        if task.length == 0:
            raise Refused(400, "the request contains no picture", "send the picture's file as the body")

    # --- ending ---

    def delete(self, task: Task) -> None:
        """Stop a job if it is not over, and delete its files."""
        self._tasks.pop(task.id, None)
        if task.state in ENDED:
            self._forget_files(task)
            return
        running = task.state == RUNNING
        self.cancel(task)
        if not running:  # otherwise its thread still uses the files, and `_work` deletes them
            self._forget_files(task)

    def cancel(self, task: Task, why: str = CANCELLED) -> None:
        """Stop a job if it is not over. One that runs ends within the next step of its computation."""
        if task.state in ENDED:
            return
        task.stop = why
        if self._waiting.pop(task.id, None) is not None:
            self._end(task, CANCELLED)

    def _forget_files(self, task: Task) -> None:
        shutil.rmtree(task.folder, ignore_errors=True)
        self._stored -= task.length + task.result_length + sum(task.previews.values())
        task.length = task.result_length = 0
        task.previews.clear()

    def _end(self, task: Task, state: str) -> None:
        task.state = state
        task.ended = time.monotonic()
        task.over.set()
        self._tell(task)
        try:
            self._on_end(task)
        except Exception:  # for example because the terminal is gone: the queue has to go on
            log.exception("a job's end could not be reported")

    # --- computing ---

    async def _work(self) -> None:
        while True:
            task = await self._next()
            task.state = RUNNING
            self._tell(task)
            began = time.monotonic()
            clock = asyncio.get_running_loop().call_later(self.limits.compute, self.cancel, task, "time")
            try:
                await self._compute(task)
            finally:
                clock.cancel()
            self._pace += 0.2 * (time.monotonic() - began - self._pace)
            if task.id not in self._tasks:  # deleted meanwhile
                self._forget_files(task)

    async def _next(self) -> Task:
        while not self._waiting:
            self._more.clear()
            await self._more.wait()
        return self._waiting.pop(next(iter(self._waiting)))

    async def _compute(self, task: Task) -> None:
        loop = asyncio.get_running_loop()

        def tell(event: Started | Progress) -> None:  # in another thread
            if task.stop is not None:
                raise Cancelled
            if isinstance(event, Started):
                self._check_result_size(task, event)
            loop.call_soon_threadsafe(self._note, task, event)

        def run() -> Done:
            if task.stop is not None:
                raise Cancelled
            return self.engine.compute(task.source, task.result, task.asked.name, task.asked.settings, tell)

        try:
            done = await loop.run_in_executor(self._threads, run)
        except (Cancelled, Closed):
            if task.stop == "time":
                minutes = f"{self.limits.compute / 60:.3g} minutes"
                self._fail(task, 504, f"{task.asked.name}: it took longer than {minutes}, the limit of this server")
            else:
                self._end(task, CANCELLED)
        except HasnError as error:
            self._fail(task, *_described(error))
        except MemoryError:
            self._fail(task, 507, f"{task.asked.name}: there is not enough memory for it")
        except Exception:
            log.exception("unexpected error")
            self._fail(task, 500, f"{task.asked.name}: an unexpected error, which the server's log describes")
        else:
            self._finish(task, done)

    def _check_result_size(self, task: Task, event: Started) -> None:
        pixels = event.target_size[0] * event.target_size[1] * event.frames
        if pixels > self.limits.output_pixels:
            message = f"{task.asked.name}: the result would have {pixels / 1e6:.0f} megapixels"
            most = f"at most {self.limits.output_pixels / 1e6:.0f} are allowed here"
            raise ImageError(f"{message}, and {most}", "use a smaller scale")

    def _note(self, task: Task, event: Started | Progress) -> None:
        if task.state != RUNNING:
            return
        if isinstance(event, Started):
            task.format = event.format
            task.facts = {"size": list(event.size), "target_size": list(event.target_size), "frames": event.frames,
                          "format": event.format, "weights": event.weights}  # fmt: skip
        else:
            task.fraction = max(task.fraction, event.fraction)
        self._tell(task)

    def _finish(self, task: Task, done: Done) -> None:
        task.fraction = 1.0
        task.result_length = done.bytes
        self._stored += done.bytes
        task.facts |= {"seconds": round(done.seconds, 3), "notices": list(done.notices)}
        self._end(task, DONE)

    def _fail(self, task: Task, status: int, message: str, hint: str | None = None) -> None:
        task.status, task.error, task.hint = status, message, hint
        self._end(task, FAILED)

    async def preview(self, task: Task, of_result: bool) -> Path:
        """A PNG of the input or the result, for browsers that cannot show the format itself.

        Raises:
            HasnError: there can be none.
        """
        source = task.result if of_result else task.source
        target = task.folder / f"{source.name}-preview"
        if not target.exists():
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._previews, self._make_preview, source, target, task.asked.name)
            if task.id in self._tasks:
                size = target.stat().st_size - task.previews.get(target.name, 0)
                task.previews[target.name] = task.previews.get(target.name, 0) + size
                self._stored += size
        return target

    def _make_preview(self, source: Path, target: Path, name: str) -> None:
        if not target.exists():
            self.engine.preview(source, target, name)

    # --- telling ---

    def _tell(self, task: Task) -> None:
        for listener in self._listeners:
            if listener.wants(task):
                listener.changed[task.id] = task
                listener.wake.set()

    async def follow(self, *, task: Task | None = None, group: str | None = None) -> AsyncIterator[list[Task] | None]:
        """Yield the jobs that have changed, beginning with all; None is a sign of life.

        It ends when the server stops or, for a single job, when that is over. A slow listener gets fewer messages and
        always the latest state, so it takes no more memory than a quick one.
        """
        listener = _Listener(task, group)
        for known in [task] if task is not None else self.of_group(group or ""):
            listener.changed[known.id] = known
        listener.wake.set()
        self._listeners.add(listener)
        if group is not None:
            self._left.pop(group, None)
        try:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(listener.wake.wait(), ALIVE)
                if self.closing.is_set():
                    return
                listener.wake.clear()
                changed, listener.changed = listener.changed, {}
                yield list(changed.values()) or None
                if task is not None and task.state in ENDED:
                    return
                await asyncio.sleep(PAUSE)
        finally:
            self._listeners.discard(listener)
            if group is not None and not any(other.group == group for other in self._listeners):
                self._left[group] = time.monotonic()

    # --- expiring ---

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.expire(time.monotonic())

    def expire(self, now: float) -> None:
        """Delete what was kept for long enough by the time `now`, and cancel what nobody waits for any more."""
        for task in list(self._tasks.values()):
            if task.state in ENDED and now - task.ended > self.limits.keep:
                self.delete(task)
        for group, left in list(self._left.items()):
            if now - left > self.limits.abandoned:
                del self._left[group]
                for task in self.of_group(group):
                    self.cancel(task)


@dataclass(eq=False)
class _Listener:
    """Somebody who wants to know what becomes of one job or of a group of jobs."""

    task: Task | None
    group: str | None
    changed: dict[str, Task] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def wants(self, task: Task) -> bool:
        return task is self.task or (self.group is not None and task.asked.group == self.group)


def too_large(limit: int) -> Refused:
    """The refusal of an upload that is larger than `limit` bytes."""
    return Refused(413, f"the file is larger than {limit / (1 << 20):.4g} MiB, the limit of this server")


def _described(error: HasnError) -> tuple[int, str, str | None]:
    """HTTP status, message and hint for an error; without paths of this machine, and without command line options."""
    from hasn_cli.serve.words import for_clients

    if isinstance(error, OutputError):
        return 507, "the server could not store the result", "try again later"
    if isinstance(error, MissingExtraError):
        return 422, error.message, "whoever runs this server can install it"
    if isinstance(error, UsageError | ImageError):
        return 422, error.message, for_clients(error.hint)
    if isinstance(error, WeightsError):
        return 422, "these weights cannot be used for this scale", "choose other weights or another scale"
    return 503, error.message, for_clients(error.hint)
