"""`hasn export`: write the network as a file for other programs."""

from __future__ import annotations

import os
from pathlib import Path

import click

from hasn_cli.cli.options import HELP_SETTINGS, GroupedOption, Whole
from hasn_cli.errors import OutputError, UsageError


@click.command("export", context_settings=HELP_SETTINGS)
@click.option("--onnx", "target", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option("-s", "--scale", cls=GroupedOption, type=Whole(2, 4), default=4, show_default=True, metavar="N",
              help="2, 3 or 4.")  # fmt: skip
@click.option("-w", "--weights", default="clean", show_default=True, metavar="WEIGHTS",
              type=click.Path(readable=False, path_type=str),
              help="clean, photo, released, a file, or OWNER/REPO on the Hugging Face Hub.")  # fmt: skip
@click.option(
    "--opset",
    cls=GroupedOption,
    type=Whole(18),
    default=18,
    show_default=True,
    metavar="N",
    help="Version of the ONNX operator set, 18 or later.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def command(target: Path, scale: int, weights: str, opset: int, overwrite: bool) -> None:
    """Export the network as an ONNX file for any height and width, and check it with onnxruntime.

    Input `lr`: N×3×H×W, float32, RGB in [0, 1], sides of at least 15. Output `sr`: N×3×sH×sW, not clamped. Needs the
    optional packages of the extra `onnx`.
    """
    from hasn_cli.cli.loading import fetch
    from hasn_cli.console import printable
    from hasn_cli.export import export_onnx
    from hasn_cli.images import check_target

    if str(target) == "-":
        raise UsageError("an ONNX file cannot go to stdout", "give a file: --onnx hasn.onnx")
    if os.path.lexists(target) and not overwrite:
        raise OutputError(f"{target} exists already", "--overwrite replaces it")
    check_target(target)
    (found,) = fetch(weights, [scale])
    network = found.load()
    target.parent.mkdir(parents=True, exist_ok=True)
    worst = export_onnx(network, target, opset=opset, about={"weights": found.name, "sha256": found.sha256})
    name = printable(str(target))
    click.echo(f"{name}: x{scale}, opset {opset}; differs from the network by at most {worst:.1g}", err=True)
