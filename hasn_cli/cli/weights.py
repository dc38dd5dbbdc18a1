"""`hasn weights`: list, inspect, download, verify, locate and publish weights. Results go to stdout, bars to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hasn_cli.cli.options import HELP_SETTINGS, GroupedOption, Whole
from hasn_cli.console import printable
from hasn_cli.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from hasn_cli.weights.catalogue import Entry

SHORT_DIGEST = 7
COLUMNS = ("name", "scale", "parameters", "multiply-adds", "PSNR-Y", "licence", "source", "size", "SHA-256", "here")

WEIGHTS = click.Path(readable=False, path_type=str)  # unchecked: it lets shells complete file names
names_argument = click.argument("names", nargs=-1, metavar="[WEIGHTS]...", type=WEIGHTS)
weights_argument = click.argument("weights", metavar="[WEIGHTS]", default="hasn", type=WEIGHTS)
scale_option = click.option(
    "-s",
    "--scale",
    cls=GroupedOption,
    type=Whole(2, 4),
    metavar="N",
    help="2, 3 or 4.  [default: all that exist]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("weights", context_settings=HELP_SETTINGS)
def command() -> None:
    """List, inspect, download, verify and publish weights.

    WEIGHTS is what `hasn upscale -w` takes: hasn (the default: clean or photo, whichever fits the picture), clean and
    photo (both in the package), released (the x4 weights of HASN's authors), a file, a folder, or a repository on the
    Hugging Face Hub: OWNER/REPO[@REVISION] or hf://OWNER/REPO[@REVISION]/FILE.
    """


@command.command("list")
@names_argument
@json_option
def list_command(names: tuple[str, ...], as_json: bool) -> None:
    """List the known weights, or the given ones, as a table.

    Multiply-adds are for an output of 1280×720. PSNR-Y is in dB, from the model card. Without a terminal the table is
    tab-separated.
    """
    from hasn_cli.weights import LISTED
    from hasn_cli.weights.catalogue import entries

    found = list(entries(names or LISTED))
    if as_json:
        _print_json([entry.to_dict() for entry in found])
    elif sys.stdout.isatty():
        _print_table(found)
    else:
        for line in (COLUMNS, *(row(entry) for entry in found)):
            click.echo("\t".join(line))


@command.command()
@weights_argument
@json_option
def info(weights: str, as_json: bool) -> None:
    """Show everything known about WEIGHTS (default: hasn)."""
    from hasn_cli.weights.catalogue import entries

    found = list(entries([weights]))
    if as_json:
        _print_json([entry.to_dict() for entry in found])
        return
    for entry in found:
        for label, text in zip(COLUMNS, row(entry), strict=True):
            click.echo(f"{label + ':':<15}{text}")
        click.echo(f"{'path:':<15}{entry.path or f'not on this machine; hasn weights pull {weights} downloads it'}")
        click.echo(f"note:          {entry.note}\n" if entry.note else "")


@command.command()
@names_argument
@scale_option
def pull(names: tuple[str, ...], scale: int | None) -> None:
    """Download WEIGHTS, check them, and print where the files are.

    Afterwards they are used without a connection, also with HF_HUB_OFFLINE=1.

    \b
      hasn weights pull OWNER/REPO    from the Hugging Face Hub
      hasn weights pull released      the authors' x4 weights, which have no licence
    """
    from hasn_cli.cli.progress import fetching
    from hasn_cli.weights import files_of, verify

    if not names:
        raise UsageError(
            "no weights were named", "name them: hasn weights pull OWNER/REPO; see also: hasn weights pull --help"
        )
    for name in names:
        with fetching() as progress:
            files = files_of(name, scale, download=True, progress=progress)
        for found in files:
            verify(found)
            click.echo(found.path)


@command.command("verify")
@names_argument
def verify_command(names: tuple[str, ...]) -> int:
    """Check the SHA-256 and every tensor of WEIGHTS.

    Without names: all known weights that are on this machine.
    """
    from hasn_cli.console import show_error
    from hasn_cli.errors import DownloadError
    from hasn_cli.weights import LISTED, expected_sha256, files_of, verify

    failed = 0
    for name in names or LISTED:
        try:
            files = files_of(name)
        except DownloadError:
            if names:
                raise
            click.echo(f"{name}: not on this machine")
            continue
        for found in files:
            try:
                verify(found)
                checked = "SHA-256 and tensors" if expected_sha256(found) else "tensors (its SHA-256 is not published)"
                click.echo(f"{found.path}: {checked} are correct")
            except WeightsError as error:
                show_error(error)
                failed = 1
    return failed


@command.command()
@weights_argument
@scale_option
def path(weights: str, scale: int | None) -> None:
    """Print where WEIGHTS (default: hasn) are on this machine.

    Prints a line for each scale, and never connects.
    """
    from hasn_cli.weights import files_of

    for found in files_of(weights, scale):
        click.echo(found.path)


@command.command()
@click.argument("repository", metavar="OWNER/REPO")
@click.option(
    "--from",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with hasn_x2.safetensors, ….  [default: the weights in the package]",
)
@click.option("--private/--public", default=None, help="For a new repository.  [default: as your account is set]")
@click.option("-m", "--message", default="Upload HASN weights", show_default=True, help="Message of the commit.")
def push(repository: str, folder: Path | None, private: bool | None, message: str) -> None:
    """Publish a folder of weights on the Hugging Face Hub.

    Prints the address of the commit. The model card (README.md) is published too. `-w OWNER/REPO` and
    `HASN.from_pretrained("OWNER/REPO")` then work.
    This needs a token with write access: `hf auth login`, or HF_TOKEN.
    """
    from rich.console import Console

    from hasn_cli.weights import bundled_path, publish

    with Console(stderr=True).status(f"publishing {repository}"):
        address = publish(repository, folder or bundled_path(4).parent, private=private, message=message)
    click.echo(address)


def row(entry: Entry) -> tuple[str, ...]:
    """An entry as text, in the order of `COLUMNS`. Control characters in a model card's text are escaped."""
    cells = (
        entry.name,
        f"x{entry.scale}",
        f"{entry.parameters:,}",
        f"{entry.multiply_adds / 1e9:.2f} G",
        ", ".join(f"{name} {value:.2f}" for name, value in entry.psnr.items()) or "not measured",
        entry.licence,
        entry.source,
        f"{entry.size / 1e6:.2f} MB",
        entry.sha256,
        "yes" if entry.present else "no",
    )
    return tuple(printable(cell) for cell in cells)


def _print_table(entries: Sequence[Entry]) -> None:
    """Print the columns as a table that fits into 80 characters."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for label in ("name", "for", "params", "mult-\nadds", "PSNR-Y", "licence", "source", "size", "SHA-256", "here"):
        number = label in ("params", "mult-\nadds", "size")
        table.add_column(label, justify="right" if number else "left", no_wrap=number or label == "PSNR-Y")
    table.columns[0].overflow, table.columns[0].min_width = "fold", 8  # not shortened, so that it can be copied
    for entry in entries:
        name, scale, _, _, _, licence, source, size, digest, here = row(entry)
        parameters, multiply_adds = f"{entry.parameters / 1e3:.0f} k", f"{entry.multiply_adds / 1e9:.1f} G"
        psnr = "\n".join(f"{printable(data)} {value:.2f}" for data, value in entry.psnr.items()) or "–"
        short_source = source.partition(",")[0]
        cells = (name, scale, parameters, multiply_adds, psnr, licence, short_source, size, digest[:SHORT_DIGEST], here)
        table.add_row(*map(Text, cells))  # Text, so that nothing is read as markup
    Console().print(table)


def _print_json(content: object) -> None:
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))
