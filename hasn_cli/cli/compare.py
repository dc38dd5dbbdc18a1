"""`hasn compare`: one picture enlarged two ways, set side by side as a page, a sheet, or in the terminal."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasn_cli.cli.options import (
    HELP_SETTINGS,
    Factor,
    GroupedCommand,
    limit_option,
    memory_option,
    most_pixels,
    option,
    precision_option,
)
from hasn_cli.console import printable
from hasn_cli.errors import ImageError, OutputError, UsageError

if TYPE_CHECKING:
    from hasn_cli.compare import Comparison, Method
    from hasn_cli.enlarge import Size
    from hasn_cli.images import Picture

WHAT, OUTPUT, NETWORK, TELL = "What to compare", "Output", "Network", "Messages"
PAGE_SUFFIXES = (".html", ".htm")


@click.command("compare", cls=GroupedCommand, context_settings=HELP_SETTINGS)
@click.argument("picture", metavar="PICTURE", type=click.Path(path_type=Path))
@option("-s", "--scale", group=WHAT, type=Factor(), default="4", show_default=True, help="Times larger, up to 4.")
@option(
    "-w",
    "--weights",
    group=WHAT,
    multiple=True,
    default=("hasn",),
    help="Bicubic against these; given twice, one against the other.  [default: hasn]",
)
@option(
    "--reference",
    group=WHAT,
    type=click.Path(path_type=Path),
    metavar="HR",
    help="The right answer: adds PSNR, SSIM and error maps.",
)
@limit_option(WHAT)
@option(
    "-o",
    "--output",
    group=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="A page (.html) or a sheet (.png, .jpg, …).  [default: PICTURE_compare.html]",
)
@option("--whole", group=OUTPUT, is_flag=True, help="Of a large result too, all of it, and not the most telling part.")
@option("--terminal", group=OUTPUT, is_flag=True, help="Show it here; where the terminal can't, do nothing.")
@option("--open", "open_it", group=OUTPUT, is_flag=True, help="Open the page or sheet when it is made.")
@option("--overwrite", group=OUTPUT, is_flag=True, help="Replace OUT if it exists.")
@option("-d", "--device", group=NETWORK, default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@precision_option
@memory_option
@option("-q", "--quiet", group=TELL, is_flag=True, help="Errors only.")
@option("-v", "--verbose", group=TELL, is_flag=True, help="Tracebacks.")
@click.pass_context
def command(ctx: click.Context, /, picture: Path, **given: Any) -> int:
    """See what the network makes of a picture, beside bicubic interpolation or beside other weights.

    PICTURE is a file, or - for stdin.

    \b
      hasn compare photo.jpg                      photo_compare.html, with a slider
      hasn compare photo.jpg -w hasn -w new.pth   two weights
      hasn compare small.png --reference big.png  with PSNR, SSIM and error maps
      hasn compare photo.jpg -o sheet.png         one labelled picture
      hasn compare photo.jpg --terminal           here and now
    """
    ctx.obj.verbose |= given["verbose"]
    target = None if given["terminal"] and not given["output"] else _target(picture, given)
    show = _preview() if given["terminal"] else None
    if target is None and show is None:
        return 0
    comparison = _compare(picture, given)
    if show:
        show(comparison)
    if target:
        _write(comparison, target, about=_about(), models=_models(picture, given["reference"]))
    if not given["quiet"]:
        click.echo(_outcome(comparison, target), err=True)
    if target and given["open_it"]:
        click.launch(target.resolve().as_uri())
    return 0


def _target(picture: Path, given: dict[str, Any]) -> Path:
    """Where the page or sheet goes; refused now rather than when all is computed."""
    from hasn_cli.images import check_target, format_for_name

    if str(picture) == "-" and str(given["reference"]) == "-":
        raise UsageError("stdin cannot be both pictures")
    if str(picture) == "-" and given["output"] is None:
        raise UsageError("a picture from stdin needs a name for the page", "give one: -o compare.html")
    if picture.is_dir():
        raise UsageError(f"{picture} is a folder", "name one picture of it")
    target: Path = given["output"] or picture.with_name(f"{picture.stem}_compare.html")
    if target.suffix.lower() not in PAGE_SUFFIXES and format_for_name(target.name) is None:
        raise UsageError(f"{target}: neither a page nor a picture by its name", "end it in .html or .png")
    inputs = [path for path in (picture, given["reference"]) if path is not None and path.exists()]
    if target.exists() and any(target.samefile(path) for path in inputs):
        raise UsageError(f"{target} is an input", "give another name: -o compare.html")
    if os.path.lexists(target) and not given["overwrite"]:
        raise OutputError(f"{target}: exists already", "--overwrite replaces it")
    check_target(target)
    return target


def _compare(path: Path, given: dict[str, Any]) -> Comparison:
    from hasn_cli.compare import bicubic, compare
    from hasn_cli.enlarge import Size
    from hasn_cli.images import open_picture
    from hasn_cli.images.stream import read_stream

    def opened(source: Path) -> Picture:
        limit, name = most_pixels(given["max_megapixels"]), printable(source.name)
        data = read_stream(sys.stdin.buffer, max_pixels=limit, name=name) if str(source) == "-" else source
        return open_picture(data, max_pixels=limit, name=name)

    picture = opened(path)
    reference = given["reference"] and opened(given["reference"])
    size = Size(given["scale"])
    methods = [*_networks(picture, size, given)]
    if len(methods) == 1:
        methods.insert(0, bicubic(size))
    with _progress(given["quiet"]) as progress:
        return compare(picture, methods, reference=reference, whole=given["whole"], progress=progress)


def _networks(picture: Picture, size: Size, given: dict[str, Any]) -> Iterator[Method]:
    """A method for each of the weights, loaded: what is missing is told before anything is computed."""
    import numpy as np

    from hasn_cli.batch.pool import UpscalerPool
    from hasn_cli.batch.settings import Settings
    from hasn_cli.compare import network
    from hasn_cli.console import fetching
    from hasn_cli.weights import resolve

    scale = size.network_scale(picture.size)
    for weights, label in zip(given["weights"], labels(given["weights"]), strict=True):
        settings = Settings(size, weights, device=given["device"], precision=given["precision"], memory=given["memory"])
        pool = UpscalerPool(settings)
        with fetching() as progress:
            digest = resolve(weights, scale, progress=progress).sha256[:12]
        upscaler = pool.loaded(scale)
        upscaler.upscale(np.zeros((64, 64, 3), np.uint8))  # so that no time is charged for its first steps
        plan = upscaler.plan(picture.size, min(picture.channels, 3), picture.dtype.itemsize)
        exact = "exact" if plan.tile is None else f"{plan.tiles} tiles"
        detail = f"weights {_shown(weights)} (SHA-256 {digest}…), {plan.text}, {exact}"
        yield network(printable(label), printable(detail), pool.loaded, size)


def labels(weights: Sequence[str]) -> list[str]:
    """Short names for weights, no two alike: `HASN` for those in the package, a file's stem, or all that was given."""
    from hasn_cli.weights import BUNDLED, SUFFIXES

    files = [Path(name).stem if Path(name).suffix in SUFFIXES else name for name in weights]
    short = ["HASN" if name == BUNDLED else file for name, file in zip(weights, files, strict=True)]
    if len(set(short)) == len(short):
        return short
    return [f"{name} ({index + 1})" if short.count(name) > 1 else name for index, name in enumerate(short)]


def _shown(weights: str) -> str:
    """What a page calls weights: of a file or folder, only the name."""
    return Path(weights).name if Path(weights).exists() else weights


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, float], None] | None]:
    """A bar for each method, where there is a terminal to draw it on."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from hasn_cli.console import make_bars

    with make_bars() as bars:
        tasks: dict[str, Any] = {}

        def tell(label: str, fraction: float) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=1.0, unit="")
            bars.update(tasks[label], completed=fraction)

        yield tell


def _preview() -> Callable[[Comparison], None] | None:
    """What shows a comparison on this terminal, or None."""
    from rich.console import Console

    from hasn_cli.compare.terminal import drawer, preview

    console = Console()
    draw = drawer(console)
    if draw is None:
        return None

    def show(comparison: Comparison) -> None:
        for part in preview(comparison, draw, console.width):
            console.print(part)

    return show


def _models(*pictures: Path | None) -> tuple[os.stat_result, ...]:
    """The files that a page or sheet shows: only who may read them may read it."""
    return tuple(path.stat() for path in pictures if path is not None and str(path) != "-")


def _write(comparison: Comparison, target: Path, about: str, models: tuple[os.stat_result, ...]) -> None:
    from hasn_cli.images.unfinished import Placing, replacing

    target.parent.mkdir(parents=True, exist_ok=True)
    placing = Placing(models=models)
    if target.suffix.lower() in PAGE_SUFFIXES:
        from hasn_cli.compare.page import page

        with replacing(target, placing) as stream:
            stream.write(page(comparison, about=about).encode())
        return
    from hasn_cli.compare.sheet import sheet
    from hasn_cli.images import EncodeOptions, Frame, Metadata, Picture, check_can_hold, format_for_name, write_picture

    pixels = sheet(comparison)
    rgb = comparison.icc if comparison.icc and comparison.icc[16:20] == b"RGB " else None
    metadata = Metadata(icc=rgb)
    picture = Picture(target.name, "png", pixels.shape[:2], 3, pixels.dtype, [Frame(pixels)], metadata=metadata)
    format, options = format_for_name(target.name) or "png", EncodeOptions()
    try:
        check_can_hold(picture, picture.size, format, options)
    except ImageError as error:
        raise ImageError(error.message, "give another name: -o sheet.png") from error
    write_picture(picture, target, format, options, placing=placing)


def _about() -> str:
    """How the page was made: version, machine, command line."""
    import platform

    import torch

    from hasn_cli import __version__

    machine = (
        f"{platform.system()} {platform.machine()}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    words = [_without_folders(word) for word in sys.argv[1:]]  # whoever gets the page need not see where things lie
    command = printable(shlex.join(["hasn", *words]), longest=4096)
    return f"Made by hasn {__version__} ({machine}): {command}"


def _without_folders(word: str) -> str:
    """`word` of a command line; of a path, also after `--option=`, only the name."""
    option, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{Path(value).name}" if "/" in value or "\\" in value else word


def _outcome(comparison: Comparison, target: Path | None) -> str:
    from hasn_cli.console import duration

    height, width = comparison.sr_size
    figures = []
    for view in comparison.views:
        measured = "" if view.psnr is None else f", {view.psnr:.2f} dB"
        if view.seconds is not None:
            figures.append(f"{view.label} {duration(view.seconds)}{measured}")
    return "  ".join([printable(str(target or comparison.name)), f"{width}×{height}", "; ".join(figures)])
