"""The `hasn` command: finds the subcommand, and turns every exception into one line on stderr and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

import click

from hasn_cli import __version__
from hasn_cli.console import INTERRUPTED, show_error

# command → its help line here, so that `hasn --help` imports none of them; each lives in hasn_cli/cli/NAME.py
COMMANDS = {
    "upscale": "Upscale pictures, folders or a pipe.",
    "compare": "See the difference: a before/after page, sheet or terminal view.",
    "doctor": "Show what hasn sees on this machine and would do.",
    "weights": "List, inspect, fetch, verify and publish weights.",
    "evaluate": "Measure PSNR-Y and SSIM-Y over a folder of HR pictures.",
    "train": "Train from a folder of pictures.",
    "export": "Write the network as an ONNX file.",
    "completion": "Print the completion script for bash, zsh or fish.",
}

EXAMPLES = """\b
  hasn upscale photo.jpg -s 4              beside it: photo_x4.jpg
  hasn upscale holiday/ -r -o larger/ -s 2 a whole tree
  cat a.png | hasn upscale - -o - > b.png  in a pipeline
"""


@dataclass
class State:
    """What a command tells the top about how errors are to be shown; click carries it as `ctx.obj`."""

    verbose: bool = False


class LazyGroup(click.Group):
    """A group that imports a subcommand's module when the subcommand is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"hasn_cli.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"The three that people need:\n\n{EXAMPLES}",
)
@click.version_option(__version__, "--version", prog_name="hasn")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
@click.pass_obj
def hasn(state: State | None, verbose: bool) -> None:
    """Faithful, exact image upscaling with the HASN network."""
    if state is not None:
        state.verbose = verbose


def run(args: Sequence[str] | None = None) -> int:
    """Run `hasn` with `args` (default: the process's) and return its exit code; nothing escapes but a second Ctrl-C."""
    state = State()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # harmless to the pixels, or raised as errors by our readers
    try:
        # standalone_mode=False: click returns --help's exit code or the command's own, and lets exceptions through
        code = hasn.main(args=args, prog_name="hasn", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return int(code or 0)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return _end_quietly()
    except click.exceptions.NoArgsIsHelpError as bare:
        click.echo(bare.format_message())
        return bare.exit_code
    except click.ClickException as wrong:
        return _show_usage_error(wrong)
    except Exception as error:
        return show_error(error, verbose=state.verbose)


def _show_usage_error(wrong: click.ClickException) -> int:
    message = " ".join(wrong.format_message().split())
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    ctx = wrong.ctx if isinstance(wrong, click.UsageError) else None
    if ctx is not None:
        click.echo(f"{click.style('hint:', fg='cyan')} {ctx.command_path} --help", err=True)
    return wrong.exit_code


def _end_quietly() -> int:
    """The reader of our stdout has gone: point stdout at nothing, so that no later flush complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
