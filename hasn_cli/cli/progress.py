"""Progress bars on a terminal: one for each picture being processed, one for all pictures, one for a download.

A line adapts to the terminal's width: name and percentage always, then the time left, the bar, and the amounts.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.control import Control
from rich.live_render import LiveRender
from rich.progress import Progress as Bars
from rich.progress import ProgressColumn, Task, TaskID
from rich.segment import ControlType
from rich.text import Text

from hasn_cli.console import LineView, Report, printable, shortened

if TYPE_CHECKING:
    from hasn_cli.batch.events import Event, Progress, Started
    from hasn_cli.batch.jobs import Job
    from hasn_cli.weights.hub import Progress as Fetching

WIDEST, WIDE, MEDIUM = 110, 80, 56  # the width from which on amounts and bars are shown, beside a name of 16 characters
FORGET = 30.0  # seconds after which an observed speed counts only a third
FIRST = 1.0  # seconds to observe before the time left is shown


class TimeLeft:
    """Estimates the time left from the speed of the last half minute or so.

    The clock starts with the first report: what came before, such as loading the network, says nothing about the rest.
    """

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None  # (seconds, amount done) of the last report
        self._seconds = 0.0
        self._amount = 0.0

    def update(self, done: float, now: float) -> None:
        """Note that `done` of the work was done at `now`, in seconds on a monotonic clock."""
        if self._last is not None:
            elapsed = now - self._last[0]
            kept = math.exp(-elapsed / FORGET)
            self._seconds = self._seconds * kept + elapsed
            self._amount = self._amount * kept + done - self._last[1]
        self._last = now, done

    @property
    def speed(self) -> float | None:
        """The amount per second; None until it can be estimated."""
        return self._amount / self._seconds if self._seconds >= FIRST and self._amount > 0 else None

    def seconds(self, total: float, now: float) -> float | None:
        """The seconds until `total` is done; None until they can be estimated."""
        if self.speed is None or self._last is None:
            return None
        return max(0.0, (total - self._last[1]) / self.speed - (now - self._last[0]))


def time_left(seconds: float) -> str:
    """`8 s left`, `35 s left`, `3 min left`, `2 h 5 min left`: rounded, since it is an estimate."""
    if seconds <= 20:
        return f"{max(1, math.ceil(seconds))} s left"
    if seconds <= 55:
        return f"{5 * math.ceil(seconds / 5)} s left"
    minutes = math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min left"
    hours, minutes = divmod(5 * math.ceil(minutes / 5), 60)
    return f"{hours} h {minutes} min left" if minutes else f"{hours} h left"


class BarView(LineView):
    """Shows a bar for each picture being processed, one for all if there are several, and a line when one ends."""

    def __init__(self, jobs: int, *, verbose: int = 0) -> None:
        super().__init__(verbose=verbose)
        self.bars = make_bars()
        self.overall: TaskID | None = add_bar(self.bars, f"{jobs} pictures", jobs) if jobs > 1 else None
        self.megapixels: dict[int, float] = {}  # job index → input megapixels of pictures opened and not finished
        self.videos: dict[int, Started] = {}  # job index → a video that was opened and is not finished
        self.under_way: dict[int, tuple[TaskID, float]] = {}  # job index → its bar and the fraction done
        self.finished = 0
        self.bars.start()

    def show(self, event: Event) -> None:
        from hasn_cli.batch import events

        if isinstance(event, events.Started):
            self.megapixels[event.job.index] = event.frames * event.size[0] * event.size[1] / 1e6
            if event.job.video:
                self.videos[event.job.index] = event
        elif isinstance(event, events.Progress):
            self._move(event)
        elif isinstance(event, events.Done | events.Skipped | events.Failed):
            self._end(event.job)
        super().show(event)

    def _move(self, event: Progress) -> None:
        """Show a picture's progress. Its bar appears with the first call, so that waiting pictures have no bar."""
        job = event.job
        video = self.videos.get(job.index)
        total, unit = (video.frames or None, "frames") if video else (self.megapixels.get(job.index, 0.0), "MP")
        if job.index in self.under_way:
            task, _ = self.under_way[job.index]
        else:
            task = add_bar(self.bars, shortened(printable(job.name), 32), total, unit)
        self.under_way[job.index] = task, event.fraction
        if video is None:
            move_bar(self.bars, task, event.fraction * (total or 0.0))
        else:
            move_bar(self.bars, task, event.frames or 0, clip_time(event.seconds or 0.0, video.length))
        self._move_overall()

    def _end(self, job: Job) -> None:
        self.megapixels.pop(job.index, None)
        self.videos.pop(job.index, None)
        task, _ = self.under_way.pop(job.index, (None, 0.0))
        if task is not None:
            self.bars.remove_task(task)
        self.finished += 1
        self._move_overall()

    def _move_overall(self) -> None:
        if self.overall is not None:
            begun = sum(fraction for _, fraction in self.under_way.values())
            move_bar(self.bars, self.overall, self.finished + begun)

    def write(self, line: str) -> None:
        """Print a line, above the bars if they are shown."""
        if self.bars.live.is_started:
            self.bars.console.print(Text.from_ansi(line), soft_wrap=True)
        else:
            super().write(line)

    def finish(self, report: Report) -> None:
        self.bars.stop()
        super().finish(report)


class _Name(ProgressColumn):
    """The name of a bar, shortened to the width that is left."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        width = self._console.width
        room = width - (WIDE - 16 if width >= WIDE else MEDIUM - 16 if width >= MEDIUM else 24)
        return Text(shortened(task.description, max(8, min(32, room))), no_wrap=True)


class _Rest(ProgressColumn):
    """Bar, percentage, amounts and time left, as far as they fit."""

    max_refresh = 0.1

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        width, total, unit = self._console.width, task.total, task.fields["unit"]
        if total is None:
            done = f"{task.completed:.0f}" if unit == "frames" else f"{task.completed:.1f}"
            return Text("  ".join(filter(None, (f"{done} {unit}", task.fields["note"]))))
        fraction = min(1.0, task.completed / total) if total else 0.0
        parts = [Text(f"{math.floor(100 * fraction):3d} %")]
        if width >= MEDIUM:
            parts.insert(0, self._bar(fraction, 24 if width >= WIDE else 12))
        clock: TimeLeft = task.fields["clock"]
        if width >= WIDE:
            parts.append(Text(_amount(task.completed, total, unit)))
        if width >= WIDEST and task.fields["note"]:
            parts.append(Text(task.fields["note"]))
        if unit == "frames" and clock.speed is not None and width >= WIDE:
            parts.append(Text(f"{clock.speed:.{2 if clock.speed < 10 else 0}f} fps"))
        left = clock.seconds(total, time.monotonic())
        if left is not None and fraction < 1:
            parts.append(Text(time_left(left)))
        return Text("  ", no_wrap=True, overflow="crop").join(parts)

    def _bar(self, fraction: float, width: int) -> Text:
        done, rest = ("#", "-") if self._console.options.ascii_only else ("━", "─")
        length = round(fraction * width)
        return Text.assemble((done * length, "bar.complete"), (rest * (width - length), "bar.back"))


def _amount(done: float, total: float, unit: str) -> str:
    if unit in ("", "frames"):
        return f"{int(done)}/{total:.0f} {unit}".rstrip()
    digits = 2 if total < 10 else 1 if total < 100 else 0
    return f"{done:.{digits}f}/{total:.{digits}f} {unit}"


class _Drawing(LiveRender):
    """Clears rich's lines correctly after the terminal has been made narrower.

    Most terminals then wrap the old lines. rich does not count the additional lines, and would leave some of them.
    """

    def __init__(self, console: Console) -> None:
        super().__init__("")
        self._console = console

    def position_cursor(self) -> Control:
        if self._shape is None or "XTERM_VERSION" in os.environ:  # xterm cuts lines off instead of wrapping them
            return super().position_cursor()
        width, height = self._shape
        rows = height * max(1, math.ceil(width / self._console.width))
        clear = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *clear * (rows - 1))


def make_bars() -> Bars:
    """Make rich's progress bars with our columns on stderr, for `add_bar` and `move_bar`. They vanish at the end."""
    console = Console(stderr=True)
    bars = Bars(
        _Name(console),
        _Rest(console),
        console=console,
        transient=True,
        redirect_stdout=False,  # commands write data to stdout
    )
    bars.live._live_render = _Drawing(console)
    return bars


def add_bar(bars: Bars, name: str, total: float | None, unit: str = "") -> TaskID:
    """Add a bar for an amount of `total` in a unit, or for a number of things if there is no unit."""
    return bars.add_task(name, total=total, unit=unit, clock=TimeLeft(), note="")


def move_bar(bars: Bars, bar: TaskID, done: float, note: str = "") -> None:
    """Show that the amount `done` is finished. A wide terminal also shows the note."""
    task = next(task for task in bars.tasks if task.id == bar)
    task.fields["clock"].update(done, time.monotonic())
    bars.update(bar, completed=done, note=note)


def clip_time(seconds: float, length: float | None) -> str:
    """How much of a video is done, in its own time: `0:12 of 1:30`."""
    done, *whole = (f"{int(one) // 60}:{int(one) % 60:02d}" for one in (seconds, length) if one is not None)
    return f"{done} of {whole[0]}" if whole else done


@contextlib.contextmanager
def fetching() -> Iterator[Fetching]:
    """Show a progress bar for downloads of weights, if stderr is a terminal."""
    bars = make_bars()
    bars.disable = not bars.console.is_terminal
    names: dict[str, TaskID] = {}
    with bars:

        def progress(label: str, done: int, total: int | None) -> None:
            if label not in names:
                names[label] = add_bar(bars, label, None, "MB")
            bars.update(names[label], total=None if total is None else total / 1e6)
            move_bar(bars, names[label], done / 1e6)

        yield progress
