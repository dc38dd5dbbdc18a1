"""Entry point of `hasn` and `python -m hasn_cli`."""

from __future__ import annotations

import os
import signal
import stat
import sys
from io import TextIOWrapper
from pathlib import Path
from types import FrameType


def main() -> None:
    """Run the command line and leave with its exit code."""
    _open_closed_streams()
    _replace_what_cannot_be_printed()
    _keep_stderr_to_ourselves()
    try:
        from hasn_cli.cli.main import run
        from hasn_cli.console import INTERRUPTED
    except KeyboardInterrupt:  # nothing has begun yet
        os._exit(130)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems send it: end as cleanly as by Ctrl-C
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
        signal.signal(signal.SIGHUP, _hang_up)
    code = run()
    if code == INTERRUPTED:
        # a thread may still be inside a codec or a matrix product; nobody needs its result, so do not wait for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _hang_up(number: int, frame: FrameType | None) -> None:
    """The terminal was closed: end as by Ctrl-C, and write no more to it, which would be an error."""
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    signal.default_int_handler(number, frame)


def _open_closed_streams() -> None:
    """Replace standard streams that the caller closed, which Python sets to None, by ones that lead nowhere.

    In this order they get their own numbers back, so that no picture is ever opened as number 1 or 2.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (open to the end)


def _replace_what_cannot_be_printed() -> None:
    """Print a question mark for letters that the locale does not have, rather than fail."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def _keep_stderr_to_ourselves() -> None:
    """Let only Python write to stderr.

    Codecs in C write what they think of a file to descriptor 2, whatever the caller asked to see; what matters of it
    our readers find out by themselves. Descriptor 2 leads nowhere from here on, and `sys.stderr` has one of its own.
    """
    if sys.platform == "win32" or sys.stderr.fileno() != 2:
        return
    sys.stderr.flush()
    own = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = own


if __name__ == "__main__":
    main()
