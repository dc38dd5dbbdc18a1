"""`hasn train`: train weights on a folder of pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from hasn_cli.cli.options import HELP_SETTINGS, GroupedCommand, Number, Whole, option
from hasn_cli.errors import UsageError, install_command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from hasn_cli.training.recipe import LogRow, Recipe
    from hasn_cli.training.trainer import Trainer

PATH = click.Path(path_type=Path)
DATA, LENGTH, RECIPE, MACHINE = "Data and output", "Length", "Recipe", "Machine"
POSITIVE = Whole(1)
FEW_STEPS = 200  # too few to get far beyond bicubic from scratch


@click.command("train", cls=GroupedCommand, context_settings=HELP_SETTINGS)
@click.argument("data_dir", metavar="DATA_DIR", type=PATH)
@option("-s", "--scale", "scales", group=DATA, type=click.Choice([2, 3, 4]), multiple=True, default=[2],
        help="How many times larger. Repeat it to train several scales with one body.  [default: 2]")  # fmt: skip
@option(
    "-o",
    "--output",
    group=DATA,
    type=PATH,
    required=True,
    metavar="RUN",
    help="Folder for the weights, the log and the checkpoint.",
)
@option(
    "--from",
    "initial",
    group=DATA,
    metavar="WEIGHTS",
    help="Weights to start from: hasn, a folder, or a file of any scale.  [default: train from scratch]",
)
@option("--valid", group=DATA, type=PATH, metavar="DIR", help="Other pictures, to choose the best weights by.")
@option(
    "--valid-side",
    group=DATA,
    type=Whole(64),
    metavar="N",
    default=384,
    show_default=True,
    help="Use the middle N×N pixels of each of these pictures.",
)
@option("--iterations", group=LENGTH, type=POSITIVE, metavar="N", help="Train for N steps.")
@option("--minutes", group=LENGTH, type=Number(0, min_open=True), metavar="N", help="Train for N minutes.")
@option("--validate-every", group=LENGTH, type=POSITIVE, metavar="N", default=500, show_default=True,
        help="Validate and write a checkpoint every N steps.")  # fmt: skip
@option("--report-every", group=LENGTH, type=POSITIVE, metavar="N", default=50, show_default=True,
        help="Report and add a line to the log every N steps.")  # fmt: skip
@option("--rate", group=RECIPE, type=Number(0, min_open=True), metavar="N", default=1e-3, show_default=True,
        help="Highest learning rate.")  # fmt: skip
@option("--end-rate", group=RECIPE, type=Number(0), metavar="N", default=0.0, show_default=True,
        help="Learning rate at the end. Set it above 0 if another run will continue from this one.")  # fmt: skip
@option("--warm-up", group=RECIPE, type=Whole(0), metavar="N", default=100, show_default=True,
        help="Steps over which the learning rate rises at the start.")  # fmt: skip
@option("--batch", group=RECIPE, type=POSITIVE, metavar="N", default=8, show_default=True, help="Patches in a step.")
@option("--patch", group=RECIPE, type=Whole(16), metavar="N", default=48, show_default=True,
        help="Side of a patch in LR pixels.")  # fmt: skip
@option("--seed", group=RECIPE, type=Whole(0), metavar="N", default=0, show_default=True,
        help="Seed for choosing and turning patches.")  # fmt: skip
@option("--loss", group=RECIPE, type=click.Choice(["l1", "rmse"]), default="l1", show_default=True,
        help="rmse is the root mean square error of each patch, which PSNR is computed from.")  # fmt: skip
@option("--degrade", group=RECIPE, type=click.Choice(["bicubic", "photo"]), default="bicubic", show_default=True,
        help="How the small pictures are made. photo: by several programs, compressed as JPEG or WebP, and with "
        "graphics.")  # fmt: skip
@option("--blend-with", group=RECIPE, metavar="WEIGHTS",
        help="With --degrade photo: train the blends that hasn makes of these clean weights and the new ones, one for "
        "each JPEG quality.")  # fmt: skip
@option("--adam", group=RECIPE, is_flag=True, help="Use Adam for all weights, instead of SOAP for the kernels.")
@option("-d", "--device", group=MACHINE, default="auto", show_default=True, metavar="DEVICE",
        help="cpu, cuda, cuda:1 or mps.")  # fmt: skip
@option("-p", "--precision", group=MACHINE, type=click.Choice(["auto", "fp32", "bf16"]), default="auto",
        show_default=True, help="bf16 runs the blocks in bfloat16. auto uses it on CUDA.")  # fmt: skip
@option(
    "-j",
    "--workers",
    group=MACHINE,
    type=Whole(0),
    metavar="N",
    help="Processes that cut patches.  [default: 0, or one for each core with a GPU]",
)
def command(data_dir: Path, output: Path, valid: Path | None, **options: Any) -> None:
    """Train weights on the pictures in DATA_DIR.

    The RUN folder gets the weights (hasn_x2.safetensors, …: averaged over time, the best by --valid), log.csv,
    curve.png, and checkpoint.pt. The same command continues a run that was stopped.
    """
    if (options["iterations"] is None) == (options["minutes"] is None):
        raise UsageError("give either --iterations or --minutes")
    if options["blend_with"] is not None and options["degrade"] != "photo":
        raise UsageError("--blend-with needs --degrade photo", "the blends differ by JPEG quality")
    import torch

    from hasn_cli.console import printable, say_skipped
    from hasn_cli.training.session import prepare

    valid_side = options.pop("valid_side")
    recipe = _recipe(**options)
    if recipe.lanes > 1:
        torch.set_num_threads(1)  # each lane has a core of its own
    trainer = prepare(data_dir, output, recipe, valid=valid, valid_side=valid_side, on_skip=say_skipped)
    plots = find_spec("matplotlib") is not None
    name = printable(str(output))
    if trainer.finished:
        _write_log(trainer, plots)  # it is missing if the run was killed after its last step
        click.echo(f"the run in {name} is finished; give more --iterations or --minutes to continue it", err=True)
        return
    if trainer.step:
        click.echo(f"continuing from step {trainer.step} in {name}", err=True)
    if not plots:
        click.echo(f"curve.png needs matplotlib: {install_command('train')}", err=True)
    with _view(trainer) as show:
        for report in trainer.run():
            _write_log(trainer, plots)
            show(report)
    click.echo(f"the weights and the log are in {name}", err=True)
    if recipe.initial is None and trainer.step < FEW_STEPS:
        _warn_of_few_steps(trainer.step)


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
    degrade: Literal["bicubic", "photo"],
    blend_with: str | None,
    **others: Any,
) -> Recipe:
    """Build the recipe. What the options leave open is chosen for the device."""
    from hasn_cli.inference.upscaler import resolve_device
    from hasn_cli.machine import count_cores
    from hasn_cli.training.patches import PatchPlan
    from hasn_cli.training.recipe import Recipe

    cores = count_cores()
    on_cpu = (found := resolve_device(device)).type == "cpu"
    return Recipe(
        scales=tuple(dict.fromkeys(scales)),
        patches=PatchPlan(side=patch, batch=batch, seed=seed, degrade=degrade, blended=blend_with is not None),
        blend_with=blend_with,
        device=str(found),
        half=precision == "bf16" or (precision == "auto" and found.type == "cuda"),
        lanes=cores if on_cpu else 1,
        piece=max(1, min(4, batch // cores)) if on_cpu else batch,
        workers=workers if workers is not None else 0 if on_cpu else min(16, cores),
        own_depthwise=on_cpu,
        captured=found.type == "cuda" and blend_with is None,  # a graph cannot change the blend
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
def _view(trainer: Trainer) -> Iterator[Callable[[LogRow], None]]:
    """Show reports on stderr: one line each, and a progress bar if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    class Bar(Progress):
        """A bar that asks the trainer how far it is each time it is drawn, since reports may be minutes apart."""

        def get_renderables(self) -> Iterable[RenderableType]:
            for task in self.tasks:
                self.update(task.id, completed=trainer.fraction, description=_state(trainer))
            return super().get_renderables()

    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(), TextColumn("{task.percentage:3.0f}%"), TextColumn("{task.description}"))
    with Bar(*columns, console=console, disable=not console.is_terminal, redirect_stdout=False) as bar:
        bar.add_task("", total=1.0)
        yield lambda report: console.print(_line(report), soft_wrap=True)


def _state(trainer: Trainer) -> str:
    """The step and the time left, for the progress bar."""
    from hasn_cli.console import duration

    left = trainer.seconds_left
    return f"step {trainer.step}" + ("" if left is None else f", {duration(left)} left")


def _line(report: LogRow) -> str:
    from hasn_cli.console import duration

    parts = [
        f"{report.step:7d}",
        f"{report.fraction:4.0%}",
        f"loss {report.loss:.3f}",
        f"{report.speed:.2f} it/s",
        f"{duration(report.seconds_left)} left",
    ]
    if any(report.shut):
        parts.append(f"{sum(report.shut)} dead channels")
    parts += [f"x{scale} {value:.3f} dB" for scale, value in report.psnr.items()]
    return "  ".join(parts)


def _warn_of_few_steps(steps: int) -> None:
    click.echo(f"warning: the run ended after {steps} steps, and training from scratch takes thousands", err=True)
    click.echo("hint: train for longer, or start from existing weights with --from hasn", err=True)
