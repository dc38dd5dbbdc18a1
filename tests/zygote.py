"""A process that has imported everything and forks one run of `hasn` for each line it reads, for tests that kill runs.

Starting a new Python for each run would take seconds. A line is a JSON list of arguments, and the answer is
`started PID`. After one more line, the process waits for the run and answers `ended STATUS` (negative: the signal that
ended it).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Runs:
    """The test's interface: start runs, kill them, and wait for them."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process
        self._run: int | None = None

    def start(self, *args: object) -> None:
        """Start `hasn ARGS`, after ending a run that a failed test may have left."""
        if self._run is not None:
            self.kill()
            self.wait()
        self._process.stdin.write(json.dumps([str(arg) for arg in args]) + "\n")
        self._process.stdin.flush()
        self._run = self._answer("started")

    def kill(self) -> None:
        """End the run with SIGKILL."""
        assert self._run is not None and self._run > 1
        os.kill(self._run, signal.SIGKILL)  # not reaped before `ended` is read, so the process id is still valid

    def wait(self) -> int:
        """Wait for the run's end and return its exit status."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        status = self._answer("ended")
        self._run = None
        return status

    def run(self, *args: object) -> int:
        """`start` and `wait`."""
        self.start(*args)
        return self.wait()

    def _answer(self, word: str) -> int:
        first, number = self._process.stdout.readline().split()
        assert first == word
        return int(number)


@contextmanager
def runs() -> Iterator[Runs]:
    """A zygote that lives as long as the context."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield Runs(process)
        process.stdin.close()


def main() -> None:
    import torch  # noqa: F401

    import hasn_cli.batch
    import hasn_cli.inference.upscaler  # noqa: F401
    from hasn_cli.cli.main import run

    print("ready", flush=True)
    while line := sys.stdin.readline():
        child = os.fork()
        if child == 0:
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            os._exit(run(json.loads(line)))
        print("started", child, flush=True)
        sys.stdin.readline()  # until the test asks, the child's process id stays in use
        _, status = os.waitpid(child, 0)
        print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
