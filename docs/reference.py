"""Write the tables of options, from the program itself, into README.md and docs/commands.md.

python docs/reference.py           rewrites both
python docs/reference.py --check   tells by its exit code whether they are up to date
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
README, COMMANDS_PAGE = ROOT / "README.md", ROOT / "docs" / "commands.md"
BEGIN, END = "<!-- options:begin -->", "<!-- options:end -->"
HEADER = "| option | meaning |\n|---|---|"
INTRODUCTION = """# Commands

Every command with its options, as `--help` gives them. Written by `python docs/reference.py`.
"""


def main() -> int:
    """Rewrite what is out of date, or with `--check` only say so; returns the exit code."""
    check = "--check" in sys.argv[1:]
    stale = [(path, text) for path, text in pages() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path, text in stale:
        click.echo(f"{path.relative_to(ROOT)} {'is out of date' if check else 'rewritten'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(stale))


def pages() -> Iterator[tuple[Path, str]]:
    """Each file that holds tables, and what it should say."""
    yield README, with_table(README.read_text(encoding="utf-8"), table(*_command("upscale")))
    yield COMMANDS_PAGE, INTRODUCTION + "".join(section(command, ctx) for command, ctx in _all_commands())


def with_table(text: str, content: str) -> str:
    """`text` with `content` between the markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


def table(command: click.Command, ctx: click.Context) -> str:
    """A command's options as a Markdown table, a row of its own before each group."""
    lines, last = [HEADER], ""
    for param in command.get_params(ctx):
        record = None if isinstance(param, click.Argument) else param.get_help_record(ctx)
        if record is None or "--help" in param.opts:
            continue
        group = getattr(param, "group", "")
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
    """The help's paragraphs; those that click leaves as they are (after a line of \\b) as code."""
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
