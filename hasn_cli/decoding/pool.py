"""`Decoders`: start the processes that decode a batch's pictures, ask them, and replace them when they die.

If a process dies, its picture is tried once more in a fresh process, because an earlier picture may have damaged the
first one. If that one dies too, the picture fails. Other pictures are not affected.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hasn_cli import errors, images
from hasn_cli.decoding.messages import DTYPES, InvalidMessage, fill, header_from, receive, send
from hasn_cli.errors import HasnError, ImageError
from hasn_cli.images.picture import Frame, Picture, ReplayableFrames

START_COST = 0.5  # seconds that starting a process takes, about; another one is started after as much waiting
PIPE_BYTES = 1 << 20
F_SETPIPE_SZ = 1031  # of Linux; Python before 3.12 has no name for it
HARMFUL = "the file is damaged or malicious; other pictures are not affected"

T = TypeVar("T")
_numbers = itertools.count()
_current: ContextVar[Decoders | None] = ContextVar("decoders", default=None)


def open_picture(source: Path | bytes, *, max_pixels: int | None, name: str = "") -> Picture:
    """Like `hasn_cli.images.open_picture`, but with the decoders that are in use. In this process if there are none."""
    decoders = _current.get()
    if decoders is None:
        return images.open_picture(source, max_pixels=max_pixels, name=name)
    return decoders.open(source, max_pixels=max_pixels, name=name)


@contextmanager
def in_use(decoders: Decoders | None) -> Iterator[None]:
    """Within this context and thread, `open_picture` uses these decoders; None: it decodes in this process."""
    token = _current.set(decoders)
    try:
        yield
    finally:
        _current.reset(token)


class Closed(BaseException):
    """The decoders were closed. This is not an `Exception`, so that no handler takes it for an error of the picture."""


class Decoders:
    """The processes that decode for the threads of one batch.

    The first is started at once. Others are started when waiting for a free one has cost more than a start.

    Args:
        most: the largest number of processes.
    """

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._change = threading.Condition()
        self._children: list[_Child] = []
        self._waited = 0.0
        self._closed = False
        self._usable = True
        self._start()

    def open(self, source: Path | bytes, *, max_pixels: int | None, name: str = "") -> Picture:
        """Like `hasn_cli.images.open_picture`, in another process. In this process if none can be started.

        The errors may also be raised while the frames are iterated.

        Raises:
            ImageError: the picture cannot be decoded, or the decoder crashed.
            Closed: `close` was called.
        """
        if self._usable:
            with suppress(_CannotStart):
                return _Remote(self, source, max_pixels, name).picture()
            self._usable = False
        return images.open_picture(source, max_pixels=max_pixels, name=name)

    def close(self) -> None:
        """End all processes at once."""
        with self._change:
            self._closed = True
            children, self._children = self._children, []
            self._change.notify_all()
        for child in children:
            child.end()

    @contextmanager
    def lease(self, wanted: _Child | None, *, fresh: bool = False) -> Iterator[_Child]:
        """Reserve a process for one question: the wanted one if it is alive, a fresh one, or any idle one."""
        with self._change:
            child = self._take(wanted, fresh)
        try:
            yield child
        except (_Died, _CannotStart):
            child.spent = True
            if self._closed:
                raise Closed from None
            raise
        finally:
            if child.spent:
                child.end()
            with self._change:
                if child.spent and child in self._children:
                    self._children.remove(child)
                child.busy = False
                self._change.notify_all()

    def _take(self, wanted: _Child | None, fresh: bool) -> _Child:
        while True:
            if self._closed:
                raise Closed
            if fresh:
                return self._start(busy=True)
            among = [wanted] if wanted in self._children and wanted is not None else self._children
            idle = next((child for child in among if not child.busy), None)
            if idle is not None:
                idle.busy = True
                return idle
            may_start = among is self._children and len(among) < self._most
            if may_start and (not among or self._waited >= START_COST):
                self._waited = 0.0
                return self._start(busy=True)
            began = time.monotonic()
            self._change.wait(START_COST)
            self._waited += time.monotonic() - began

    def _start(self, busy: bool = False) -> _Child:
        child = _Child()
        child.busy = busy
        self._children.append(child)
        return child


class _Died(Exception):
    """A process ended while it was asked.

    Args:
        status: as `Popen.returncode`; None: it sent an invalid answer.
        alone: whether this is the only picture that the process ever had.
    """

    def __init__(self, status: int | None, alone: bool) -> None:
        super().__init__(status)
        self.status = status
        self.alone = alone


class _CannotStart(Exception):
    """A process ended before it was ready."""


class _Child:
    """One process. Only the thread that leased it may ask it, one question at a time."""

    def __init__(self) -> None:
        self.busy = False
        # the pictures and iterations that it may forget, which are sent with the next question
        self.closed: deque[int] = deque()
        self.dropped: deque[int] = deque()
        self.opened: set[int] = set()
        self.spent = False  # it must not be used again, because something went wrong in it
        self._ready = False
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = _popen()
        except OSError:
            return  # reported when it is asked
        assert isinstance(self._process.stdin, BufferedWriter) and isinstance(self._process.stdout, BufferedReader)
        self._questions, self._answers = self._process.stdin, self._process.stdout
        _enlarge(self._questions)
        _enlarge(self._answers)

    def ask(self, question: dict[str, Any], data: bytes | None = None) -> tuple[dict[str, Any], list[bytes]]:
        """Ask one question, and return the answer.

        Raises:
            _Died: the process ended, or sent an invalid answer.
            _CannotStart: the process could not be started.
        """
        forgotten = {name: _drained(getattr(self, name)) for name in ("closed", "dropped")}
        if not self._ready:
            self._wait_until_ready()
        try:
            send(self._questions.write, question | forgotten, () if data is None else (data,))
            self._questions.flush()
            return receive(self._answers.readinto)
        except (OSError, EOFError, ValueError) as error:
            raise self.death(error) from None

    def read_pixels(self, into: memoryview) -> None:
        """Read the pixels that follow a frame's message.

        Raises:
            _Died: the process ended first.
        """
        try:
            fill(self._answers.readinto, into)
        except (OSError, EOFError, ValueError) as error:
            raise self.death(error) from None

    def death(self, error: Exception | None = None) -> _Died:
        """End the process, and return how it died."""
        invalid = error is None or isinstance(error, InvalidMessage)
        self.end(kill=invalid)
        status = None if invalid or self._process is None else self._process.returncode
        return _Died(status, alone=len(self.opened) <= 1)

    def end(self, kill: bool = True) -> None:
        """End the process. Without `kill`, first wait for it to end by itself."""
        process = self._process
        if process is None:
            return
        if not kill:
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)
        with suppress(OSError):
            process.kill()
        process.wait()
        for pipe in (self._questions, self._answers):
            with suppress(OSError, ValueError):
                pipe.close()

    def _wait_until_ready(self) -> None:
        if self._process is None:
            raise _CannotStart
        try:
            receive(self._answers.readinto)
        except (OSError, EOFError, ValueError):
            raise _CannotStart from None
        self._ready = True


class _Remote:
    """One picture in another process. If the process dies, the picture is opened again in a fresh one."""

    def __init__(self, decoders: Decoders, source: Path | bytes, max_pixels: int | None, name: str) -> None:
        self._decoders = decoders
        self._source = source
        self._max_pixels = max_pixels
        self._name = name or (str(source) if isinstance(source, Path) else "input")
        self._number = next(_numbers)
        self._child: _Child | None = None
        self._header: tuple[dict[str, Any], list[bytes]] | None = None

    def picture(self) -> Picture:
        """The picture's header, with frames that are requested one by one."""
        self._attempt(lambda child: None)
        assert self._header is not None
        content, blobs = self._header
        picture = header_from(Picture, content.get("picture"), blobs, {"frames": ()})
        return replace(picture, frames=ReplayableFrames(self._frames))

    def _frames(self) -> Iterator[Frame]:
        iteration = _Iteration()
        try:
            while (frame := self._attempt(lambda child: self._next(child, iteration))) is not None:
                iteration.index += 1
                yield frame
        finally:
            if iteration.child is not None:
                iteration.child.dropped.append(iteration.number)

    def _attempt(self, question: Callable[[_Child], T]) -> T:
        """Ask a process that has this picture open; if it dies, ask a fresh one."""
        for fresh in (False, True):
            try:
                with self._decoders.lease(self._child, fresh=fresh) as child:
                    self._open_in(child)
                    return question(child)
            except _Died as death:
                if fresh or death.alone or death.status == -getattr(signal, "SIGXCPU", 0):
                    raise self._failure(death) from None
        raise AssertionError("two attempts")

    def _open_in(self, child: _Child) -> None:
        if self._number in child.opened:
            return
        data = self._source if isinstance(self._source, bytes) else None
        path = None if data is not None else str(self._source)
        child.opened.add(self._number)
        question = {"open": self._number, "name": self._name, "max_pixels": self._max_pixels, "path": path}
        answer = child.ask(question, data)
        self._raise_error(child, answer[0])
        self._child, self._header = child, answer
        weakref.finalize(self, child.closed.append, self._number)

    def _next(self, child: _Child, iteration: _Iteration) -> Frame | None:
        if iteration.child is not child:
            iteration.child, iteration.number = child, next(_numbers)
        question = {"next": self._number, "iteration": iteration.number, "skip": iteration.index}
        content, blobs = child.ask(question)
        self._raise_error(child, content)
        if content.get("end") is True:
            return None
        try:
            pixels = self._array_for(content)
            frame = header_from(Frame, content.get("frame"), blobs, {"pixels": pixels})
        except InvalidMessage:
            raise child.death() from None
        child.read_pixels(pixels.reshape(-1).view(np.uint8).data)
        return frame

    def _array_for(self, content: dict[str, Any]) -> np.ndarray[Any, Any]:
        """An array for the pixels of the next frame, H×W×C, after checking that its size is allowed."""
        shape, dtype = content.get("shape"), content.get("dtype")
        if not (isinstance(shape, list) and len(shape) == 3 and isinstance(dtype, str) and dtype in DTYPES):
            raise InvalidMessage("a frame without a valid shape or type")
        if any(type(length) is not int or length < 1 for length in shape) or shape[2] > 4:
            raise InvalidMessage("a frame of an invalid size")
        if self._max_pixels and shape[0] * shape[1] > self._max_pixels:
            raise InvalidMessage("a frame above the limit")
        return np.empty(shape, DTYPES[dtype])

    def _raise_error(self, child: _Child, content: dict[str, Any]) -> None:
        """Raise the error that the decoder reported, if there is one."""
        error = content.get("error")
        if error is None:
            return
        if not (isinstance(error, dict) and all(isinstance(error.get(key), str) for key in ("kind", "message"))):
            raise child.death()
        if error["kind"] == "MemoryError":
            child.spent = True
            raise ImageError(f"{self._name}: the decoder ran out of memory", HARMFUL)
        raise _error_from(error)

    def _failure(self, death: _Died) -> ImageError:
        """The error for the death of a process."""
        status = death.status
        if status is None or status >= 0:
            how = "gave no answer" if status is None else f"ended without an answer (exit code {status})"
            return ImageError(f"{self._name}: the decoder {how}", HARMFUL)
        if -status == signal.SIGKILL:
            message = f"{self._name}: the decoder was killed, most likely because memory ran out"
            return ImageError(message, "process fewer pictures at once: -j 1")
        if -status == getattr(signal, "SIGXCPU", 0):
            message = f"{self._name}: the decoder took far longer than a picture of its size should"
            return ImageError(message, f"{HARMFUL}; if you trust it, upscale it alone, without this limit")
        words = (signal.strsignal(-status) or f"signal {-status}").lower()
        return ImageError(f"{self._name}: the decoder crashed ({words})", HARMFUL)


class _Iteration:
    """The state of an iteration over a picture's frames: the process, the iteration's number, and the next index."""

    def __init__(self) -> None:
        self.child: _Child | None = None
        self.number = 0
        self.index = 0


def _popen() -> subprocess.Popen[bytes]:
    """Start a process. With -P it loads no modules from the working folder, which may belong to a stranger."""
    root = str(Path(__file__).resolve().parents[2])  # the folder of this package
    code = f"import sys; sys.path.append({root!r}); from hasn_cli.decoding.child import main; main()"
    environment = {**os.environ, "MALLOC_ARENA_MAX": "2"}  # else each thread reserves address space of its own
    pipe = subprocess.PIPE
    command = [sys.executable, "-P", "-c", code]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment)


def _enlarge(pipe: Any) -> None:
    """Let a pipe hold more than 64 KiB, if the system allows it."""
    with suppress(ImportError, OSError, ValueError):
        import fcntl

        fcntl.fcntl(pipe.fileno(), F_SETPIPE_SZ, PIPE_BYTES)


def _drained(numbers: deque[int]) -> list[int]:
    return [numbers.popleft() for _ in range(len(numbers))]


def _error_from(values: dict[str, Any]) -> HasnError:
    """Rebuild the error that a decoder raised. Exceptions that are not ours become an `ImageError`."""
    kind = getattr(errors, values["kind"], None)
    cls: type[HasnError] = kind if isinstance(kind, type) and issubclass(kind, HasnError) else ImageError
    error = cls.__new__(cls)
    hint = values.get("hint")
    HasnError.__init__(error, values["message"], hint if isinstance(hint, str) else None)
    error.add_note(f"In the decoder's process:\n{values.get('traceback', '')}")
    return error
