"""What the user sees: error lines, progress bars, a line a picture, the summary, JSON events; and the exit code.

Everything meant for eyes goes to stderr; stdout is left to pixels or to JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import click

from hasn_cli.errors import HasnError
from hasn_cli.redaction import redacted, redacted_traceback, without_secrets

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from hasn_cli.batch.events import Event, Failed, Stopped
    from hasn_cli.batch.inputs import Job
    from hasn_cli.weights import Progress as Fetching

INTERRUPTED = 130


def describe(error: BaseException) -> tuple[str, str | None]:
    """The message and the hint that a user is shown for `error`, each in one line."""
    if isinstance(error, HasnError):
        return error.message, error.hint
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, None
    if isinstance(error, MemoryError):
        return "not enough memory", "set a budget, such as --memory 2G, and fewer pictures at once, -j 1"
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {text}", "hasn -v COMMAND … shows the traceback; please report it"


def error_lines(error: BaseException, *, name: str = "") -> list[str]:
    """`error: WHAT` and, where there is one, `hint: WHAT TO DO`; styled, for stderr. `name` is the picture's."""
    message, hint = describe(error)
    if name and name not in message:
        message = f"{name}: {message}"
    lines = [f"{click.style('error:', fg='red', bold=True)} {printable(message)}"]
    if hint:
        lines.append(f"{click.style('hint:', fg='cyan')} {printable(hint)}")
    return lines


def printable(text: str, longest: int = 500) -> str:
    """`text` as one line that no file name can break or colour, without passwords: escaped, its end cut off."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in redacted(text))
    return shown if len(shown) <= longest else shown[: longest - 1] + "…"


def say_skipped(name: str, reason: str) -> None:
    """Print on stderr that a picture is left out, and why."""
    click.echo(f"{click.style('skipped:', fg='yellow')} {printable(name)}: {printable(reason)}", err=True)


def traceback_text(error: BaseException) -> str:
    """The error's traceback, each line of it `printable`."""
    return "".join(f"{printable(line, longest=10_000)}\n" for line in redacted_traceback(error))


def show_error(error: BaseException, *, verbose: bool = False, name: str = "") -> int:
    """Print the error's lines on stderr (after the traceback if `verbose`) and return its exit code."""
    if verbose:
        click.echo(traceback_text(error), err=True, nl=False)
    for line in error_lines(error, name=name):
        click.echo(line, err=True)
    return error.exit_code if isinstance(error, HasnError) else 1


class Report:
    """Counts what became of the pictures, and owns the exit code."""

    def __init__(self) -> None:
        self.done = 0
        self.skipped = 0
        self.failures: list[Failed] = []
        self.stopped: Stopped | None = None
        self.error: Exception | None = None  # what ended the batch as a whole
        self.interrupted = False
        self.started_at = time.monotonic()

    def count(self, event: Event) -> None:
        """Take note of one event of a batch."""
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
        """130 interrupted, 1 with any failure, else 0."""
        return INTERRUPTED if self.interrupted else int(bool(self.failures or self.stopped))

    @property
    def total(self) -> int:
        """Pictures accounted for."""
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
    """One JSON object a line on stdout for each event."""

    def show(self, event: Event) -> None:
        self._write(event.to_dict())

    def finish(self, report: Report) -> None:
        self._write(report.to_dict())

    @staticmethod
    def _write(event: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(without_secrets(event)) + "\n")  # all ASCII: a file's name may be no valid Unicode
        sys.stdout.flush()


class QuietView:
    """Errors on stderr, and nothing else."""

    def __init__(self, *, verbose: bool = False) -> None:
        self.verbose = verbose  # tracebacks, and the plan for each picture

    def show(self, event: Event) -> None:
        from hasn_cli.batch import events

        if isinstance(event, events.Failed):
            show_error(event.error, verbose=self.verbose, name=event.job.name)

    def finish(self, report: Report) -> None:
        return None


class LineView(QuietView):
    """A line a picture on stderr, and a summary where there were several: for logs and pipes."""

    def show(self, event: Event) -> None:
        super().show(event)
        line = outcome_line(event, verbose=self.verbose)
        if line:
            click.echo(printable(line), err=True)

    def finish(self, report: Report) -> None:
        for line in summary_lines(report):
            click.echo(line, err=True)


class PlanView(LineView):
    """What a dry run finds: a line for each picture that would be done."""

    def __init__(self, *, verbose: bool = False) -> None:
        super().__init__(verbose=verbose)
        self.planned = 0

    def show(self, event: Event) -> None:
        from hasn_cli.batch import events

        if isinstance(event, events.Started):
            self.planned += 1
            size, target_size = (f"{width}×{height}" for height, width in (event.size, event.target_size))
            line = f"{event.job.name} → {event.job.target_name}  {size} → {target_size}  {event.plan}"
            click.echo(printable(line), err=True)
        else:
            super().show(event)

    def finish(self, report: Report) -> None:
        click.echo(f"{self.planned} to do, {report.skipped} skipped, {len(report.failures)} impossible", err=True)


class BarView:
    """Progress bars on a terminal: one for each picture under way and, with several pictures, one overall."""

    def __init__(self, jobs: int, *, verbose: bool = False) -> None:
        self.verbose = verbose  # tracebacks, and the plan for each picture
        self.bars = make_bars()
        self.overall: TaskID | None = self.bars.add_task(f"{jobs} pictures", total=jobs, unit="") if jobs > 1 else None
        self.megapixels: dict[int, float] = {}  # job index → LR megapixels, of pictures opened and not finished
        self.under_way: dict[int, tuple[TaskID, float]] = {}  # job index → its bar and the fraction done
        self.finished = 0
        self.bars.start()

    def show(self, event: Event) -> None:
        from hasn_cli.batch import events

        if isinstance(event, events.Started):
            self.megapixels[event.job.index] = event.frames * event.size[0] * event.size[1] / 1e6
        elif isinstance(event, events.Progress):
            self._move(event.job, event.fraction)
        elif isinstance(event, events.Done | events.Skipped | events.Failed):
            self._end(event.job)
        self._print(event)

    def _move(self, job: Job, fraction: float) -> None:
        """A picture's bar appears with its first progress: those that wait for their turn are left out."""
        megapixels = self.megapixels.get(job.index, 0.0)
        if job.index in self.under_way:
            task, _ = self.under_way[job.index]
        else:
            task = self.bars.add_task(shortened(printable(job.name)), total=megapixels, unit="MP")
        self.under_way[job.index] = task, fraction
        self.bars.update(task, completed=fraction * megapixels)
        self._move_overall()

    def _end(self, job: Job) -> None:
        self.megapixels.pop(job.index, None)
        task, _ = self.under_way.pop(job.index, (None, 0.0))
        if task is not None:
            self.bars.remove_task(task)
        self.finished += 1
        self._move_overall()

    def _move_overall(self) -> None:
        if self.overall is not None:
            begun = sum(fraction for _, fraction in self.under_way.values())
            self.bars.update(self.overall, completed=self.finished + begun)

    def _print(self, event: Event) -> None:
        from rich.text import Text

        from hasn_cli.batch import events

        if isinstance(event, events.Failed):
            if self.verbose:
                self.bars.console.print(Text(traceback_text(event.error)), end="")
            for line in error_lines(event.error, name=event.job.name):
                self.bars.console.print(Text.from_ansi(line), soft_wrap=True)
        outcome = outcome_line(event, verbose=self.verbose)
        if outcome:
            self.bars.console.print(Text(printable(outcome)), soft_wrap=True)

    def finish(self, report: Report) -> None:
        self.bars.stop()
        for line in summary_lines(report):
            click.echo(line, err=True)


def make_bars() -> Bars:
    """rich's progress bars on stderr: name, bar, amount done, amount a second, time left; they vanish at the end."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.fields["unit"] == "":
                return Text(f"{int(task.completed)}/{task.total:.0f}")
            return Text(f"{task.completed:.2f}/{task.total:.2f} {task.fields['unit']}")

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            if not task.speed or task.fields["unit"] == "":
                return Text("")
            return Text(f"{task.speed:.2f} {task.fields['unit']}/s", style="dim")

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        Amount(),
        Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # what a command writes there is not for eyes
    )


@contextlib.contextmanager
def fetching() -> Iterator[Fetching]:
    """One progress bar on stderr for whatever weights are being fetched; none where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    stderr = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    hidden = not stderr.is_terminal
    with Progress(*columns, console=stderr, transient=True, disable=hidden, redirect_stdout=False) as bars:
        task = bars.add_task("", total=None, visible=False)

        def progress(label: str, done: int, total: int | None) -> None:
            bars.update(task, description=label, completed=done, total=total, visible=True)

        yield progress


def outcome_line(event: Event, *, verbose: bool) -> str | None:
    """The line that a finished picture leaves, or None for an event that leaves none."""
    from hasn_cli.batch import events

    if isinstance(event, events.Done):
        height, width = event.sr_size
        warning = f"  warning: {'; '.join(event.notices)}" if event.notices else ""
        return f"{event.job.target_name}  {width}×{height}  {duration(event.seconds)}{warning}"
    if isinstance(event, events.Skipped):
        return f"{event.job.name}  skipped: {event.reason}"
    if isinstance(event, events.Stopped):
        return f"stopping: {event.reason}"
    if isinstance(event, events.Started) and verbose:
        height, width = event.size
        return f"{event.job.name}  {width}×{height}  {event.plan}"
    return None


def summary_lines(report: Report) -> Iterator[str]:
    """Nothing for one picture that went well; else the counts and each failure by name."""
    if report.total <= 1 and not report.interrupted and not report.stopped:
        return
    yield str(report)
    for event in report.failures:
        message, _ = describe(event.error)
        yield printable(f"  failed: {message if event.job.name in message else f'{event.job.name}: {message}'}")


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def shortened(name: str, width: int = 32) -> str:
    """`name`, its middle left out where it is longer than `width` characters."""
    return name if len(name) <= width else name[: width // 2 - 1] + "…" + name[-(width // 2) :]


def show_batch(batch: Generator[Event], views: Sequence[View]) -> Report:
    """Run a batch to its end, or to Ctrl-C, showing every event in every view.

    On Ctrl-C the batch is closed, which stops it cleanly, and the report says so; a second one goes through.
    """
    from hasn_cli.batch import events

    report = Report()
    try:
        with contextlib.closing(batch):
            for event in batch:
                report.count(event)
                if isinstance(event, events.Failed) and isinstance(event.error, BrokenPipeError):
                    raise event.error  # whoever read our stdout has gone: nothing is left to do or to say
                for view in views:
                    view.show(event)
    except KeyboardInterrupt:
        report.interrupted = True
    except Exception as error:
        report.error = error
        raise
    finally:
        with contextlib.ExitStack() as ends:  # one that fails keeps no other from giving the cursor back
            for view in reversed(views):
                ends.callback(view.finish, report)
    return report
