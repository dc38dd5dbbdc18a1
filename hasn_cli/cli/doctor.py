"""`hasn doctor`: show what hasn finds on this machine, as tables for people or as JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from hasn_cli.cli.options import HELP_SETTINGS, GroupedOption, Number
from hasn_cli.errors import install_command, install_packages

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hasn_cli.doctor import Findings, FormatState


@click.command("doctor", context_settings=HELP_SETTINGS)
@click.option(
    "--seconds",
    cls=GroupedOption,
    type=Number(0, 600),
    default=5.0,
    metavar="N",
    help="Length of the speed test in seconds, up to 600; 0: no test.  [default: 5]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(seconds: float, as_json: bool) -> int:
    """Check this machine: devices, memory, formats, optional packages, and speed.

    Exit codes: 0 hasn works here, 1 something is broken.
    """
    from hasn_cli.doctor import examine

    with _status() as tell:
        report = examine(seconds=seconds, progress=tell)
    if as_json:
        click.echo(json.dumps(report.to_dict(), ensure_ascii=False, indent=2))
    else:
        _show(report)
    return int(any(concern.fatal for concern in report.concerns))


@contextmanager
def _status() -> Iterator[Callable[[str], None] | None]:
    """Show a spinner that names what is being checked, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status("checking") as status:
        yield lambda what: status.update(f"checking {what}")


def _show(report: Findings) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for title, rows in (
        ("Program", _program(report)),
        ("Devices", _devices(report)),
        ("Pictures", _pictures(report)),
        ("Memory and speed", _memory_and_speed(report)),
    ):
        _print_section(console, title, rows)
    console.print()
    for concern in report.concerns:
        colour = "red" if concern.fatal else "yellow"
        console.print(f"[{colour}]![/] {escape(concern.what)}\n  [cyan]hint:[/] {escape(concern.hint)}")
    if not report.concerns:
        console.print("[green]✓[/] everything works")


def _print_section(console: Console, title: str, rows: Iterator[tuple[str, str]]) -> None:
    from rich.table import Table

    table: Table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", min_width=14)
    table.add_column(overflow="fold")
    for label, text in rows:
        table.add_row(label, text)
    console.print(f"\n[bold]{title}[/]")
    console.print(table)


def _program(report: Findings) -> Iterator[tuple[str, str]]:
    from rich.markup import escape

    yield "hasn", report.version
    yield "Python", f"{report.python}  [dim]{escape(report.executable)}[/]"
    yield "system", report.system
    yield "PyTorch", f"{report.packages.get('torch', '?')} ({report.torch_build})"
    others = [f"{name} {version or '[red]missing[/]'}" for name, version in report.packages.items() if name != "torch"]
    yield "packages", ", ".join(others)
    for name, present in report.extras.items():
        state = "[green]installed[/]" if present else f"[dim]{escape(install_command(name))}[/]"
        yield f"extra {name}", state
    for scale, path in report.weights.items():
        yield f"weights x{scale}", escape(path) if path else "[red]missing[/]"
    yield "cache", escape(report.cache)


def _devices(report: Findings) -> Iterator[tuple[str, str]]:
    for device in report.devices:
        memory = f"{gibibytes(device.free)} of {gibibytes(device.memory)} free"
        chosen = "  [green]← auto[/]" if device.chosen else ""
        yield device.name, f"{device.title}, {memory}, {device.precision}{chosen}"
    compiled = report.machine_code
    yield "network", f"compiled for {compiled}" if compiled else "PyTorch's operators, which are slower on a CPU"
    yield "threads", f"{report.threads} on {report.cores} cores"


def _pictures(report: Findings) -> Iterator[tuple[str, str]]:
    both = [state.title for state in report.formats if state.read and state.write]
    yield "read and write", "; ".join(both)
    for state in report.formats:
        if not state.read_only and not (state.read and state.write):
            yield state.title, _how_to_write(state)
    from rich.markup import escape

    yield "read only", "; ".join(state.title for state in report.formats if state.read_only and state.read)
    for state in report.formats:
        if state.read_only and not state.read:
            how = f"to read it: {escape(install_packages(state.package))}" if state.package else "[red]does not work[/]"
            yield state.title, how


def _how_to_write(state: FormatState) -> str:
    from rich.markup import escape

    if not state.read or state.extra is None:
        return "[red]does not work[/]"
    return f"read only; to write it: {escape(install_command(state.extra))}"


def _memory_and_speed(report: Findings) -> Iterator[tuple[str, str]]:
    yield "memory", f"{gibibytes(report.free)} of {gibibytes(report.memory)} free"
    for reach in report.reach:
        height, width = reach.size
        budget = f" in {gibibytes(reach.budget)}" if reach.budget else ""
        exact = f"exact up to {width} × {height} ({width * height / 1e6:.1f} MP){budget}; larger pictures in tiles"
        yield f"x{reach.scale}", exact
    if report.speed:
        speed = report.speed
        rate = f"{speed.seconds_per_megapixel:.2f} s for each megapixel of input"
        yield (
            "speed",
            f"{rate} ({speed.output_megapixels_per_second:.2f} megapixels of output a second at x{speed.scale})",
        )


def gibibytes(amount: int) -> str:
    """`3.2 GiB`."""
    return f"{amount / 2**30:.1f} GiB"
