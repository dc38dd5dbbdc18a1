"""`hasn evaluate`: measure the network on a folder of high-resolution (HR) pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasn_cli.cli.options import HELP_SETTINGS, Quality
from hasn_cli.errors import OutputError

if TYPE_CHECKING:
    from hasn_cli.evaluation.benchmark import Score

FOLDER = click.Path(path_type=Path)
WEIGHTS = click.Path(readable=False, path_type=str)  # unchecked: it lets shells complete file names


class Qualities(click.ParamType[tuple[int, ...]]):
    """JPEG qualities separated by commas."""

    name = "qualities"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(Quality().convert(part.strip(), param, ctx) for part in str(value).split(",")))


@click.command("evaluate", context_settings=HELP_SETTINGS)
@click.argument("hr_dir", metavar="HR_DIR", type=FOLDER)
@click.option(
    "-s", "--scale", type=click.Choice([2, 3, 4]), default=4, show_default=True, help="How many times larger."
)
@click.option("--lr", "lr_dir", type=FOLDER, metavar="DIR",
              help="Folder of the reduced (LR) pictures.  [default: made as by MATLAB's bicubic]")  # fmt: skip
@click.option("--jpeg", type=Qualities(), metavar="N,…",
              help="Save the LR pictures as JPEG (4:2:0) of these qualities first, e.g. 90,75,40.")  # fmt: skip
@click.option("-w", "--weights", default="hasn", show_default=True, metavar="WEIGHTS", type=WEIGHTS,
              help="hasn (as upscale chooses for each picture), clean, photo, released, a file, or OWNER/REPO on the "
              "Hugging Face Hub.")  # fmt: skip
@click.option("-d", "--device", default="auto", show_default=True, metavar="DEVICE",
              help="cpu, cuda, cuda:1 or mps. auto takes a GPU if there is one.")  # fmt: skip
@click.option("-f", "--format", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True,
              help="Format of the result.")  # fmt: skip
@click.option("-o", "--output", type=FOLDER, metavar="FILE", help="File to write.  [default: stdout]")
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists.")
def command(
    hr_dir: Path,
    scale: int,
    lr_dir: Path | None,
    jpeg: tuple[int, ...] | None,
    weights: str,
    device: str,
    format: str,
    output: Path | None,
    overwrite: bool,
) -> None:
    """Measure PSNR-Y and SSIM-Y on a folder of high-resolution (HR) pictures, with bicubic for comparison.

    This follows the literature: 8 bits, MATLAB's luma, and without a border that is as wide as the scale. With --jpeg,
    the table shows the mean over all pictures for each quality, and PSNR-B, which is below PSNR-Y if block edges are
    visible.
    """
    from hasn_cli import files
    from hasn_cli.cli.loading import fetch
    from hasn_cli.console import printable, say_skipped
    from hasn_cli.evaluation.benchmark import ChosenUpscaler, benchmark, is_finite, mean_score
    from hasn_cli.inference import Upscaler
    from hasn_cli.weights import AUTOMATIC

    output = None if str(output) == "-" else output
    if output is not None:
        _check_output(output, overwrite)
    upscaler = None if weights == AUTOMATIC else Upscaler(fetch(weights, [scale])[0].load(), device=device)
    pictures: list[Score] = []
    means: list[Score] = []
    for quality in jpeg or (None,):
        by = upscaler or ChosenUpscaler(scale, device, quality)
        found = benchmark(hr_dir, by, lr_dir, jpeg=quality, on_skip=say_skipped)
        scores = [replace(score, name=printable(score.name)) for score in found]
        perfect = sum(not is_finite(score) for score in scores)
        if 0 < perfect < len(scores):
            click.echo(f"the mean leaves out {perfect} of {len(scores)} pictures: their PSNR is infinite", err=True)
        pictures += scores
        means.append(mean_score(scores))
    text = FORMATS[format](pictures, means)
    if output is None:
        click.echo(text)
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        files.write(output, f"{text}\n".encode())
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror}") from None


def _check_output(output: Path, overwrite: bool) -> None:
    from hasn_cli.images import check_target

    if (output.is_file() or output.is_symlink()) and not overwrite:
        raise OutputError(f"{output} exists already", "--overwrite replaces it")
    check_target(output)


def _table(pictures: Sequence[Score], means: Sequence[Score]) -> str:
    from hasn_cli.evaluation.benchmark import is_finite

    if means[0].jpeg is not None:
        return _jpeg_table(means)
    scores = [*pictures, *means]
    width = max(len("picture"), *(len(score.name) for score in scores))
    lines = [f"{'picture':{width}}  PSNR-Y  bicubic    gain  SSIM-Y  bicubic  seconds"]
    for score in scores:
        gain = f"{score.psnr_y - score.bicubic_psnr_y:+6.2f}" if is_finite(score) else f"{'–':>6}"
        lines.append(
            f"{score.name:{width}}  {score.psnr_y:6.2f}  {score.bicubic_psnr_y:7.2f}  {gain}"
            f"  {score.ssim_y:.4f}   {score.bicubic_ssim_y:.4f}  {score.seconds:7.2f}"
        )
    lines.insert(-1, "─" * len(lines[0]))
    return "\n".join(lines)


def _jpeg_table(means: Sequence[Score]) -> str:
    """One line for each quality."""
    lines = ["JPEG  PSNR-Y  bicubic    gain  SSIM-Y  bicubic  PSNR-B  bicubic"]
    lines += [
        f"{mean.jpeg:4}  {mean.psnr_y:6.2f}  {mean.bicubic_psnr_y:7.2f}  {mean.psnr_y - mean.bicubic_psnr_y:+6.2f}"
        f"  {mean.ssim_y:.4f}   {mean.bicubic_ssim_y:.4f}  {mean.psnr_b:6.2f}  {mean.bicubic_psnr_b:7.2f}"
        for mean in means
    ]
    return "\n".join(lines)


def _csv(pictures: Sequence[Score], means: Sequence[Score]) -> str:
    import csv
    import io

    scores = [*pictures, *means]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(vars(scores[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(vars(score) for score in scores)
    return text.getvalue().rstrip("\n")


def _json(pictures: Sequence[Score], means: Sequence[Score]) -> str:
    import json
    import math

    def plain(score: Score) -> dict[str, float | str | None]:
        infinite = (name for name, value in vars(score).items() if isinstance(value, float) and math.isinf(value))
        return vars(score) | dict.fromkeys(infinite)  # of a perfect result; JSON has no infinity

    shown: dict[str, object] = {"pictures": [plain(score) for score in pictures]}
    shown |= {"mean": plain(means[0])} if means[0].jpeg is None else {"means": [plain(mean) for mean in means]}
    return json.dumps(shown, indent=2, allow_nan=False)


FORMATS = {"table": _table, "csv": _csv, "json": _json}
