"""Reads hostile pictures in separate processes with limited memory and time.

A process that has imported everything forks one reader for each request. Requests and answers are JSON lines.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MEMORY = 1 << 30  # bytes of address space that a reader may allocate in addition to what it starts with
SECONDS = 60  # processor time after which a reader is killed


@dataclass(frozen=True)
class Outcome:
    """The result of reading one file.

    Attributes:
        error: the message of the `ImageError`; None if there was none.
        sizes: height and width of each frame.
        texts: the number of characters in its text metadata.
        peak: bytes of memory that were used in addition to what the process started with.
        seconds: processor time.
        crash: any other exception or a signal that ended the reader; None if there was none.
    """

    error: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    texts: int = 0
    peak: int = 0
    seconds: float = 0.0
    crash: str | None = None


class Reader:
    """The test's end of the connection to the process that forks readers."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self._process = process
        self._file = folder / "picture"

    def read(self, data: bytes | Path, *, write: str | None = None, **options: object) -> Outcome:
        """Read a picture and all its frames.

        Args:
            data: the bytes of the picture, or its file.
            write: a format in which to write the first frame, too.
            options: options of `open_picture`; `memory` and `seconds` for other limits.
        """
        if isinstance(data, bytes):
            self._file.write_bytes(data)
        path = data if isinstance(data, Path) else self._file
        self._process.stdin.write(json.dumps({"path": str(path), "write": write, **options}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        answer["sizes"] = tuple(map(tuple, answer.get("sizes", ())))
        return Outcome(**answer)


@contextmanager
def reader() -> Iterator[Reader]:
    """Run the process that forks readers as long as the context lasts."""
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True) as process,
    ):
        assert process.stdout.readline() == "ready\n"
        yield Reader(process, Path(folder))
        process.stdin.close()


def main() -> None:
    """Answer requests until the input ends."""
    import importlib
    import warnings

    warnings.simplefilter("ignore")
    from hasn_cli.images import codecs

    for module, _ in codecs._CODECS.values():
        importlib.import_module(f"hasn_cli.images.codecs.{module}")

    print("ready", flush=True)
    while line := sys.stdin.readline():
        print(json.dumps(_forked(json.loads(line))), flush=True)


def _forked(request: dict) -> dict:
    seconds, memory = request.pop("seconds", SECONDS), request.pop("memory", MEMORY)
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(sending, json.dumps(_attempt(request)).encode())
        os._exit(0)
    os.close(sending)
    began = time.monotonic()
    answer = b""
    while ready := select.select([receiving], [], [], max(0.0, began + 3 * seconds - time.monotonic()))[0]:
        piece = os.read(receiving, 1 << 16)
        if not piece:
            break
        answer += piece
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.close(receiving)
    _, status, usage = os.wait4(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    if not answer or ended:
        return {"crash": f"signal {-ended}", "seconds": usage.ru_utime + usage.ru_stime}
    return json.loads(answer)


def _attempt(request: dict) -> dict:
    from hasn_cli.errors import ImageError

    before, began = _peak(), time.process_time()
    result: dict = {}
    try:
        result = _read(**request)
    except ImageError as error:
        result["error"] = str(error)
    except BaseException as error:
        result["crash"] = repr(error)[:500]
    return {**result, "peak": _peak() - before, "seconds": time.process_time() - began}


def _read(path: str, write: str | None, **options: object) -> dict:
    from hasn_cli.images import EncodeOptions, open_picture, write_picture

    picture = open_picture(Path(path), **options)
    sizes = [frame.pixels.shape[:2] for frame in picture.frames]
    if write:
        target = Path(path).with_suffix(".out")
        try:
            write_picture(picture, target, write, EncodeOptions(first_frame=True))
        finally:
            target.unlink(missing_ok=True)
    return {"sizes": sizes, "texts": sum(len(text.value) for text in picture.metadata.text)}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
