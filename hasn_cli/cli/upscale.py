"""`hasn upscale`: the program's main job, from the words of the command line to a batch and its views."""

from __future__ import annotations

import sys
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import click

from hasn_cli.cli.options import (
    HELP_SETTINGS,
    Box,
    Factor,
    GroupedCommand,
    Megapixels,
    TileSide,
    limit_option,
    memory_option,
    most_pixels,
    option,
    precision_option,
)
from hasn_cli.errors import ImageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator

    from hasn_cli.batch import OnExists, Settings
    from hasn_cli.batch.events import Event
    from hasn_cli.batch.inputs import Job
    from hasn_cli.console import View

SIZE, OUTPUT, FILES, NETWORK, BATCH, TELL = "Size", "Output", "Files", "Network", "Batch", "Messages"


@click.command("upscale", cls=GroupedCommand, context_settings=HELP_SETTINGS)
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@option("-s", "--scale", group=SIZE, type=Factor(), help="Times larger: 2, 3, 4, or between, as 1.5.  [default: 4]")
@option("--width", group=SIZE, type=click.IntRange(1), metavar="N", help="Width in pixels, instead of a scale.")
@option("--height", group=SIZE, type=click.IntRange(1), metavar="N", help="Height in pixels, instead of a scale.")
@option("--fit", group=SIZE, type=Box(), help="Largest size that fits into this box.")
@option("--megapixels", group=SIZE, type=Megapixels(0, min_open=True), metavar="N", help="Megapixels in all.")
@option(
    "-o", "--output", group=OUTPUT, metavar="OUT", help="A file, a folder, or - for stdout.  [default: beside INPUT]"
)
@option("-f", "--format", group=OUTPUT, metavar="FMT", help="png, jpg, webp, tiff, …  [default: OUT's, else INPUT's]")
@option("--quality", group=OUTPUT, type=click.IntRange(1, 100), metavar="N",
        help="Of lossy formats; 95, or no loss where INPUT had none.")  # fmt: skip
@option(
    "--lossless",
    group=OUTPUT,
    is_flag=True,
    help="No loss, in formats with the choice: WebP, AVIF, JPEG 2000, JPEG XL.",
)
@option("--background", group=OUTPUT, metavar="COLOUR", help="Lay under transparency that the format cannot hold.")
@option("--alpha", group=OUTPUT, type=click.Choice(["blend", "separate"]), default="blend", show_default=True,
        help="blend: transparency; separate: data, as is the colour under it.")  # fmt: skip
@option("--first-frame", group=OUTPUT, is_flag=True, help="Of an animation or pages, the first only.")
@option("--strip", group=OUTPUT, is_flag=True, help="Write no metadata.")
@option("--keep-times", group=OUTPUT, is_flag=True, help="Keep the input's modification time.")
@option("--suffix", group=OUTPUT, metavar="TEXT", help="Put after each name.  [default: _x4 beside the input]")
@option("--overwrite", group=OUTPUT, is_flag=True, help="Replace outputs that exist.")
@option("--skip-existing", group=OUTPUT, is_flag=True, help="Leave outputs that exist.  [default: an error]")
@option("-r", "--recursive", group=FILES, is_flag=True, help="Folders below folders too; OUT keeps the tree.")
@option("--include", group=FILES, multiple=True, metavar="GLOB", help="Only these in folders.")
@option("--exclude", group=FILES, multiple=True, metavar="GLOB", help="Not these in folders.")
@option("--follow-links", group=FILES, is_flag=True, help="Follow symbolic links out of the tree.")
@option("--files-from", group=FILES, metavar="FILE", help="Read inputs from a list, one a line; - for stdin.")
@option("-0", "--null", group=FILES, is_flag=True, help="The list's entries end in NUL, as from find -print0.")
@limit_option(FILES)
@option(
    "-w", "--weights", group=NETWORK, default="hasn", show_default=True, help="hasn, released, a file, or OWNER/REPO."
)
@option("-d", "--device", group=NETWORK, default="auto", show_default=True, help="cpu, cuda, cuda:0,cuda:1, mps.")
@precision_option
@memory_option
@option(
    "-t", "--tile", group=NETWORK, type=TileSide(), default="auto", help="Side in LR pixels; 0: never.  [default: auto]"
)
@option("--overlap", group=NETWORK, type=click.IntRange(0), metavar="N", help="LR pixels that tiles share.")
@option("-x", "--tta", group=NETWORK, is_flag=True, help="Mean over the eight flips and turns.")
@option(
    "--consistent",
    group=NETWORK,
    is_flag=True,
    help="Project the result so that, shrunk by bicubic, it gives the input.",
)
@option("--compile", group=NETWORK, is_flag=True, help="torch.compile the network.")
@option("-j", "--jobs", group=BATCH, type=click.IntRange(1), metavar="N", help="Pictures under way at once.")
@option("--resume", group=BATCH, is_flag=True, help="Go on where a run was cut off.")
@option("--no-journal", group=BATCH, is_flag=True, help="Keep no journal beside the outputs.")
@option("--cluster", group=BATCH, metavar="ADDR", help="tcp://HOST:PORT of a Dask scheduler, or local:N.")
@option("--dry-run", group=BATCH, is_flag=True, help="Tell what would be done, and do nothing.")
@option("--json", "as_json", group=TELL, is_flag=True, help="One JSON object a line on stdout for each event.")
@option("-q", "--quiet", group=TELL, is_flag=True, help="Errors only.")
@option("-v", "--verbose", group=TELL, is_flag=True, help="The plan for each picture; tracebacks.")
@click.pass_context
def command(ctx: click.Context, /, inputs: tuple[str, ...], **given: Any) -> int:
    """Upscale pictures, folders, or a pipe.

    INPUT is a file, a folder, a URL (with the cluster extra), or - for stdin.

    \b
      hasn upscale photo.jpg                        photo_x4.jpg beside it
      hasn upscale scans/ -r -o large/ -s 2         a whole tree
      cat a.png | hasn upscale - -o - > b.png       in a pipeline

    Exit codes: 0 all written, 1 some failed, 2 wrong usage, 130 interrupted.
    """
    from hasn_cli import console

    ctx.obj.verbose |= given["verbose"]
    _refuse_contradictions(inputs, given)
    settings = make_settings(given)
    jobs = make_jobs(inputs, settings, given)
    if any(job.target == "-" for job in jobs):
        _check_stdout(given["as_json"])
    batch = make_batch(jobs, settings, given)
    if not given["dry_run"] and given["cluster"] is None:
        if given["as_json"]:  # in which what goes wrong is told, too
            batch = _after_fetching(settings, batch)
        else:
            fetch_weights(settings)
    report = console.show_batch(batch, make_views(len(jobs), given))
    return report.exit_code


def _refuse_contradictions(inputs: tuple[str, ...], given: dict[str, Any]) -> None:
    if given["overwrite"] and given["skip_existing"]:
        raise UsageError("--overwrite and --skip-existing exclude each other")
    if "" in (*inputs, given["output"], given["weights"], given["files_from"]):
        raise UsageError("an empty name was given", "a shell variable may be unset: quote it and check it")
    if given["overlap"] is not None and not given["tile"]:
        raise UsageError("--overlap is about tiles by hand, and there are none", "give --tile N as well")
    if given["quiet"] and given["verbose"]:
        raise UsageError("--quiet and --verbose exclude each other")
    if given["null"] and given["files_from"] is None:
        raise UsageError("-0 is about a list, and there is none", "find … -print0 | hasn upscale -0 --files-from -")
    if given["files_from"] == "-" and "-" in inputs:
        raise UsageError("stdin cannot be both the list and a picture")
    sizes = [name for name in ("width", "height", "fit", "megapixels") if given[name] is not None]
    if given["scale"] is not None and sizes:
        raise UsageError(f"--scale and --{sizes[0]} exclude each other")


def make_settings(given: dict[str, Any]) -> Settings:
    """The batch's settings from the command's options."""
    from hasn_cli.batch import Settings
    from hasn_cli.enlarge import Size
    from hasn_cli.images import EncodeOptions, format_for_name

    format = None
    if given["format"] is not None:
        format = format_for_name(given["format"])
        if format is None:
            raise UsageError(f"unknown format '{given['format']}'", "hasn doctor lists the formats")
    shared = (
        "weights",
        "consistent",
        "alpha",
        "keep_times",
        "device",
        "precision",
        "tile",
        "overlap",
        "memory",
        "tta",
        "compile",
    )
    return Settings(
        size=Size(
            factor=given["scale"] or Fraction(4),
            width=given["width"],
            height=given["height"],
            fit=given["fit"],
            megapixels=given["megapixels"],
        ),
        format=format,
        encode=EncodeOptions(
            quality=given["quality"] or EncodeOptions.quality,
            lossless=given["lossless"] or (None if given["quality"] is None else False),
            strip=given["strip"],
            background=given["background"],
            first_frame=given["first_frame"],
        ),
        max_pixels=most_pixels(given["max_megapixels"]),
        **{name: given[name] for name in shared},
    )


def make_jobs(inputs: tuple[str, ...], settings: Settings, given: dict[str, Any]) -> list[Job]:
    """Every picture that is meant, with its output's name."""
    from hasn_cli.batch.inputs import find_jobs, read_list, size_suffix
    from hasn_cli.console import printable

    def tell_skipped(path: str, reason: str) -> None:
        if given["verbose"]:
            click.echo(f"{printable(path)}  left out: {printable(reason)}", err=True)

    listed = read_list(given["files_from"], null=given["null"]) if given["files_from"] else ()
    if given["files_from"] and not listed and not inputs:
        raise ImageError(f"{given['files_from']}: the list of inputs is empty")
    return find_jobs(
        inputs,
        given["output"],
        listed=listed,
        recursive=given["recursive"],
        include=given["include"],
        exclude=given["exclude"],
        suffix=given["suffix"],
        default_suffix=size_suffix(settings.size),
        format=settings.format,
        follow_links=given["follow_links"],
        on_skip=tell_skipped,
    )


def fetch_weights(settings: Settings) -> None:
    """Fetch what has to be fetched, under a bar of its own, before the batch begins."""
    from hasn_cli.console import fetching
    from hasn_cli.weights import resolve

    if settings.network_scale is not None:
        with fetching() as progress:
            resolve(settings.weights, settings.network_scale, progress=progress)


def _after_fetching(settings: Settings, batch: Generator[Event]) -> Generator[Event]:
    fetch_weights(settings)
    yield from batch


def _check_stdout(as_json: bool) -> None:
    if as_json:
        raise UsageError("--json and -o - both want stdout", "give a file: -o OUT")
    if sys.__stdout__ is None:  # though something that leads nowhere may stand in for it
        raise UsageError("the picture would go to stdout, which is closed", "give a file: -o FILE")
    if sys.stdout.isatty():
        raise UsageError("a picture would be written to the terminal", "redirect it: > out.png, or give -o FILE")


def make_batch(jobs: list[Job], settings: Settings, given: dict[str, Any]) -> Generator[Event]:
    """The batch, or what it would do."""
    from hasn_cli import batch

    on_exists: OnExists = "overwrite" if given["overwrite"] else "skip" if given["skip_existing"] else "error"
    journal = not given["no_journal"]
    if given["dry_run"]:
        return batch.plan_batch(jobs, settings, on_exists=on_exists, resume=given["resume"], journal=journal)
    return batch.run_batch(
        jobs,
        settings,
        on_exists=on_exists,
        workers=given["jobs"],
        resume=given["resume"],
        journal=journal,
        cluster=given["cluster"],
    )


def make_views(jobs: int, given: dict[str, Any]) -> list[View]:
    """What shows the batch: bars where there is a terminal to draw on, else lines; JSON beside them."""
    from hasn_cli.console import BarView, JsonView, LineView, PlanView, QuietView

    verbose = given["verbose"]
    views: list[View] = [JsonView()] if given["as_json"] else []
    if given["quiet"]:
        views.append(QuietView())
    elif given["dry_run"]:
        views.append(PlanView(verbose=verbose))
    elif sys.stderr.isatty() and not (given["as_json"] and sys.stdout.isatty()):  # events would tear bars apart
        views.append(BarView(jobs, verbose=verbose))
    else:
        views.append(LineView(verbose=verbose))
    return views
