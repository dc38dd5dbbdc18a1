"""What the user sees: error lines, a line for each picture, the summary, JSON events; and the exit code.

Text for people goes to stderr. stdout is for pixels and JSON. Progress bars are in `hasn_cli/cli/progress.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import click

from hasn_cli.errors import HasnError, OutputExistsError
from hasn_cli.redaction import redacted, redacted_traceback, without_secrets

if TYPE_CHECKING:
    from hasn_cli.batch.events import Done, Event, Failed, Started, Stopped

INTERRUPTED = 130
LONGEST_NAME = 100  # characters; longer names are shortened in the middle, so that the text after them stays in view
SCREENFUL = 20  # lines after which the summary lists the failures again


def style(text: str, colour: str, *, bold: bool = False) -> str:
    """Colour `text`, unless NO_COLOR or TERM=dumb asks for plain text (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return click.style(text, fg=colour, bold=bold)


def describe(error: BaseException) -> tuple[str, str | None]:
    """The message and the hint to show for `error`, each in one line."""
    if isinstance(error, HasnError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, None
    if isinstance(error, MemoryError):
        return "not enough memory", "set a limit, for example --memory 2G, or process one picture at a time: -j 1"
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text}", "hasn -v COMMAND … shows the traceback; please report it"


def error_lines(error: BaseException, *, name: str = "") -> list[str]:
    """`error: WHAT` and, if there is a hint, `hint: WHAT TO DO`; styled, for stderr. `name` is the picture's."""
    message, hint = describe(error)
    if name and name not in message:
        message = f"{name}: {message}"
    if len(name) > LONGEST_NAME:
        message = message.replace(name, shortened(name, LONGEST_NAME))
    return [error_line(message), *([hint_line(hint)] if hint else [])]


def error_line(message: str) -> str:
    """`error: WHAT`, styled."""
    return f"{style('error:', 'red', bold=True)} {printable(message)}"


def hint_line(hint: str) -> str:
    """`hint: WHAT TO DO`, styled."""
    return f"{style('hint:', 'cyan')} {printable(hint)}"


def printable(text: str, longest: int = 500) -> str:
    """Make `text` safe to print in one line: control characters are escaped, and secrets are hidden.

    Words (mostly paths) of more than `LONGEST_NAME` characters are shortened in the middle, and so is a text of more
    than `longest` characters.
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in redacted(text))
    if longest > LONGEST_NAME and len(shown) > LONGEST_NAME:
        shown = re.sub(rf"\S{{{LONGEST_NAME + 1},}}", lambda word: shortened(word[0], LONGEST_NAME), shown)
    return shortened(shown, longest)


def shortened(name: str, width: int) -> str:
    """Leave out the middle of `name` if it is longer than `width` characters."""
    if len(name) <= width:
        return name
    end = width // 2
    return name[: width - end - 1] + "…" + name[-end:]


def say_skipped(name: str, reason: str) -> None:
    """Print on stderr that a picture was skipped, and why."""
    click.echo(f"{style('skipped:', 'yellow')} {printable(name)}: {printable(reason)}", err=True)


def traceback_text(error: BaseException) -> str:
    """The error's traceback, with each line made `printable`."""
    return "".join(f"{printable(line, longest=10_000)}\n" for line in redacted_traceback(error))


def show_error(error: BaseException, *, verbose: bool = False, name: str = "") -> int:
    """Print the error on stderr, after the traceback if `verbose`, and return its exit code."""
    if verbose:
        click.echo(traceback_text(error), err=True, nl=False)
    for line in error_lines(error, name=name):
        click.echo(line, err=True)
    return error.exit_code if isinstance(error, HasnError) else 1


class Report:
    """Counts the results of a batch, and determines the exit code.

    Args:
        resumable: whether `--resume` can continue the batch if it is interrupted.
    """

    def __init__(self, *, resumable: bool = False) -> None:
        self.done = 0
        self.skipped = 0
        self.failures: list[Failed] = []
        self.stopped: Stopped | None = None
        self.error: Exception | None = None  # what ended the batch as a whole
        self.interrupted = False
        self.resumable = resumable
        self.started_at = time.monotonic()

    def count(self, event: Event) -> None:
        """Count one event of a batch."""
        from hasn_cli.batch import events

        if isinstance(event, events.Done):
            self.done += 1
        elif isinstance(event, events.Skipped):
            self.skipped += 1
        elif isinstance(event, events.Failed):
            self.failures.append(event)
        elif isinstance(event, events.Stopped):
            self.stopped = event

    @property
    def exit_code(self) -> int:
        """130 if interrupted, 1 if any picture failed, else 0."""
        return INTERRUPTED if self.interrupted else int(bool(self.failures or self.stopped))

    @property
    def total(self) -> int:
        """The number of pictures that were done, were skipped or failed."""
        return self.done + self.skipped + len(self.failures)

    def to_dict(self) -> dict[str, object]:
        """The summary as a JSON-able event."""
        message, hint = describe(self.error) if self.error else (None, None)
        return {
            "event": "summary",
            "done": self.done,
            "skipped": self.skipped,
            "failed": len(self.failures),
            "interrupted": self.interrupted,
            "seconds": round(time.monotonic() - self.started_at, 3),
            "failures": [event.to_dict() for event in self.failures],
            "error": message,
            "hint": hint,
        }

    def __str__(self) -> str:
        counts = {"skipped": self.skipped, "failed": len(self.failures)}
        parts = [f"{self.done} done", *(f"{count} {what}" for what, count in counts.items() if count)]
        text = ", ".join(parts) + f" in {duration(time.monotonic() - self.started_at)}"
        if self.stopped:
            return f"stopped, {self.stopped.left} not tried: {text}"
        return f"interrupted: {text}" if self.interrupted else text


class View(Protocol):
    """Something that shows a batch as it runs."""

    def show(self, event: Event) -> None:
        """Show one event."""

    def finish(self, report: Report) -> None:
        """Show the end; the view is not used again."""


class JsonView:
    """Writes each event to stdout as a line of JSON."""

    def show(self, event: Event) -> None:
        self._write(event.to_dict())

    def finish(self, report: Report) -> None:
        self._write(report.to_dict())

    @staticmethod
    def _write(event: dict[str, object]) -> None:
        # json.dumps gives ASCII, because a file's name may not be valid Unicode
        sys.stdout.write(json.dumps(without_secrets(event)) + "\n")
        sys.stdout.flush()


class QuietView:
    """Shows errors on stderr, and nothing else.

    Outputs that exist are reported together at the end, because after a repeated command they are all pictures.
    """

    def __init__(self, *, verbose: int = 0) -> None:
        self.verbose = verbose  # 1: tracebacks, and the plan for each picture; 2: the plan in detail
        self._existing: list[Failed] = []
        self._hints: set[str] = set()
        self.failed = False  # whether an error was shown

    def show(self, event: Event) -> None:
        from hasn_cli.batch import events

        if not isinstance(event, events.Failed):
            return
        if isinstance(event.error, OutputExistsError):
            self._existing.append(event)
            return
        if self.verbose:
            self.write(traceback_text(event.error).rstrip("\n"))
        self._write_error(event)

    def _write_error(self, event: Failed) -> None:
        self.failed = True
        lines = error_lines(event.error, name=event.job.name)
        self.write(lines[0])
        for hint in lines[1:]:  # many pictures may have the same hint, which is printed once
            if hint not in self._hints:
                self.write(hint)
            self._hints.add(hint)

    def write(self, line: str) -> None:
        """Print a line."""
        click.echo(line, err=True)

    def finish(self, report: Report) -> None:
        if len(self._existing) == 1:
            self._write_error(self._existing[0])
        elif self._existing:
            first = self._existing[0]
            name = shortened(first.job.target_name, LONGEST_NAME)
            self.write(error_line(f"{len(self._existing)} outputs exist already, the first is {name}"))
            self.write(hint_line(describe(first.error)[1] or ""))


class LineView(QuietView):
    """Shows a line for each picture on stderr, and a summary if there were several: for logs and pipes."""

    def __init__(self, *, verbose: int = 0) -> None:
        super().__init__(verbose=verbose)
        self.lines = 0  # since the first failure

    def show(self, event: Event) -> None:
        super().show(event)
        line = outcome_line(event, verbose=self.verbose)
        if line:
            self.write(printable(line))
            self.lines += self.failed

    def finish(self, report: Report) -> None:
        super().finish(report)
        for line in summary_lines(report, again=self.lines > SCREENFUL):
            self.write(line)


class PlanView(LineView):
    """Shows what a dry run finds: a line for each picture that would be upscaled."""

    def __init__(self, *, verbose: int = 0) -> None:
        super().__init__(verbose=verbose)
        self.planned = 0

    def show(self, event: Event) -> None:
        from hasn_cli.batch import events

        if isinstance(event, events.Started):
            self.planned += 1
            name = shortened(event.job.name, LONGEST_NAME)
            target = shortened(event.job.target_name, LONGEST_NAME)
            self.write(printable(f"{name} → {target}  {plan_text(event, verbose=self.verbose)}"))
        else:
            super().show(event)

    def finish(self, report: Report) -> None:
        QuietView.finish(self, report)
        counts = {"to skip": report.skipped, "would fail": len(report.failures)}
        self.write(
            ", ".join([f"{self.planned} to do", *(f"{count} {what}" for what, count in counts.items() if count)])
        )


def outcome_line(event: Event, *, verbose: int) -> str | None:
    """The line for an event, or None if the event has no line."""
    from hasn_cli.batch import events

    if isinstance(event, events.Done):
        height, width = event.sr_size
        name = shortened(event.job.target_name, LONGEST_NAME)
        warning = f"  warning: {'; '.join(event.notices)}" if event.notices else ""
        frames = f", {frames_text(event)}" if event.frames is not None else ""
        return f"{name}  {width}×{height}{frames}  done in {duration(event.seconds)}{warning}"
    if isinstance(event, events.Skipped):
        return f"{shortened(event.job.name, LONGEST_NAME)}  skipped: {event.reason}"
    if isinstance(event, events.Stopped):
        return f"stopping: {event.reason}"
    if isinstance(event, events.Started) and verbose:
        return f"{shortened(event.job.name, LONGEST_NAME)}  {plan_text(event, verbose=verbose)}"
    return None


def frames_text(event: Done) -> str:
    """`250 frames`, `250 frames (12 repeated)`: how many a video has, and what was not computed."""
    parts = [
        f"{count} {what}" for count, what in ((event.repeated, "repeated"), (event.resumed, "done before")) if count
    ]
    return f"{event.frames} frames" + (f" ({', '.join(parts)})" if parts else "")


def plan_text(event: Started, *, verbose: int = 0) -> str:
    """`512×384 → 2048×1536  whole picture, 132 MB of 12.2 GB`, and the details if `verbose` is above 1."""
    size, target_size = (f"{width}×{height}" for height, width in (event.size, event.target_size))
    frames = f", {event.frames} frames" if event.frames > 1 else ""
    frames += f", {duration(event.length)}" if event.length is not None else ""
    frames += f", about {duration(event.estimate)} to compute" if event.estimate is not None else ""
    details = f"  ({event.details})" if verbose > 1 else ""
    weights = f"  {event.weights}" if event.weights else ""
    return f"{size} → {target_size}{frames}  {event.plan}{weights}{details}"


def summary_lines(report: Report, *, again: bool = False) -> Iterator[str]:
    """The counts and, with `again`, each failure by name. Nothing for one picture, unless it was interrupted."""
    if report.total <= 1 and not report.interrupted and not report.stopped:
        return
    yield str(report)
    if report.interrupted and report.resumable:
        yield hint_line("the same command with --resume continues from here")
    for event in report.failures if again else ():
        if not isinstance(event.error, OutputExistsError):
            message, _ = describe(event.error)
            yield printable(f"  failed: {message if event.job.name in message else f'{event.job.name}: {message}'}")


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, or for a minute and more `3:19`, `2:05:10`."""
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def show_batch(batch: Generator[Event], views: Sequence[View], *, resumable: bool = False) -> Report:
    """Run a batch until its end or Ctrl-C, and show every event in every view.

    On Ctrl-C the batch is closed, which stops it cleanly, and the report says that it was interrupted. A second Ctrl-C
    ends it at once. `resumable`: whether `--resume` can continue it.
    """
    from hasn_cli.batch import events

    report = Report(resumable=resumable)
    try:
        with contextlib.closing(batch):
            for event in batch:
                report.count(event)
                if isinstance(event, events.Failed) and isinstance(event.error, BrokenPipeError):
                    raise event.error  # the reader of our stdout has closed it: end without a message
                for view in views:
                    view.show(event)
    except KeyboardInterrupt:
        report.interrupted = True
    except Exception as error:
        report.error = error
        raise
    finally:
        with contextlib.ExitStack() as ends:  # if one view fails, the others still restore the terminal
            for view in reversed(views):
                ends.callback(view.finish, report)
    return report
