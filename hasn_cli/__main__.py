"""Entry point of `hasn` and `python -m hasn_cli`."""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from pathlib import Path


def main() -> None:
    """Run the command line and leave with its exit code."""
    _open_closed_streams()
    _replace_what_cannot_be_printed()
    _keep_stderr_to_ourselves()
    from hasn_cli.cli.main import run
    from hasn_cli.console import INTERRUPTED

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems send it: end as cleanly as by Ctrl-C
    code = run()
    if code == INTERRUPTED:
        # a worker thread may still be inside a codec or a matrix product; nothing of it is wanted, so nothing waits
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _open_closed_streams() -> None:
    """A standard stream that the caller closed is None to Python; in its place comes one that leads nowhere.

    In their order they get their own numbers back, so that no picture is ever opened as number 1 or 2.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (open to the end)


def _replace_what_cannot_be_printed() -> None:
    """In a locale that lacks a letter of ours, a table with a question mark is better than none."""
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
