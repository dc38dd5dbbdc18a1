"""Entry point of `hasn` and `python -m hasn_cli`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
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


if __name__ == "__main__":
    main()
