"""Writes a run's log as a table (CSV) and as a plot (PNG), the whole file each time."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hasn_cli import files
from hasn_cli.errors import MissingExtraError

if TYPE_CHECKING:
    from hasn_cli.training.recipe import LogRow


def write_csv(history: Sequence[LogRow], path: Path) -> None:
    """Write one row for each report.

    The columns `deviation_0` (before the first block) to `deviation_6` are the spatial deviations, `psnr_y_xS` is the
    validation PSNR-Y, and `shut_1` to `shut_6` count the dead channels of the blocks. A cell is empty if not measured.
    """
    rows = [_row(report) for report in history]
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write(path, text.getvalue().encode())


def _row(report: LogRow) -> dict[str, object]:
    row: dict[str, object] = {
        "step": report.step,
        "seconds": f"{report.seconds:.1f}",
        "pixels": report.pixels,
        "rate": f"{report.rate:.3e}",
        "loss": f"{report.loss:.4f}",
        "iterations_per_second": f"{report.speed:.3f}",
    }
    row |= {f"deviation_{i}": f"{value:.3e}" for i, value in enumerate(report.deviations)}
    row |= {f"shut_{i}": count for i, count in enumerate(report.shut, 1)}
    row |= {f"psnr_y_x{scale}": f"{value:.4f}" for scale, value in report.psnr.items()}
    return row


def plot(history: Sequence[LogRow], path: Path) -> None:
    """Plot loss, validation PSNR-Y and the blocks' deviations over the LR pixels seen.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("plotting the curve", "train") from None
    pixels = [report.pixels / 1e6 for report in history]
    figure = Figure(figsize=(8, 9), layout="constrained")
    top, middle, bottom = figure.subplots(3, sharex=True)
    top.plot(pixels, [report.loss for report in history], linewidth=0.8)
    top.set_ylabel("L1 loss, grey levels")
    for scale in sorted({scale for report in history for scale in report.psnr}):
        points = [(report.pixels / 1e6, report.psnr[scale]) for report in history if scale in report.psnr]
        middle.plot(*zip(*points, strict=True), marker=".", label=f"x{scale}")
    middle.set_ylabel("validation PSNR-Y, dB")
    for block in range(len(history[0].deviations)):
        bottom.plot(
            pixels,
            [report.deviations[block] for report in history],
            linewidth=0.8,
            label=f"block {block}" if block else "conv_1",
        )
    bottom.set(ylabel="spatial deviation after", yscale="log", xlabel="LR pixels seen, millions")
    for axes in (middle, bottom):
        if axes.get_legend_handles_labels()[0]:
            # above the axes, so that it hides no curve
            axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    files.write(path, image.getvalue())
