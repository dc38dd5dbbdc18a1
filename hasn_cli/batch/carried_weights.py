"""Weights that travel to a cluster's workers with a run: files and folders of the machine that starts it."""

from __future__ import annotations

from pathlib import Path

from hasn_cli.weights import NAMES, files_of, hub

Files = tuple[str, dict[str, bytes]]
"""The name that is given as -w, and the files by their paths."""


def pack(weights: str) -> Files | None:
    """The file that `weights` means, or those of the folder; None where workers find by that name what we do."""
    if weights in NAMES or weights.startswith(hub.SCHEME):
        return None
    path = Path(weights).expanduser()
    if path.is_file():
        return path.name, {path.name: path.read_bytes()}
    if not path.is_dir():
        return None
    files = {found.path for found in files_of(weights)}
    files |= {path / hub.CONFIG} if (path / hub.CONFIG).is_file() else set()
    name = path.resolve().name or "weights"
    return name, {f"{name}/{file.relative_to(path).as_posix()}": file.read_bytes() for file in files}


def unpack(files: Files, folder: Path) -> str:
    """Write the files below `folder`; returns what to give as -w there."""
    name, contents = files
    for below, data in contents.items():
        (folder / below).parent.mkdir(parents=True, exist_ok=True)
        (folder / below).write_bytes(data)
    return str(folder / name)
