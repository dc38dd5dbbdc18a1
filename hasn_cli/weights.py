"""Which weights exist, where they come from, and which file serves a scale."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hasn_cli.errors import WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from hasn_cli.network import HASN

Progress = Callable[[str, int, int | None], None]
"""Called with what is being fetched, the bytes here so far, and the bytes in all (None: unknown)."""

DEFAULT = "hasn"
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights, present on this machine.

    Attributes:
        name: what was asked for.
        scale: the scale it was asked for; `load_network` checks that the tensors agree.
        path: where it lies.
        source: `bundled`, `file`, `hub` or `release`.
    """

    name: str
    scale: int
    path: Path
    source: str

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the file as it lies there now."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def resolve(weights: str, scale: int, *, progress: Progress | None = None) -> WeightsFile:
    """Find the file that `weights` means for `scale`.

    Args:
        weights: `hasn` (in the package), or the path of a file or of a folder that holds `hasn_xS.safetensors`.
        scale: 2, 3 or 4.
        progress: told of downloads.

    Raises:
        WeightsError: there is no such thing, or not for this scale.
    """
    if weights == DEFAULT:
        return WeightsFile(weights, scale, bundled_path(scale), "bundled")
    path = Path(weights).expanduser()
    if path.is_dir():
        path = path / f"hasn_x{scale}.safetensors"
    if not path.exists():
        raise WeightsError(f"no weights at {weights}", "give -w hasn, or the path of a .safetensors or .pth file")
    return WeightsFile(weights, scale, path, "file")


def bundled_path(scale: int) -> Path:
    """The file that came with the package: inside an installed wheel, in `weights/` of a checkout."""
    package = Path(__file__).parent
    name = f"hasn_x{scale}.safetensors"
    for folder in (package / "bundled", package.parent / "weights"):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"the package carries no weights for x{scale}", "scales are 2, 3 and 4; else install it again")


def load_network(weights: str, scale: int, *, progress: Progress | None = None) -> HASN:
    """Find, read and check weights: `resolve`, then a network in evaluation mode, float32, on the CPU.

    Raises:
        WeightsError: as `resolve`, or the file is damaged, unsafe, not HASN's, or for another scale.
    """
    from hasn_cli.checkpoint import load_state_dict_file, network_from_state_dict

    found = resolve(weights, scale, progress=progress)
    return network_from_state_dict(load_state_dict_file(found.path), origin=str(found.path), scale=scale)


def load_state_dict_file(path: Path) -> dict[str, Tensor]:
    """Read a weights file's tensors: see `hasn_cli.checkpoint.load_state_dict_file`."""
    from hasn_cli import checkpoint

    return checkpoint.load_state_dict_file(path)


def save_network(network: HASN, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a network as safetensors, atomically: see `hasn_cli.checkpoint.save_network`."""
    from hasn_cli import checkpoint

    checkpoint.save_network(network, path, metadata)
