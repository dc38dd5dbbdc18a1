"""Completion in the real shells: file names, commands, and options in the order of `--help`."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import sys
import time
from pathlib import Path

import pytest

PROMPT = "ready> "
START = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
SET_UP = {
    "bash": f"PS1='{PROMPT}'; bind 'set enable-bracketed-paste off'; eval \"$(hasn completion bash)\"",
    "zsh": f"PS1='{PROMPT}'; unsetopt zle_bracketed_paste; autoload -Uz compinit; compinit -u -D;"
    ' eval "$(hasn completion zsh)"',
    "fish": f"function fish_prompt; echo -n '{PROMPT}'; end; hasn completion fish | source",
}


class Shell:
    """An interactive shell on a pseudo-terminal."""

    def __init__(self, name: str, folder: Path) -> None:
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        command = bin_folder / "hasn"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m hasn_cli "$@"\n')
        command.chmod(0o755)
        work = folder / "work"
        work.mkdir()
        for file in ("photo one.jpg", "notes.txt"):
            (work / file).touch()
        environment = {
            **{key: os.environ[key] for key in ("LANG", "PYTHONPATH") if key in os.environ},
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "HOME": str(folder),
            "TERM": "xterm",
            "HISTFILE": "",
        }
        self.seen = ""
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.chdir(work)
            os.execvpe(START[name][0], START[name], environment)
        self.pid = pid
        self.send("stty cols 200 rows 50\r")
        self.send(SET_UP[name] + "; echo set''up\r")
        self.wait_for("setup")

    def send(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern: str, seconds: float = 300.0) -> str:
        """Wait until the pattern is shown, and return the text up to it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if (found := re.search(pattern, self.seen)) is not None:
                before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
                return before
            if select.select([self.terminal], [], [], 0.2)[0]:
                try:
                    text = os.read(self.terminal, 65536).decode(errors="replace")
                except OSError:
                    break
                if "\x1b[c" in text or "\x1b[0c" in text:  # fish asks for the type of the terminal
                    self.send("\x1b[?62c")
                self.seen += re.sub(r"\x1b\[[0-9;?>=]*[a-zA-Z]|\x1b[()][A-Z0-9]|\x1b[=>]|\r", "", text)
        raise AssertionError(f"no {pattern!r} in {self.seen!r}")

    def clear_line(self) -> None:
        """Delete what was typed."""
        self.send("\x15")
        time.sleep(0.2)
        self.seen = ""

    def close(self) -> None:
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request, tmp_path):
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} on this machine")
    started = Shell(request.param, tmp_path)
    yield started
    started.close()


def test_a_shell_completes_files_commands_and_options_in_their_order(shell):
    for typed in ("hasn upscale ph", "hasn ph", "hasn upscale --output=ph", "hasn compare ph"):
        shell.send(typed + "\t")
        assert "notes" not in shell.wait_for(r"photo\\ one\.jpg")
        shell.clear_line()
    shell.send("hasn ups\t")
    shell.wait_for("hasn upscale ")
    shell.clear_line()
    shell.send("hasn upscale --s\t\t")
    listed = shell.wait_for("--skip-existing") + shell.wait_for("--scale|--s$|--strip")
    places = [listed.index(f"\n{name}" if name == "--scale" else name) for name in ("--scale", "--stretch", "--strip")]
    assert places == sorted(places)
    assert listed.index("--suffix") < listed.index("--skip-existing")
