"""What there is to say about weights: the rows of `hasn weights list` and `info`.

Nothing is said twice: sizes come from the files, costs from the network, and licence and measured quality from the
model card beside the file (`README.md`, whose `model-index` holds one entry for each file by its stem).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasn_cli import weights as w
from hasn_cli.errors import DownloadError
from hasn_cli.network import HASN, complexity
from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict
from hasn_cli.weights.documents import read_front_matter

SR_720P = (720, 1280)
UNSTATED = "not stated"
RELEASED_NOTE = (
    "No licence file comes with the authors' checkpoint: ask them what may be done with it. It is no part of this "
    "package; hasn fetches it from their repository when you ask for it."
)
RELEASED_PSNR = {"Set5": 32.18}  # dB, PSNR-Y, border 4, MATLAB-bicubic LR; docs/weights.md says how it was measured


@dataclass(frozen=True)
class Entry:
    """One file of weights as a table row.

    Attributes:
        name: as `-w` takes it.
        scale: 2, 3 or 4.
        source: where it comes from: `package`, `release, …`, `hub, …` or `file`.
        parameters: how many numbers are stored.
        multiply_adds: for an output of 1280×720.
        psnr: data set → measured PSNR-Y in dB; empty where nobody measured.
        licence: an SPDX id as the model card gives it, or `not stated`.
        size: bytes.
        sha256: what it has if it is here, else what it must have.
        path: where it lies, None if it is not on this machine.
        note: what else a user must know.
    """

    name: str
    scale: int
    source: str
    parameters: int
    multiply_adds: int
    psnr: Mapping[str, float]
    licence: str
    size: int
    sha256: str
    path: Path | None
    note: str = ""

    @property
    def present(self) -> bool:
        """Whether it is on this machine."""
        return self.path is not None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        path = str(self.path) if self.path else None
        return {**asdict(self), "psnr": dict(self.psnr), "path": path, "present": self.present}


def entries(names: Iterable[str] = w.NAMES) -> Iterator[Entry]:
    """A row for each scale of each of `names`, looking at this machine alone.

    Raises:
        WeightsError: there are no such weights here, or they are broken. What is published always has a row.
    """
    for name in names:
        yield from [_released()] if name == w.RELEASED else map(_present, w.files_of(name))


def _present(found: w.WeightsFile) -> Entry:
    network = network_from_state_dict(load_state_dict_file(found.path), origin=str(found.path), scale=found.scale)
    cost = complexity(network, SR_720P)
    card = read_front_matter(found.path.parent / w.CARD)
    return Entry(
        name=found.name,
        scale=found.scale,
        source=_source(found),
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
        psnr=psnr_of(card, found.path.stem),
        licence=str(card.get("license", UNSTATED)),
        size=found.path.stat().st_size,
        sha256=found.sha256,
        path=found.path,
    )


def _released() -> Entry:
    try:
        found = w.resolve(w.RELEASED, w.RELEASED_SCALE, download=False)
    except DownloadError:
        found = None
    cost = complexity(HASN(w.RELEASED_SCALE), SR_720P)
    return Entry(
        name=w.RELEASED,
        scale=w.RELEASED_SCALE,
        source=f"release, {w.RELEASED_REPOSITORY} at {w.RELEASED_COMMIT[:7]}",
        parameters=cost.parameters,
        multiply_adds=cost.multiply_adds,
        psnr=RELEASED_PSNR,
        licence=UNSTATED,
        size=w.RELEASED_SIZE,
        sha256=w.RELEASED_SHA256,
        path=found.path if found else None,
        note=RELEASED_NOTE,
    )


def _source(found: w.WeightsFile) -> str:
    if found.source == "bundled":
        return "package"
    source = w.hub_id(found.name)
    return f"hub, {source.repo}" if found.source == "hub" and source else "file"


def psnr_of(card: Mapping[str, Any], stem: str) -> dict[str, float]:
    """Data set → PSNR in dB for one file, from the card's `model-index`.

    Args:
        card: a model card's front matter, in the Hugging Face format.
        stem: the file's name without its ending: the name of its entry.
    """
    try:
        return {
            str(result["dataset"]["name"]): float(metric["value"])
            for model in card.get("model-index") or []
            if model["name"] == stem
            for result in model["results"]
            for metric in result["metrics"]
            if metric["type"] == "psnr"
        }
    except (KeyError, TypeError, ValueError):  # a card of somebody else's, of some other shape
        return {}
