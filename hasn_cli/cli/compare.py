"""`hasn compare`: enlarge a picture in two ways, and show both as a page, as an image, or in the terminal."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasn_cli.cli.options import (
    HELP_SETTINGS,
    ClipTime,
    Factor,
    GroupedCommand,
    device_option,
    limit_option,
    memory_option,
    most_pixels,
    option,
    precision_option,
)
from hasn_cli.console import hint_line, printable
from hasn_cli.errors import ImageError, OutputError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from hasn_cli.compare import Comparison, Method
    from hasn_cli.enlarge import Size
    from hasn_cli.images import Picture

WHAT, OUTPUT, NETWORK, MESSAGES = "What to compare", "Output", "Network", "Messages"
PAGE_SUFFIXES = (".html", ".htm")


class OnePicture(GroupedCommand):
    """A command whose error for a second picture says where that belongs."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as wrong:
            if "unexpected extra argument" in wrong.message:
                raise UsageError(
                    "compare takes one picture", "-o names the output, --reference the large original"
                ) from wrong
            raise


@click.command("compare", cls=OnePicture, context_settings=HELP_SETTINGS)
@click.argument("picture", metavar="PICTURE", type=click.Path(path_type=Path))
@option("-s", "--scale", group=WHAT, type=Factor(), default="4", show_default=True,
        help="How many times larger: 2, 1.5, 300%; at most 16.")  # fmt: skip
@option(
    "-w",
    "--weights",
    group=WHAT,
    multiple=True,
    default=("hasn",),
    metavar="WEIGHTS",
    type=click.Path(readable=False, path_type=str),
    help="Weights to compare with bicubic; given twice, with each other.  [default: hasn]",
)
@option(
    "--reference",
    group=WHAT,
    type=click.Path(path_type=Path),
    metavar="HR",
    help="The true large picture: adds PSNR, SSIM and error maps.",
)
@option("--at", group=WHAT, type=ClipTime(), metavar="TIME",
        help="Which frame of a video: 12.5, or 1:02.5.  [default: the first]")  # fmt: skip
@limit_option(WHAT)
@option(
    "-o",
    "--output",
    group=OUTPUT,
    type=click.Path(path_type=Path),
    metavar="OUT",
    help="A page (.html) or an image (.png, .jpg, …).  [default: PICTURE_compare.html]",
)
@option(
    "--whole", group=OUTPUT, is_flag=True, help="Show all of a large result, instead of the part that differs most."
)
@option("--terminal", group=OUTPUT, is_flag=True, help="Show it in this terminal, if it can show pictures.")
@option("--open", "open_it", group=OUTPUT, is_flag=True, help="Open the page or image when it is finished.")
@option("--overwrite", group=OUTPUT, is_flag=True, help="Replace OUT if it exists.")
@device_option()
@precision_option
@memory_option
@option("-q", "--quiet", group=MESSAGES, is_flag=True, help="Show only errors.")
@option("-v", "--verbose", group=MESSAGES, is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def command(ctx: click.Context, /, picture: Path, **given: Any) -> int:
    """Compare the network's result with bicubic interpolation, or two sets of weights.

    PICTURE is a picture or video, or - for a picture from stdin.

    \b
      hasn compare photo.jpg                      photo_compare.html, with a slider
      hasn compare photo.jpg -w clean -w photo    two sets of weights
      hasn compare small.png --reference big.png  with PSNR, SSIM and error maps
      hasn compare photo.jpg -o sheet.png         one labelled image
      hasn compare photo.jpg --terminal           in this terminal
      hasn compare clip.mp4 --at 12.5             a frame of a video
    """
    ctx.obj.verbose |= given["verbose"]
    target = None if given["terminal"] and not given["output"] else _target(picture, given)
    show, why_not = _preview() if given["terminal"] else (None, None)
    if why_not and not given["quiet"]:
        click.echo(f"nothing is shown: {why_not}", err=True)
    if target is None and show is None:
        if not given["quiet"]:
            click.echo(hint_line(f"hasn compare {shlex.quote(str(picture))} -o sheet.png"), err=True)
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
    """The path of the page or image, checked before anything is computed."""
    from hasn_cli.images import check_target, format_for_name

    if str(picture) == "-" and str(given["reference"]) == "-":
        raise UsageError("stdin cannot be both pictures", "give the name of one of them")
    if str(picture) == "-" and given["output"] is None:
        raise UsageError("a picture from stdin needs a name for the page", "for example: -o compare.html")
    if picture.is_dir():
        raise UsageError(f"{picture} is a folder", "give one picture")
    target: Path = given["output"] or picture.with_name(f"{picture.stem}_compare.html")
    if target.suffix.lower() not in PAGE_SUFFIXES and format_for_name(target.name) is None:
        raise UsageError(f"{target}: unknown ending", "end it in .html for a page, or in .png for an image")
    inputs = [path for path in (picture, given["reference"]) if path is not None and path.exists()]
    if target.exists() and any(target.samefile(path) for path in inputs):
        raise UsageError(f"{target} is an input", "give another name: -o compare.html")
    if os.path.lexists(target) and not given["overwrite"]:
        raise OutputError(f"{target} exists already", "--overwrite replaces it")
    check_target(target)
    return target


def _compare(path: Path, given: dict[str, Any]) -> Comparison:
    from hasn_cli.batch.location import is_video
    from hasn_cli.compare import bicubic, compare
    from hasn_cli.enlarge import Size
    from hasn_cli.images import open_picture
    from hasn_cli.images.stream import read_stream

    def opened(source: Path) -> Picture:
        limit, name = most_pixels(given["max_input_megapixels"], given["max_megapixels"]), printable(source.name)
        if str(source) != "-" and is_video(source):
            from hasn_cli.video.still import still  # here, because it imports FFmpeg

            return still(source, name, given["at"])
        if source == path and given["at"] is not None:
            raise UsageError(f"{name} is not a video, so --at has no effect", "leave it out")
        data = read_stream(sys.stdin.buffer, max_pixels=limit, name=name) if str(source) == "-" else source
        return open_picture(data, max_pixels=limit, name=name)

    picture = opened(path)
    reference = given["reference"] and opened(given["reference"])
    size = Size(given["scale"])
    methods = [*_networks(picture, size, given)]
    if len(methods) == 1:
        methods.insert(0, bicubic(size))
    with _progress(given["quiet"], picture.size[0] * picture.size[1] / 1e6) as progress:
        return compare(picture, methods, reference=reference, whole=given["whole"], progress=progress)


def _networks(picture: Picture, size: Size, given: dict[str, Any]) -> Iterator[Method]:
    """A method for each set of weights. They are loaded now, so that missing ones are reported early."""
    import numpy as np

    from hasn_cli.batch.pool import UpscalerPool
    from hasn_cli.batch.settings import Settings
    from hasn_cli.choice import choose
    from hasn_cli.cli.loading import fetch
    from hasn_cli.compare import network
    from hasn_cli.enlarge import PASSES

    scale = size.network_scale(picture.size)
    picture = picture.first()
    for weights, label in zip(given["weights"], labels(given["weights"]), strict=True):
        settings = Settings(size, weights, device=given["device"], precision=given["precision"], memory=given["memory"])
        pool = UpscalerPool(settings)
        files = fetch(weights, PASSES[scale])
        digest = files[-1].sha256[:12]
        choice = choose(picture, weights)
        upscaler_for = partial(pool.loaded, photo=choice.photo)
        for one in set(PASSES[scale]):
            upscaler_for(one).upscale(np.zeros((64, 64, 3), np.uint8))  # a network's first picture takes longer
        plans = pool.plan(scale, picture.size, min(picture.channels, 3), picture.dtype.itemsize)
        exact = "exact" if plans[-1].tile is None else f"{plans[-1].tiles} tiles"
        steps = "" if len(plans) == 1 else f", {len(plans)} passes"
        used = choice.text or f"weights {_shown(weights)} (SHA-256 {digest}…)"
        detail = f"{used}, {plans[-1].text}, {exact}{steps}"
        yield network(printable(label), printable(detail), upscaler_for, size, choice.limit)


def labels(weights: Sequence[str]) -> list[str]:
    """Short and different labels for weights: `HASN` for those in the package, a file's stem, or the name as given."""
    from hasn_cli.weights import AUTOMATIC, SUFFIXES

    files = [Path(name).stem if Path(name).suffix in SUFFIXES else name for name in weights]
    short = ["HASN" if name == AUTOMATIC else file for name, file in zip(weights, files, strict=True)]
    if len(set(short)) == len(short):
        return short
    return [f"{name} ({index + 1})" if short.count(name) > 1 else name for index, name in enumerate(short)]


def _shown(weights: str) -> str:
    """The name of weights on a page. For a file or folder, the path is left out."""
    return Path(weights).name if Path(weights).exists() else weights


@contextmanager
def _progress(quiet: bool, megapixels: float) -> Iterator[Callable[[str, float], None] | None]:
    """Show a bar for each method, if stderr is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from hasn_cli.cli.progress import add_bar, make_bars, move_bar

    with make_bars() as bars:
        tasks: dict[str, Any] = {}

        def tell(label: str, fraction: float) -> None:
            if label not in tasks:
                tasks[label] = add_bar(bars, label, megapixels, "MP")
            move_bar(bars, tasks[label], fraction * megapixels)

        yield tell


def _preview() -> tuple[Callable[[Comparison], None] | None, str | None]:
    """The function that shows a comparison in this terminal and None; or None and the reason why it cannot."""
    from rich.console import Console

    from hasn_cli.compare.terminal import drawer, preview

    console = Console()
    draw = drawer(console)
    if draw is None:
        return None, _why_not(console)

    def show(comparison: Comparison) -> None:
        for part in preview(comparison, draw, console.width):
            console.print(part)

    return show, None


def _why_not(console: Console) -> str:
    if not console.is_terminal:
        return "stdout is not a terminal"
    if console.no_color:
        return "NO_COLOR is set"
    if not sys.stdin.isatty():
        return "stdin is not a terminal, which is needed to ask the terminal what it can show"
    return "this terminal cannot show pictures"


def _models(*pictures: Path | None) -> tuple[os.stat_result, ...]:
    """The files that a page or image shows. Only those who may read them may read the result."""
    return tuple(path.stat() for path in pictures if path is not None and str(path) != "-")


def _write(comparison: Comparison, target: Path, about: str, models: tuple[os.stat_result, ...]) -> None:
    from hasn_cli.files import Placing, replacing

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
    """How the page was made: the version, the machine and the command line."""
    import platform

    import torch

    from hasn_cli import __version__

    machine = (
        f"{platform.system()} {platform.machine()}, PyTorch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    words = [_without_folders(word) for word in sys.argv[1:]]  # the page should not reveal the names of folders
    command = printable(shlex.join(["hasn", *words]), longest=4096)
    return f"Made by hasn {__version__} ({machine}): {command}"


def _without_folders(word: str) -> str:
    """A word of the command line. Paths, also after `--option=`, are reduced to the name."""
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
