"""Send weights that are files on this machine to the workers of a cluster."""

from __future__ import annotations

from pathlib import Path

from hasn_cli.weights import NAMES, files_of, hub

Files = tuple[str, dict[str, bytes]]
"""What to give as `-w`, and path → content of each file."""


def pack(weights: str) -> Files | None:
    """Read the file or folder that `weights` names. None if the workers can find these weights by name themselves."""
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
    """Write the files below `folder`, and return what to give as `-w` there."""
    name, contents = files
    for below, data in contents.items():
        (folder / below).parent.mkdir(parents=True, exist_ok=True)
        (folder / below).write_bytes(data)
    return str(folder / name)
