"""The time left is right from the first second, is shown in words, and fits into any terminal."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console
from rich.text import Text

from hasn_cli.cli.progress import TimeLeft, _Drawing, _Rest, add_bar, make_bars, move_bar, time_left
from hasn_cli.console import duration


def test_the_clock_starts_with_the_first_report():
    clock = TimeLeft()
    clock.update(0.01, 100.0)  # after 100 seconds of loading
    assert clock.seconds(1.0, 100.0) is None
    for second in range(1, 11):
        clock.update(0.01 + second * 0.01, 100.0 + second)
    assert clock.seconds(1.0, 110.0) == pytest.approx(89, rel=0.01)
    assert clock.seconds(1.0, 112.0) == pytest.approx(87, rel=0.01)  # and goes down between reports


def test_one_slow_strip_changes_the_estimate_little_but_a_new_speed_is_adopted():
    clock = TimeLeft()
    for second in range(60):
        clock.update(float(second), float(second))
    clock.update(60.0, 63.0)  # 4 seconds instead of 1
    assert clock.seconds(160.0, 63.0) == pytest.approx(100, rel=0.15)
    for second in range(120):
        clock.update(60.0 + second / 2, 63.0 + second)
    assert clock.speed == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s left"),
        (7.1, "8 s left"),
        (31, "35 s left"),
        (170, "3 min left"),
        (3599, "1 h left"),
        (7400, "2 h 5 min left"),
    ],
)
def test_the_time_left_is_shown_in_words(seconds, words):
    assert time_left(seconds) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.42, "0.42 s"), (12.34, "12.3 s"), (59.97, "1:00"), (199, "3:19"), (7510, "2:05:10")]
)
def test_a_duration_is_short(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize("width", [36, 60, 80, 160])
def test_a_bar_fits_into_a_line_and_always_has_its_percentage(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    bars = make_bars()
    console = bars.console
    bar = add_bar(bars, "a picture with quite a long name.jpeg", 12.0, "MP")
    move_bar(bars, bar, 3.0)
    bars.tasks[0].fields["clock"].update(3.5, 1e9)
    drawn = Console(file=io.StringIO(), width=width, force_terminal=False)
    drawn.print(bars.get_renderable())
    lines = drawn.file.getvalue().rstrip("\n").splitlines()
    assert len(lines) == 1 and len(lines[0].rstrip()) <= width
    assert "25 %" in lines[0] and console.width == width
    assert ("MP" in lines[0]) == (width >= 80)


def test_a_bar_without_a_speed_shows_no_time():
    bars = make_bars()
    bar = add_bar(bars, "a", 2.0, "MP")
    move_bar(bars, bar, 1.0)
    assert "left" not in _Rest(bars.console).render(bars.tasks[0]).plain


@pytest.mark.parametrize(("xterm", "cleared"), [(False, 6), (True, 2)])
def test_lines_that_a_narrower_terminal_has_broken_are_cleared(xterm, cleared, monkeypatch):
    if xterm:
        monkeypatch.setenv("XTERM_VERSION", "XTerm(379)")
    else:
        monkeypatch.delenv("XTERM_VERSION", raising=False)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    drawing = _Drawing(console)
    drawing.set_renderable(Text("x" * 100 + "\n" + "y" * 90))
    console.print(drawing)
    console.width = 36  # each line now takes three
    assert str(drawing.position_cursor()).count("\x1b[2K") == cleared
    assert os.environ.get("XTERM_VERSION") is None or xterm
