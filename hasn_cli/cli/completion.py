"""`hasn completion`: the script that lets a shell complete hasn's commands, options and file names."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from hasn_cli.cli.options import HELP_SETTINGS

# Changes to click's scripts: shell → (click's text, ours). The shell itself completes file names, so that any name is
# quoted correctly.
CHANGES: dict[str, list[tuple[str, str]]] = {
    "bash": [],
    "zsh": [  # complete the file name after --output=
        ("_path_files -f", "[[ ${words[CURRENT]} == --*=* ]] && compset -P '*='; _path_files -f"),
    ],
    "fish": [
        ("complete --no-files", "complete --no-files --keep-order"),  # options in the order of --help
        ('string split "," $completion', 'string split --max 1 "," $completion'),  # descriptions contain commas
        (
            "__fish_complete_path $metadata[2];",
            "set -l option (string match --regex -- '^--[^=]+=' (commandline -t));"
            ' for path in (__fish_complete_path $metadata[2]); echo "$option$path"; end;',
        ),
    ],
}


@click.command("completion", context_settings=HELP_SETTINGS)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and file names in SHELL.

    \b
    bash: eval "$(hasn completion bash)"             in ~/.bashrc
    zsh:  eval "$(hasn completion zsh)"              in ~/.zshrc, after compinit
    fish: hasn completion fish > ~/.config/fish/completions/hasn.fish
    """
    completion_class = get_completion_class(shell)
    assert completion_class is not None
    script = completion_class(ctx.find_root().command, {}, "hasn", "_HASN_COMPLETE").source()
    for theirs, ours in CHANGES[shell]:
        script = script.replace(theirs, ours)
    click.echo(script)
