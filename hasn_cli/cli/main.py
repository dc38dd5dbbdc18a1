"""The `hasn` command: find the subcommand, and turn every exception into a line on stderr and an exit code."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import PurePath

import click
from click.shell_completion import CompletionItem

from hasn_cli import __version__
from hasn_cli.console import INTERRUPTED, error_line, hint_line, show_error

# The help lines are here so that `hasn --help` does not have to import the commands from hasn_cli/cli/NAME.py.
COMMANDS = {
    "upscale": "Upscale pictures, folders or a pipe.",
    "watch": "Upscale what appears in a folder.",
    "serve": "Serve a page to drop pictures on, and an HTTP interface.",
    "compare": "Compare with bicubic, as a page, an image or in the terminal.",
    "doctor": "Check this machine: devices, memory, formats, speed.",
    "weights": "List, inspect, download, verify and publish weights.",
    "evaluate": "Measure PSNR and SSIM on a folder of pictures.",
    "train": "Train the network on a folder of pictures.",
    "export": "Export the network as an ONNX file.",
    "completion": "Print the completion script for bash, zsh or fish.",
}
DEFAULT = "upscale"
UNKNOWN_HINT = "hasn --help lists the commands; a picture needs its whole name: hasn photo.jpg"
OWN_OPTIONS = ("-h", "--help", "--version", "-v", "--verbose")
# A word with one of these endings is taken for a picture's name. The list of all formats would be slow to import.
PICTURE_ENDINGS = (
    ".3fr", ".apng", ".arw", ".avif", ".bmp", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".gif", ".heic", ".heif", ".ico",
    ".j2k", ".jp2", ".jpe", ".jpeg", ".jpg", ".jxl", ".nef", ".nrw", ".orf", ".pam", ".pbm", ".pef", ".pfm", ".pgm",
    ".png", ".pnm", ".ppm", ".raf", ".rw2", ".rwl", ".srw", ".tga", ".tif", ".tiff", ".webp", ".x3f",
)  # fmt: skip

EXAMPLES = """\b
  hasn photo.jpg -s 4                      same as hasn upscale photo.jpg -s 4
  hasn upscale trip/ -r -o larger/ -s 2    a folder and its subfolders
  cat a.png | hasn upscale - > b.png       in a pipeline
"""


@dataclass
class State:
    """How to show errors. Commands can set this; click passes it on as `ctx.obj`."""

    verbose: int = 0
    implied: bool = False  # no command was given, so it is `upscale`


class LazyGroup(click.Group):
    """A group that imports a subcommand only when it is used, and that runs `upscale` if no command is given."""

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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete commands and options, or file names if the word is not the beginning of either."""
        return super().shell_complete(ctx, incomplete) or [CompletionItem(incomplete, type="file")]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Treat `hasn PATH…` and `hasn -s 2 PATH…` as `hasn upscale …`."""
        options = [*self._own_options_before(args)]
        rest = args[len(options) :]
        if rest and _means_upscale(rest):
            args = [*options, DEFAULT, *rest]
            if isinstance(ctx.obj, State):
                ctx.obj.implied = True
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            close = difflib.get_close_matches(args[0], COMMANDS, n=1, cutoff=0.65)
            if args[0] in ("help", "version"):
                close = [f"hasn --{args[0]}"]
            hint = f"Did you mean {close[0]}?" if close else UNKNOWN_HINT
            raise UnknownCommand(args[0], hint)
        return super().resolve_command(ctx, args)

    @staticmethod
    def _own_options_before(args: list[str]) -> Sequence[str]:
        for index, arg in enumerate(args):
            if arg not in OWN_OPTIONS:
                return args[:index]
        return args


class UnknownCommand(click.UsageError):
    """The first word is neither a command nor a picture."""

    def __init__(self, word: str, hint: str) -> None:
        super().__init__(f"there is no command or file '{word}'")
        self.hint = hint


def _means_upscale(words: Sequence[str]) -> bool:
    """Whether the words after the options of `hasn` itself are arguments of `hasn upscale`."""
    if words[0] in COMMANDS:
        return False
    if words[0].startswith("-") and words[0] != "-":
        return not any(word in COMMANDS for word in words) and any(map(_names_input, words))
    return _names_input(words[0])


def _names_input(word: str) -> bool:
    return (
        word in ("-", "--files-from")
        or word.startswith("--files-from=")
        or (not word.startswith("-") and os.path.lexists(word))
        or "://" in word
        or PurePath(word).suffix.lower() in PICTURE_ENDINGS
    )


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXAMPLES,
)
@click.version_option(__version__, "--version", prog_name="hasn")
@click.option("-v", "--verbose", count=True, help="Show the traceback of an error.")
@click.pass_obj
def hasn(state: State | None, verbose: int) -> None:
    """Upscale images faithfully and exactly, with the HASN network."""
    if state is not None:
        state.verbose = verbose


def run(args: Sequence[str] | None = None) -> int:
    """Run `hasn` with `args` (default: those of the process) and return the exit code. Only a second Ctrl-C raises."""
    state = State()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # our readers raise errors for what matters
    try:
        # standalone_mode=False: click returns the exit code, and lets exceptions through
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
        return show_error(error, verbose=bool(state.verbose))


def _show_usage_error(wrong: click.ClickException) -> int:
    click.echo(error_line(" ".join(wrong.format_message().split())), err=True)
    ctx = wrong.ctx if isinstance(wrong, click.UsageError) else None
    hint = getattr(wrong, "hint", None) or (f"{ctx.command_path} --help" if ctx is not None else None)
    if hint:
        click.echo(hint_line(hint), err=True)
    return wrong.exit_code


def _end_quietly() -> int:
    """End after the reader of our stdout has closed it: redirect stdout to nowhere, so that no later flush fails."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
