"""`hasn completion`: the script that lets a shell complete hasn's commands, options and file names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    bash: eval "$(hasn completion bash)"             in ~/.bashrc
    zsh:  eval "$(hasn completion zsh)"              in ~/.zshrc
    fish: hasn completion fish > ~/.config/fish/completions/hasn.fish
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    root = ctx.find_root()
    click.echo(completion_class(root.command, {}, "hasn", "_HASN_COMPLETE").source())
