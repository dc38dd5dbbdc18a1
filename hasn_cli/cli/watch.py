"""`hasn watch`: upscale what appears in a folder, until it is interrupted."""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasn_cli.cli.options import (
    HELP_SETTINGS,
    Box,
    Factor,
    GroupedCommand,
    Number,
    Quality,
    complete_formats,
    device_option,
    limit_option,
    memory_option,
    option,
    precision_option,
)
from hasn_cli.errors import UsageError
from hasn_cli.video.containers import CODECS

if TYPE_CHECKING:
    from hasn_cli.batch.events import Event
    from hasn_cli.console import View

SIZE, OUTPUT, FILES, NETWORK, MESSAGES = "Size", "Output", "Files", "Network", "Messages"
FOLDER = click.Path(path_type=Path)


@click.command("watch", cls=GroupedCommand, context_settings=HELP_SETTINGS)
@click.argument("folder", metavar="IN", type=FOLDER)
@option("-o", "--output", group=OUTPUT, required=True, type=FOLDER, metavar="OUT",
        help="Folder for the results.")  # fmt: skip
@option("--move-done", group=OUTPUT, type=FOLDER, metavar="DIR",
        help="Move pictures to this folder when they are done. Nothing is replaced there.")  # fmt: skip
@option("-f", "--format", group=OUTPUT, metavar="FORMAT", shell_complete=complete_formats,
        help="png, jpg, webp, tiff, …; mp4, mov, mkv, …  [default: like the picture]")  # fmt: skip
@option("--codec", group=OUTPUT, type=click.Choice(CODECS), help="Codec of videos, as for hasn upscale.")
@option("--quality", group=OUTPUT, type=Quality(), metavar="N", help="Quality for lossy formats, 1 to 100.")
@option("--lossless", group=OUTPUT, is_flag=True, help="Lossless, in formats with the choice.")
@option("--background", group=OUTPUT, metavar="COLOUR", help="Background colour, for formats without transparency.")
@option("--strip", group=OUTPUT, is_flag=True, help="Write no metadata.")
@option("--suffix", group=OUTPUT, metavar="TEXT", help="Add TEXT to each file name.")
@option("-s", "--scale", group=SIZE, type=Factor(), help="How many times larger.  [default: 4]")
@option("--fit", group=SIZE, type=Box(), metavar="WxH", help="As large as fits into this box, e.g. 3840x2160.")
@option("-r", "--recursive", group=FILES, is_flag=True, help="Include subfolders; the folder OUT gets the same ones.")
@option("--include", group=FILES, multiple=True, metavar="GLOB", help="Take only files like '*.png'.")
@option("--exclude", group=FILES, multiple=True, metavar="GLOB", help="Leave out files and folders like 'draft*'.")
@option("--settle", group=FILES, type=Number(0), default=2, show_default=True, metavar="SECONDS",
        help="Take a file when it has not changed for so long.")  # fmt: skip
@limit_option(FILES)
@option("-w", "--weights", group=NETWORK, default="hasn", show_default=True, metavar="WEIGHTS",
        type=click.Path(readable=False, path_type=str), help="As for hasn upscale.")  # fmt: skip
@device_option(several=True)
@precision_option
@memory_option
@option("--json", "as_json", group=MESSAGES, is_flag=True, help="Write an event to stdout for each picture, one JSON "
        "object a line.")  # fmt: skip
@option("-q", "--quiet", group=MESSAGES, is_flag=True, help="Show only errors.")
@option(
    "-v", "--verbose", group=MESSAGES, is_flag=True, help="Show also what was done already, and tracebacks of errors."
)
@click.pass_context
def command(ctx: click.Context, /, **given: Any) -> int:
    """Upscale the pictures and videos that appear in the folder IN, and those that are there.

    \b
      hasn watch scans/ -o large/ -s 2
      hasn watch inbox/ -o large/ --move-done finished/

    A picture is taken when its file is complete. Ctrl-C ends it; started again, it continues where it ended.
    """
    from hasn_cli import console
    from hasn_cli.cli.upscale import Given, fetch_weights, make_settings
    from hasn_cli.watch import Watch

    given["verbose"] = max(int(given["verbose"]), ctx.obj.verbose)
    ctx.obj.verbose = given["verbose"]
    if given["quiet"] and given["verbose"]:
        raise UsageError("--quiet and --verbose exclude each other", "give one of them")
    if given["scale"] is not None and given["fit"] is not None:
        raise UsageError("--scale and --fit exclude each other", "give one of them")
    of_settings = {field.name for field in fields(Given)} & given.keys()
    settings = make_settings(Given(**{name: given[name] for name in of_settings}))
    names = ("folder", "output", "recursive", "include", "exclude", "move_done", "settle")
    watch = Watch(
        settings=settings, suffix=given["suffix"] or "", on_skip=_skips(given), **{n: given[n] for n in names}
    )
    fetch_weights(settings)
    if not given["quiet"]:
        click.echo(console.printable(f"watching {watch.folder}; Ctrl-C ends it"), err=True)
    events = _one_each(watch.run(), everything=bool(given["verbose"]))
    return console.show_batch(events, _views(given), resumable=False).exit_code


def _views(given: dict[str, Any]) -> list[View]:
    from hasn_cli.console import JsonView, LineView, QuietView

    lines = QuietView(verbose=given["verbose"]) if given["quiet"] else LineView(verbose=given["verbose"])
    return [JsonView(), lines] if given["as_json"] else [lines]


def _one_each(events: Generator[Event], *, everything: bool) -> Generator[Event]:
    """One event for each picture: how it ended. What was done already is left out, unless `everything` is set."""
    from hasn_cli.batch.events import Progress, Skipped, Started

    try:
        for event in events:
            if not isinstance(event, Progress | Started) and (everything or not isinstance(event, Skipped)):
                yield event
            sys.stdout.flush()
    finally:
        events.close()


def _skips(given: dict[str, Any]) -> Any:
    from hasn_cli.batch.walk import SUBFOLDER
    from hasn_cli.console import say_skipped

    def skip(path: str, reason: str) -> None:
        if not given["quiet"] and (given["verbose"] or reason != SUBFOLDER):
            say_skipped(path, reason)

    return skip
