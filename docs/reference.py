"""Write docs/commands.md, every command with its options, from the program itself.

python docs/reference.py           rewrites it
python docs/reference.py --check   exits with 1 if it is out of date
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from hasn_cli.cli.main import COMMANDS, hasn

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "commands.md"
HEADER = "| option | meaning |\n|---|---|"
INTRODUCTION = """# Commands

Every command with its options, as `--help` shows them. `python docs/reference.py` writes this page.

`hasn PICTURE` is short for `hasn upscale PICTURE`.

| exit code | meaning |
|---|---|
| 0 | everything was done |
| 1 | something failed; in a batch, the other pictures are written |
| 2 | the command was wrong; nothing was done |
| 130 | interrupted; what was finished is complete, and nothing is half-written |

An error is one line on stderr, `error: WHAT IS WRONG`. Where you can do something about it, a second line follows:
`hint: WHAT TO DO`. Only pixels (`-o -`) and JSON (`--json`) go to stdout.
"""


def main() -> int:
    """Rewrite the page if it is out of date, or with `--check` only say so; returns the exit code."""
    check = "--check" in sys.argv[1:]
    text = INTRODUCTION + "".join(section(command, ctx) for command, ctx in _all_commands())
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    click.echo(f"{PAGE.relative_to(ROOT)} {'is out of date' if check else 'rewritten'}")
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    return int(check)


def table(command: click.Command, ctx: click.Context) -> str:
    """A command's options as a Markdown table, with a row before each group that names it."""
    lines, last = [HEADER], "Options"
    for param in command.get_params(ctx):
        record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
        if record is None or "--help" in param.opts:
            continue
        group = getattr(param, "group", "Options")
        if group and group != last:
            lines.append(f"| **{group}** | |")
            last = group
        name, meaning = (" ".join(text.split()).replace("|", "\\|") for text in record)
        name = re.sub(r" (INTEGER|FLOAT)( RANGE)?", " N", name)
        lines.append(f"| `{name}` | {meaning} |")
    return "\n".join(lines)


def section(command: click.Command, ctx: click.Context) -> str:
    """A command's usage line, help and options."""
    usage = " ".join([ctx.command_path, *command.collect_usage_pieces(ctx)])
    options = table(command, ctx)
    parts = [f"## {ctx.command_path}", f"`{usage}`", _text(command), *([] if options == HEADER else [options])]
    return "".join(f"\n{part}\n" for part in parts)


def _text(command: click.Command) -> str:
    """The paragraphs of the help; those that click prints as they are (marked by a line with \\b) become code."""
    paragraphs = []
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            lines = textwrap.dedent("\n".join(paragraph.splitlines()[1:]))
            paragraphs.append(f"```console\n{lines}\n```")
        else:
            paragraphs.append(" ".join(paragraph.split()))
    return "\n\n".join(paragraphs)


def _command(name: str) -> tuple[click.Command, click.Context]:
    root = click.Context(hasn, info_name="hasn")
    command = hasn.get_command(root, name)
    assert command is not None
    return command, click.Context(command, info_name=name, parent=root)


def _all_commands() -> Iterator[tuple[click.Command, click.Context]]:
    for name in COMMANDS:
        command, ctx = _command(name)
        yield command, ctx
        if isinstance(command, click.Group):
            for sub in command.list_commands(ctx):
                below = command.get_command(ctx, sub)
                assert below is not None
                yield below, click.Context(below, info_name=sub, parent=ctx)


if __name__ == "__main__":
    sys.exit(main())
