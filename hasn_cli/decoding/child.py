"""The process that decodes: `python -P -m hasn_cli.decoding.child`. It reads requests from its standard input.

It needs `hasn_cli.images` but not PyTorch, so it starts in a fraction of a second. It ends when its input ends, even in
the middle of a picture. It writes only its answers; what a C library prints is discarded.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

MEMORY = 1536 << 20  # bytes that decoding any picture may take, besides those that depend on its size
MEMORY_FOR_PIXELS = 12  # times the bytes of the decoded picture
MEMORY_FOR_FILE = 4  # times the bytes of the file
SECONDS = 60  # of processor time, for any picture
SECONDS_PER_MEGAPIXEL = 10.0
SECONDS_PER_MEGABYTE = 5.0  # of the file
FOR_THE_OOM_KILLER = "900"  # of 1000: if memory runs out, Linux should end this process before the one that asks

Request = tuple[dict[str, Any], list[bytes]]


def main() -> None:
    """Answer requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    answers = _take_over_streams()
    _prepare()
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    server = _Server(answers)
    server.answer({"ready": True})
    while True:
        server.serve(*requests.get())


def _take_over_streams() -> int:
    """Keep the pipe behind the standard output for answers, and discard all that is printed."""
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for standard in (1, 2):
        os.dup2(nowhere, standard)
    return answers


def _prepare() -> None:
    import warnings

    warnings.simplefilter("ignore")
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(FOR_THE_OOM_KILLER)
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read_requests(requests: queue.SimpleQueue[Request]) -> None:
    """Read requests in a thread, which ends this process as soon as the one that asks is gone."""
    from hasn_cli.decoding.messages import receive

    try:
        stream = os.fdopen(0, "rb", closefd=False)
        while True:
            requests.put(receive(stream.readinto))
    finally:
        os._exit(0)


class _Server:
    """Opens pictures and sends their frames one by one.

    Args:
        answers: the file descriptor to write to.
    """

    def __init__(self, answers: int) -> None:
        from hasn_cli.images.picture import Frame, Picture

        self._answers = answers
        self._pictures: dict[int, tuple[Picture, int]] = {}  # number → picture and length of its file
        self._iterations: dict[int, tuple[Iterator[Frame], int]] = {}  # number → frames and number of their picture

    def answer(self, content: dict[str, Any], blobs: list[Any] | None = None) -> None:
        """Send one message."""
        from hasn_cli.decoding.messages import send

        send(self._write, content, blobs or ())

    def serve(self, content: dict[str, Any], blobs: list[bytes]) -> None:
        """Carry out a request and answer it."""
        for number in content.get("closed", ()):
            self._pictures.pop(number, None)
        for number in content.get("dropped", ()):
            self._iterations.pop(number, None)
        try:
            if "open" in content:
                self._open(content, blobs)
            else:
                self._next(content)
        except Exception as error:
            self.answer({"error": _error(error)})

    def _open(self, content: dict[str, Any], blobs: list[bytes]) -> None:
        from hasn_cli.decoding.messages import to_plain
        from hasn_cli.images import open_picture

        source: bytes | Path = blobs[0] if blobs else Path(content["path"])
        length = len(source) if isinstance(source, bytes) else _length(source)
        _limit(MEMORY + MEMORY_FOR_FILE * length, SECONDS + SECONDS_PER_MEGABYTE * length / 1e6)
        picture = open_picture(source, max_pixels=content["max_pixels"], name=content["name"])
        self._pictures[content["open"]] = picture, length
        sent: list[Any] = []
        header = to_plain(picture, sent)
        self.answer({"picture": header}, sent)

    def _next(self, content: dict[str, Any]) -> None:
        import numpy as np

        from hasn_cli.decoding.messages import to_plain

        number = content["iteration"]
        if number not in self._iterations:
            picture, _ = self._pictures[content["next"]]
            self._iterations[number] = islice(iter(picture.frames), content["skip"], None), content["next"]
        iterator, opened = self._iterations[number]
        self._limit_for(opened)
        frame = next(iterator, None)
        if frame is None:
            self._iterations.pop(number)
            self.answer({"end": True})
            return
        sent: list[Any] = []
        header = to_plain(frame, sent)
        self.answer({"frame": header, "shape": frame.pixels.shape, "dtype": frame.pixels.dtype.name}, sent)
        self._write(np.ascontiguousarray(frame.pixels).reshape(-1).view(np.uint8).data)

    def _limit_for(self, opened: int) -> None:
        """Limit memory and time for the next frame of a picture, by the size that its header declares."""
        picture, length = self._pictures[opened]
        largest = max(picture.shapes, key=lambda shape: shape.nbytes)
        pixels = largest.size[0] * largest.size[1]
        memory = MEMORY + MEMORY_FOR_FILE * length + MEMORY_FOR_PIXELS * largest.nbytes
        _limit(memory, SECONDS + SECONDS_PER_MEGABYTE * length / 1e6 + SECONDS_PER_MEGAPIXEL * pixels / 1e6)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._answers, view) :]


def _limit(memory: int, seconds: float) -> None:
    """Allow this many more bytes of address space and seconds of processor time, if the system supports limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + seconds) + 1
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    with suppress(ValueError, OSError):
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _length(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _error(error: Exception) -> dict[str, Any]:
    from hasn_cli.errors import HasnError

    known = error if isinstance(error, HasnError) else None
    return {
        "kind": type(error).__name__,
        "message": known.message if known else f"{type(error).__name__}: {error}",
        "hint": known.hint if known else None,
        "traceback": "".join(traceback.format_exception(error)),
    }


if __name__ == "__main__":
    main()
