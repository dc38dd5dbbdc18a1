"""`hasn upscale`, the main command: turn its options into settings and jobs, run the batch, and show its events."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasn_cli.cli.options import (
    HELP_SETTINGS,
    Box,
    Factor,
    GroupedCommand,
    Megapixels,
    Quality,
    TileSide,
    Whole,
    complete_formats,
    device_option,
    limit_option,
    memory_option,
    most_pixels,
    option,
    precision_option,
)
from hasn_cli.errors import ImageError, UsageError
from hasn_cli.video.containers import CODECS, Codec

if TYPE_CHECKING:
    from collections.abc import Generator

    from hasn_cli.batch import OnExists, Settings
    from hasn_cli.batch.events import Event
    from hasn_cli.batch.jobs import Job
    from hasn_cli.console import View

SIZE, OUTPUT, FILES, NETWORK, BATCH, MESSAGES = "Size", "Output", "Files", "Network", "Batch", "Messages"
FILES_ARGUMENT = click.Path(readable=False, path_type=str)  # unchecked: it lets shells complete file names


@dataclass(frozen=True)
class Given:
    """The options of `hasn upscale` as they were given, and what those have that were not."""

    weights: str
    device: str
    precision: str
    scale: Fraction | None = None
    width: int | None = None
    height: int | None = None
    stretch: bool = False
    fit: tuple[int, int] | None = None
    megapixels: float | None = None
    output: str | None = None
    format: str | None = None
    codec: Codec | None = None
    quality: int | None = None
    lossless: bool = False
    background: str | None = None
    alpha: str = "blend"
    first_frame: bool = False
    strip: bool = False
    keep_times: bool = False
    suffix: str | None = None
    overwrite: bool = False
    skip_existing: bool = False
    recursive: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    files_from: str | None = None
    null: bool = False
    max_input_megapixels: float | None = None
    max_megapixels: float | None = None
    memory: int | None = None
    tile: int | None = None
    overlap: int | None = None
    tta: bool = False
    consistent: bool = False
    compile: bool = False
    jobs: int | None = None
    resume: bool = False
    no_journal: bool = False
    cluster: str | None = None
    dry_run: bool = False
    as_json: bool = False
    quiet: bool = False
    verbose: int = 0


@click.command("upscale", cls=GroupedCommand, context_settings=HELP_SETTINGS)
@click.argument("inputs", nargs=-1, metavar="INPUT...", type=FILES_ARGUMENT)
@option("-s", "--scale", group=SIZE, type=Factor(), help="How many times larger: 2, 1.5, 300%; at most 16. Above 4, "
        "the network runs twice.  [default: 4]")  # fmt: skip
@option("--width", group=SIZE, type=Whole(1), metavar="N", help="Width in pixels, instead of a scale.")
@option("--height", group=SIZE, type=Whole(1), metavar="N", help="Height in pixels, instead of a scale.")
@option("--stretch", group=SIZE, is_flag=True, help="Let --width and --height together change the proportions.")
@option(
    "--fit",
    group=SIZE,
    type=Box(),
    metavar="WxH",
    help="As large as fits into this box, e.g. 3840x2160; at most 16 times larger.",
)
@option("--megapixels", group=SIZE, type=Megapixels(0, min_open=True), metavar="N", help="Size in megapixels.")
@option("-o", "--output", group=OUTPUT, metavar="OUT", type=FILES_ARGUMENT,
        help="A file, a folder, or - for stdout.  [default: beside INPUT]")  # fmt: skip
@option("-f", "--format", group=OUTPUT, metavar="FORMAT", shell_complete=complete_formats,
        help="png, jpg, webp, tiff, …; mp4, mov, mkv, …  [default: by the name of OUT, else like INPUT]")  # fmt: skip
@option("--codec", group=OUTPUT, type=click.Choice(CODECS),
        help="Codec of videos.  [default: h264, or what OUT can hold]")  # fmt: skip
@option("--quality", group=OUTPUT, type=Quality(), metavar="N",
        help="Quality for lossy formats, 1 to 100.  [default: 95, or lossless if the input was lossless; 80 for "
        "videos]")  # fmt: skip
@option("--lossless", group=OUTPUT, is_flag=True, help="Lossless, in formats with the choice: WebP, AVIF, JPEG 2000, "
        "JPEG XL, H.264, H.265.")  # fmt: skip
@option("--background", group=OUTPUT, metavar="COLOUR",
        help="Background colour, for formats without transparency: white, '#ff8800', …")  # fmt: skip
@option("--alpha", group=OUTPUT, type=click.Choice(["blend", "separate"]), default="blend", show_default=True,
        help="What alpha is: transparency (blend), or data, as in game textures (separate).")  # fmt: skip
@option(
    "--first-frame",
    group=OUTPUT,
    is_flag=True,
    help="Only the first frame of an animation or video, or the first page.",
)
@option("--strip", group=OUTPUT, is_flag=True, help="Write no metadata.")
@option("--keep-times", group=OUTPUT, is_flag=True, help="Give the output the modification time of the input.")
@option("--suffix", group=OUTPUT, metavar="TEXT", help="Add TEXT to each file name.  [default: _x4 beside the input]")
@option("--overwrite", group=OUTPUT, is_flag=True, help="Replace outputs that exist.")
@option("--skip-existing", group=OUTPUT, is_flag=True,
        help="Skip pictures whose output exists. By default that is an error.")  # fmt: skip
@option("-r", "--recursive", group=FILES, is_flag=True, help="Include subfolders; the folder OUT gets the same ones.")
@option("--include", group=FILES, multiple=True, metavar="GLOB", help="Take only files like '*.png' from folders.")
@option("--exclude", group=FILES, multiple=True, metavar="GLOB", help="Leave out files and folders like 'draft*'.")
@option("--follow-links", group=FILES, is_flag=True, help="Follow symbolic links that lead out of a folder.")
@option("--files-from", group=FILES, metavar="FILE", type=FILES_ARGUMENT,
        help="Read inputs from a file, one on each line; - reads stdin.")  # fmt: skip
@option("-0", "--null", group=FILES, is_flag=True, help="The inputs in that file end in NUL, as from find -print0.")
@limit_option(FILES)
@option("-w", "--weights", group=NETWORK, default="hasn", show_default=True, metavar="WEIGHTS", type=FILES_ARGUMENT,
        help="hasn (clean or photo, as each file needs), clean, photo, released, a file, or OWNER/REPO on the Hugging "
        "Face Hub.")  # fmt: skip
@device_option(several=True)
@precision_option
@memory_option
@option("-t", "--tile", group=NETWORK, type=TileSide(), default="auto", metavar="N",
        help="Side of the tiles in input pixels; 0: no tiles.  [default: auto, if memory is short]")  # fmt: skip
@option("--overlap", group=NETWORK, type=Whole(0), metavar="N",
        help="Pixels that neighbouring tiles share.  [default: 32, or less for small tiles]")  # fmt: skip
@option("-x", "--tta", group=NETWORK, is_flag=True,
        help="Average over eight flips and rotations: slightly better, 8 times slower.")  # fmt: skip
@option("--consistent", group=NETWORK, is_flag=True,
        help="Adjust the result so that reducing it by bicubic gives the input again.")  # fmt: skip
@option("--compile", group=NETWORK, is_flag=True, help="Compile the network first (torch.compile), for GPUs.")
@option("-j", "--jobs", group=BATCH, type=Whole(1), metavar="N",
        help="Pictures to work on at once.  [default: 4, or more on a GPU]")  # fmt: skip
@option("--resume", group=BATCH, is_flag=True, help="Continue a batch that was interrupted.")
@option("--no-journal", group=BATCH, is_flag=True, help="Keep no journal, which --resume needs, beside the outputs.")
@option("--cluster", group=BATCH, metavar="ADDRESS",
        help="Run on a Dask cluster: tcp://HOST:PORT, or local:N for N processes here.")  # fmt: skip
@option("--dry-run", group=BATCH, is_flag=True, help="Show what would be done, and do nothing.")
@option("--json", "as_json", group=MESSAGES, is_flag=True, help="Write events to stdout, one JSON object a line.")
@option("-q", "--quiet", group=MESSAGES, is_flag=True, help="Show only errors.")
@option("-v", "--verbose", group=MESSAGES, count=True,
        help="Show the plan for each picture, and tracebacks of errors. -vv shows more.")  # fmt: skip
@click.pass_context
def command(ctx: click.Context, /, inputs: tuple[str, ...], **options: Any) -> int:
    """Upscale pictures, videos, folders, or a pipe.

    INPUT is a file, a folder, a URL (with the cluster extra), or - for stdin.

    \b
      hasn upscale photo.jpg                    writes photo_x4.jpg beside it
      hasn upscale scans/ -r -o large/ -s 2     a folder and its subfolders
      hasn upscale clip.mp4 -s 2                a video, with its sound
      cat a.png | hasn upscale - > b.png        in a pipeline

    Exit codes: 0 all written, 1 some failed, 2 wrong usage, 130 interrupted.
    """
    from hasn_cli import console

    options["verbose"] = ctx.obj.verbose = max(options["verbose"], ctx.obj.verbose)
    given = Given(**options)
    _refuse_contradictions(inputs, given)
    settings = make_settings(given)
    jobs = make_jobs(inputs, settings, given)
    if any(job.target == "-" for job in jobs):
        _check_stdout(given.as_json)
    batch = make_batch(jobs, settings, given)
    if not given.dry_run and given.cluster is None:
        if given.as_json:  # inside the batch, so that an error becomes an event, too
            batch = _after_fetching(settings, batch)
        else:
            fetch_weights(settings)
    videos = any(job.video for job in jobs)
    resumable = (videos or (len(jobs) > 1 and not given.no_journal)) and not given.dry_run
    report = console.show_batch(batch, make_views(len(jobs), given), resumable=resumable)
    if ctx.obj.implied and all(isinstance(job.source, Path) and not job.source.exists() for job in jobs):
        hint = "without a command, hasn means hasn upscale; hasn --help lists the commands"
        click.echo(console.hint_line(hint), err=True)
    return report.exit_code


def _refuse_contradictions(inputs: tuple[str, ...], given: Given) -> None:
    if given.overwrite and given.skip_existing:
        raise UsageError("--overwrite and --skip-existing exclude each other", "give one of them")
    if "" in (*inputs, given.output, given.weights, given.files_from):
        raise UsageError("an empty name was given", "a shell variable may be unset: quote it and check it")
    if given.overlap is not None and not given.tile:
        raise UsageError("--overlap needs a tile size", "give --tile N as well")
    if given.quiet and given.verbose:
        raise UsageError("--quiet and --verbose exclude each other", "give one of them")
    if given.null and given.files_from is None:
        raise UsageError("-0 needs --files-from", "for example: find … -print0 | hasn upscale -0 --files-from -")
    if given.files_from == "-" and "-" in inputs:
        raise UsageError("stdin cannot be both the list of inputs and a picture", "read the list from a file")
    sizes = [name for name in ("width", "height", "fit", "megapixels") if getattr(given, name) is not None]
    if given.scale is not None and sizes:
        raise UsageError(f"--scale and --{sizes[0]} exclude each other", "give one of them")


def make_settings(given: Given) -> Settings:
    """Make the batch's settings from the command's options."""
    from hasn_cli.batch import Settings
    from hasn_cli.enlarge import Size
    from hasn_cli.images import EncodeOptions, format_for_name
    from hasn_cli.images.formats import format_names
    from hasn_cli.video.containers import CONTAINERS, container_for_name

    format = container = None
    if given.format is not None:
        format = format_for_name(given.format)
        container = None if format else container_for_name(given.format)
        if format is None and container is None:
            names = (*format_names(), *CONTAINERS)
            raise UsageError(f"unknown format '{given.format}'", f"use one of {', '.join(names)}")
    return Settings(
        size=Size(
            factor=given.scale or Fraction(4),
            width=given.width,
            height=given.height,
            fit=given.fit,
            megapixels=given.megapixels,
            stretch=given.stretch,
        ),
        format=format,
        container=container,
        codec=given.codec,
        encode=EncodeOptions(
            quality=given.quality or EncodeOptions.quality,
            lossless=given.lossless or (None if given.quality is None else False),
            strip=given.strip,
            background=given.background,
            first_frame=given.first_frame,
        ),
        max_pixels=most_pixels(given.max_input_megapixels, given.max_megapixels),
        weights=given.weights,
        consistent=given.consistent,
        alpha=given.alpha,
        keep_times=given.keep_times,
        device=given.device,
        precision=given.precision,
        tile=given.tile,
        overlap=given.overlap,
        memory=given.memory,
        tta=given.tta,
        compile=given.compile,
    )


def make_jobs(inputs: tuple[str, ...], settings: Settings, given: Given) -> list[Job]:
    """Find all pictures to upscale, and name their outputs."""
    from hasn_cli.batch.jobs import find_jobs, read_list
    from hasn_cli.batch.naming import size_suffix

    skips = _Skips(given)

    listed = read_list(given.files_from, null=given.null) if given.files_from else ()
    if given.files_from and not listed and not inputs:
        raise ImageError(f"{given.files_from}: the list of inputs is empty")
    jobs = find_jobs(
        inputs,
        given.output,
        listed=listed,
        recursive=given.recursive,
        include=given.include,
        exclude=given.exclude,
        suffix=given.suffix,
        default_suffix=size_suffix(settings.size),
        format=settings.format,
        container=settings.container,
        stills=settings.encode.first_frame,
        follow_links=given.follow_links,
        on_skip=skips,
    )
    skips.say()
    return jobs


class _Skips:
    """Reports what is left out: each file and folder with `-v`, else a line in all for those that may surprise."""

    def __init__(self, given: Given) -> None:
        self._each = bool(given.verbose)
        self._quiet = given.quiet
        self._counts: Counter[str] = Counter()

    def __call__(self, path: str, reason: str) -> None:
        from hasn_cli.console import printable

        self._counts[reason] += 1
        if self._each:
            click.echo(f"{printable(path)}  left out: {printable(reason)}", err=True)

    def say(self) -> None:
        """Print the line, if there is something to report."""
        from hasn_cli.batch.walk import OWN_OUTPUT, SUBFOLDER

        folders, outputs = self._counts[SUBFOLDER], self._counts[OWN_OUTPUT]
        if self._quiet:
            return
        if folders:
            includes = "-r includes it" if folders == 1 else "-r includes them"
            click.echo(f"{folders} subfolder{'s' * (folders > 1)} left out; {includes}", err=True)
        if outputs:
            made = "a picture that hasn made" if outputs == 1 else f"{outputs} pictures that hasn made"
            click.echo(f"left out {made}; name {'it' if outputs == 1 else 'one'} alone to enlarge it again", err=True)


def fetch_weights(settings: Settings) -> None:
    """Download weights that are not on this machine yet, with a progress bar, before the batch begins."""
    from hasn_cli.cli.progress import fetching
    from hasn_cli.enlarge import PASSES
    from hasn_cli.weights import resolve

    if settings.network_scale is not None:
        with fetching() as progress:
            for scale in PASSES[settings.network_scale]:
                resolve(settings.weights, scale, progress=progress)


def _after_fetching(settings: Settings, batch: Generator[Event]) -> Generator[Event]:
    fetch_weights(settings)
    yield from batch


def _check_stdout(as_json: bool) -> None:
    if as_json:
        raise UsageError("--json and -o - both write to stdout", "give a file: -o FILE")
    if sys.__stdout__ is None:  # even if sys.stdout is not, which `__main__` replaces
        raise UsageError("the picture would go to stdout, which is closed", "give a file: -o FILE")
    if sys.stdout.isatty():
        raise UsageError("the picture would go to the terminal", "redirect it with > out.png, or give a file: -o FILE")


def make_batch(jobs: list[Job], settings: Settings, given: Given) -> Generator[Event]:
    """Start the batch, or with `--dry-run` find out what it would do."""
    from hasn_cli import batch

    on_exists: OnExists = "overwrite" if given.overwrite else "skip" if given.skip_existing else "error"
    journal = not given.no_journal
    if given.dry_run:
        return batch.plan_batch(jobs, settings, on_exists=on_exists, resume=given.resume, journal=journal)
    return batch.run_batch(
        jobs,
        settings,
        on_exists=on_exists,
        workers=given.jobs,
        resume=given.resume,
        journal=journal,
        cluster=given.cluster,
    )


def make_views(jobs: int, given: Given) -> list[View]:
    """Choose how to show the batch: bars on a terminal, else lines; and JSON if requested."""
    from hasn_cli.console import JsonView, LineView, PlanView, QuietView

    verbose = given.verbose
    views: list[View] = [JsonView()] if given.as_json else []
    if given.quiet:
        views.append(QuietView())
    elif given.dry_run:
        views.append(PlanView(verbose=verbose))
    elif sys.stderr.isatty() and not (given.as_json and sys.stdout.isatty()):  # events would break up the bars
        from hasn_cli.cli.progress import BarView

        views.append(BarView(jobs, verbose=verbose))
    else:
        views.append(LineView(verbose=verbose))
    return views
