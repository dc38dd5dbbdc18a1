"""`hasn train`: weights of one's own from a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hasn_cli.cli.options import HELP_SETTINGS, GroupedCommand, option
from hasn_cli.errors import UsageError, install_command

if TYPE_CHECKING:
    from hasn_cli.training.trainer import Recipe, Report, Trainer

PATH = click.Path(path_type=Path)
DATA, LENGTH, RECIPE, MACHINE = "Data and output", "Length", "Recipe", "Machine"
POSITIVE = click.IntRange(1)


@click.command("train", cls=GroupedCommand, context_settings=HELP_SETTINGS)
@click.argument("data_dir", metavar="DATA_DIR", type=PATH)
@option("-s", "--scale", "scales", group=DATA, type=click.Choice([2, 3, 4]), multiple=True, default=[2],
        help="Times larger; given several times, one body is trained for all.  [default: 2]")  # fmt: skip
@option("-o", "--output", group=DATA, type=PATH, required=True, metavar="RUN", help="Folder of the run.")
@option(
    "--from", "initial", group=DATA, metavar="WEIGHTS", help="Begin from these: hasn, a folder, or a file of any scale."
)
@option("--valid", group=DATA, type=PATH, metavar="DIR", help="Pictures kept apart, to choose the best weights by.")
@option(
    "--valid-side",
    group=DATA,
    type=click.IntRange(64),
    metavar="N",
    default=384,
    show_default=True,
    help="Validate on the middle N×N HR pixels of each picture.",
)
@option("--iterations", group=LENGTH, type=POSITIVE, metavar="N", help="Steps to train.")
@option(
    "--minutes", group=LENGTH, type=click.FloatRange(0, min_open=True), metavar="N", help="Minutes to train, instead."
)
@option("--validate-every", group=LENGTH, type=POSITIVE, metavar="N", default=500, show_default=True,
        help="Steps from one validation, and checkpoint, to the next.")  # fmt: skip
@option("--report-every", group=LENGTH, type=POSITIVE, metavar="N", default=50, show_default=True,
        help="Steps from one line of the log to the next.")  # fmt: skip
@option("--rate", group=RECIPE, type=click.FloatRange(0, min_open=True), metavar="N", default=1e-3, show_default=True,
        help="Learning rate at its highest.")  # fmt: skip
@option("--end-rate", group=RECIPE, type=click.FloatRange(0), metavar="N", default=0.0, show_default=True,
        help="Learning rate at the end; above 0 for a run that another goes on from.")  # fmt: skip
@option("--warm-up", group=RECIPE, type=click.IntRange(0), metavar="N", default=100, show_default=True,
        help="Steps until the rate is at its highest.")  # fmt: skip
@option("--batch", group=RECIPE, type=POSITIVE, metavar="N", default=8, show_default=True, help="Patches in a step.")
@option("--patch", group=RECIPE, type=click.IntRange(16), metavar="N", default=48, show_default=True,
        help="Side of a patch in LR pixels.")  # fmt: skip
@option("--seed", group=RECIPE, type=click.IntRange(0), metavar="N", default=0, show_default=True,
        help="Of where patches are cut, and how they are turned.")  # fmt: skip
@option("--loss", group=RECIPE, type=click.Choice(["l1", "rmse"]), default="l1", show_default=True,
        help="rmse: root mean square of each patch, which PSNR is made of.")  # fmt: skip
@option("--renew", group=RECIPE, is_flag=True,
        help="Begin anew the gated products and ESAs of --from that hardly vary.")  # fmt: skip
@option("--adam", group=RECIPE, is_flag=True, help="Adam for all weights, rather than SOAP for kernels.")
@option("-d", "--device", group=MACHINE, default="auto", show_default=True, help="cpu, cuda, cuda:1, mps.")
@option("-p", "--precision", group=MACHINE, type=click.Choice(["auto", "fp32", "bf16"]), default="auto",
        show_default=True, help="bf16: the blocks in bfloat16.")  # fmt: skip
@option("-j", "--workers", group=MACHINE, type=click.IntRange(0), metavar="N", help="Processes that cut patches.")
def command(data_dir: Path, output: Path, valid: Path | None, **options: Any) -> None:
    """Train on the pictures in DATA_DIR; started again with the same RUN folder, a run goes on where it was.

    RUN gets the weights (hasn_x2.safetensors, …: averaged over time, the best by --valid), log.csv, curve.png, and
    checkpoint.pt to go on from.
    """
    if (options["iterations"] is None) == (options["minutes"] is None):
        raise UsageError("give either --iterations or --minutes")
    if options["renew"] and options["initial"] is None:
        raise UsageError("--renew is of weights to begin --from")
    import torch

    from hasn_cli.console import printable, say_skipped
    from hasn_cli.training.session import prepare

    valid_side = options.pop("valid_side")
    recipe = _recipe(**options)
    if recipe.lanes > 1:
        torch.set_num_threads(1)  # each lane has a core of its own
    trainer = prepare(data_dir, output, recipe, valid=valid, valid_side=valid_side, on_skip=say_skipped)
    plots = find_spec("matplotlib") is not None
    if trainer.finished:
        _write_log(trainer, plots)  # which a kill may have kept from being written
        name = printable(str(output))
        click.echo(f"the run in {name} is finished; more --iterations or --minutes would go on", err=True)
        return
    if trainer.step:
        click.echo(f"going on from step {trainer.step} in {printable(str(output))}", err=True)
    else:
        _say_opened(trainer)
    if not plots:
        click.echo(f"no curve.png without matplotlib: {install_command('train')}", err=True)
    with _view() as show:
        for report in trainer.run():
            _write_log(trainer, plots)
            show(report)
    click.echo(f"weights and log are in {printable(str(output))}", err=True)


def _recipe(
    *,
    scales: tuple[int, ...],
    batch: int,
    patch: int,
    seed: int,
    adam: bool,
    device: str,
    precision: str,
    workers: int | None,
    **others: Any,
) -> Recipe:
    """Options → recipe; what is not given is chosen for the device."""
    from hasn_cli.inference.upscaler import resolve_device
    from hasn_cli.machine import count_cores
    from hasn_cli.training.patches import PatchPlan
    from hasn_cli.training.trainer import Recipe

    cores = count_cores()
    on_cpu = (found := resolve_device(device)).type == "cpu"
    return Recipe(
        scales=tuple(dict.fromkeys(scales)),
        patches=PatchPlan(side=patch, batch=batch, seed=seed),
        device=str(found),
        half=precision == "bf16" or (precision == "auto" and found.type == "cuda"),
        lanes=cores if on_cpu else 1,
        piece=max(1, min(4, batch // cores)) if on_cpu else batch,
        workers=workers if workers is not None else (0 if on_cpu else min(8, cores)),
        kernels=not adam,
        **others,
    )


def _write_log(trainer: Trainer, plots: bool) -> None:
    from hasn_cli.training.log import plot, write_csv
    from hasn_cli.training.trainer import CURVE, LOG

    write_csv(trainer.history, trainer.folder / LOG)
    if plots and (trainer.history[-1].psnr or trainer.finished):
        plot(trainer.history, trainer.folder / CURVE)


@contextmanager
def _view() -> Iterator[Callable[[Report], None]]:
    """Shows reports on stderr: a bar and a line for each on a terminal, else the lines alone."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("step {task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, redirect_stdout=False
    ) as bar:
        task = bar.add_task("0", total=1.0, status="")

        def show(report: Report) -> None:
            bar.update(task, completed=report.fraction, description=str(report.step), status=f"{report.speed:.2f} it/s")
            console.print(_line(report), soft_wrap=True)

        yield show


def _line(report: Report) -> str:
    from hasn_cli.console import duration

    parts = [
        f"{report.step:7d}",
        f"{report.fraction:4.0%}",
        f"loss {report.loss:.3f}",
        f"{report.speed:.2f} it/s",
        f"{duration(report.seconds_left)} left",
    ]
    parts += [f"x{scale} {value:.3f} dB" for scale, value in report.psnr.items()]
    return "  ".join(parts)


def _say_opened(trainer: Trainer) -> None:
    if trainer.renewed:
        blocks = ", ".join(map(str, trainer.renewed))
        click.echo(f"gated products or ESAs that hardly varied begin anew in the blocks {blocks}", err=True)
    if any(trainer.revived):
        counts = ", ".join(map(str, trainer.revived))
        click.echo(f"channels that hardly fired have new filters, in the blocks one by one: {counts}", err=True)
