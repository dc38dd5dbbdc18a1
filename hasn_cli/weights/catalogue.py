"""Facts about weights, for `hasn weights list` and `info`.

Sizes come from the files, and costs from the shapes in their headers. The licence and the measured quality come from
the model card beside the file (`README.md`, where the `model-index` has an entry for each file, named by its stem).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasn_cli import weights as w
from hasn_cli.errors import DownloadError
from hasn_cli.weights import header
from hasn_cli.weights.documents import read_front_matter

SR_720P = (720, 1280)
UNSTATED = "not stated"
RELEASED_NOTE = (
    "The authors' checkpoint has no licence file, so ask them what you may do with it. It is not part of this "
    "package; hasn downloads it from their repository when you ask for it."
)
RELEASED_PSNR = {"Set5": 32.18}  # dB, PSNR-Y, border 4, LR by MATLAB's bicubic; docs/weights.md: how it was measured


@dataclass(frozen=True)
class Entry:
    """One file of weights as a table row.

    Attributes:
        name: as for `-w`.
        scale: 2, 3 or 4.
        source: where it comes from: `package`, `release, …`, `hub, …` or `file`.
        parameters: the number of stored values.
        multiply_adds: for an output of 1280×720.
        psnr: data set → measured PSNR-Y in dB; empty if it has not been measured.
        licence: the SPDX id in the model card, or `not stated`.
        size: in bytes.
        sha256: the file's SHA-256, or the required one if it is not on this machine.
        path: the file; None if it is not on this machine.
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
        """The row as JSON-able values."""
        path = str(self.path) if self.path else None
        return {**asdict(self), "psnr": dict(self.psnr), "path": path, "present": self.present}


def entries(names: Iterable[str] = w.LISTED) -> Iterator[Entry]:
    """A row for each scale of each of `names`, without network access.

    Raises:
        WeightsError: the weights are not on this machine, or are damaged. `released` always has a row.
    """
    for name in names:
        yield from [_released()] if name == w.RELEASED else map(_present, w.files_of(name))


def _shapes(path: Path, scale: int) -> header.Shapes:
    """Name → shape of the tensors in a file for `scale`. If the header does not tell, the file is loaded."""
    shapes = header.read_shapes(path)
    if shapes is not None and header.SCALES[shapes["upsampler.0.weight"][0]] == scale:
        return shapes
    from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict

    network = network_from_state_dict(load_state_dict_file(path), origin=str(path), scale=scale)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _present(found: w.WeightsFile) -> Entry:
    shapes = _shapes(found.path, found.scale)
    card = read_front_matter(found.path.parent / w.CARD)
    return Entry(
        name=found.name,
        scale=found.scale,
        source=_source(found),
        parameters=header.parameters(shapes),
        multiply_adds=header.multiply_adds(shapes, SR_720P),
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
    shapes = _shapes(w.bundled_path(w.RELEASED_SCALE), w.RELEASED_SCALE)  # the same network
    return Entry(
        name=w.RELEASED,
        scale=w.RELEASED_SCALE,
        source=f"release, {w.RELEASED_REPOSITORY} at {w.RELEASED_COMMIT[:7]}",
        parameters=header.parameters(shapes),
        multiply_adds=header.multiply_adds(shapes, SR_720P),
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
        stem: the file's name without its suffix, which is the name of its entry.
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
    except (KeyError, TypeError, ValueError):  # a card in another format
        return {}
