"""Which weights exist, where they come from, and which file serves a scale.

What `-w` takes, in the order of reading:

* `hasn`: in the package; never touches the network.
* `released`: the authors' x4 checkpoint, from their repository at one commit, with one SHA-256.
* `hf://OWNER/REPO[@REVISION][/FILE]`: a repository of the Hugging Face Hub.
* the path of a file, or of a folder laid out like such a repository.
* `OWNER/REPO[@REVISION]`: as with `hf://`, unless a file or folder has that name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hasn_cli.errors import DownloadError, WeightsError
from hasn_cli.weights import header, hub
from hasn_cli.weights.documents import read_text

if TYPE_CHECKING:
    from hasn_cli.network import HASN

Progress = Callable[[str, int, int | None], None]
"""Called with what is being fetched, the bytes here so far, and the bytes in all (None: not known yet)."""

BUNDLED = "hasn"
RELEASED = "released"
NAMES = (BUNDLED, RELEASED)
SCALES = (2, 3, 4)  # as in `network`, which would bring torch along
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
CHECKSUMS = "SHA256SUMS"
SOURCES = "SOURCES.md"  # the training pictures' sources and licences
CARD = "README.md"

RELEASED_SCALE = 4
RELEASED_COMMIT = "bd8d5c035ca613f77e6d14d69cdd8b07fc36dd86"
RELEASED_REPOSITORY = "https://github.com/nathan66666/HASN"
RELEASED_URL = f"https://raw.githubusercontent.com/nathan66666/HASN/{RELEASED_COMMIT}/experiments/HASN.pth"
RELEASED_URL_VARIABLE = "HASN_RELEASED_URL"
RELEASED_SHA256 = "3d70a22008332a7ab35aeedf7722484e6e7607244bc6ddd8adeab0ab864bcb93"
RELEASED_SIZE = 3616623


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights, present on this machine.

    Attributes:
        name: what was asked for.
        scale: the scale it was asked for; `load_network` checks that the tensors agree.
        path: where it lies.
        source: `bundled`, `released`, `hub` or `file`.
    """

    name: str
    scale: int
    path: Path
    source: str

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the file as it lies there now."""
        return file_sha256(self.path)


def resolve(weights: str, scale: int, *, progress: Progress | None = None, download: bool = True) -> WeightsFile:
    """Find the file that `weights` means for `scale`, fetching it where it has to be fetched.

    Args:
        weights: a name, a path or a hub id: see the top of this module.
        scale: 2, 3 or 4.
        progress: told of downloads.
        download: False: only what is on this machine already, without any network access.

    Raises:
        WeightsError: there is no such thing, or not for this scale.
        DownloadError: it could not be brought here, or is not here with `download=False`.
    """
    if weights == BUNDLED:
        return WeightsFile(weights, scale, bundled_path(scale), "bundled")
    if weights == RELEASED:
        return WeightsFile(weights, scale, _released_path(scale, progress, download), "released")
    if not weights.startswith(hub.SCHEME):
        path = _expanded(weights)
        if path.is_dir():
            return WeightsFile(weights, scale, find_in_folder(path, scale), "file")
        if path.exists():
            return WeightsFile(weights, scale, path, "file")
    if (source := hub_id(weights)) is not None:
        access = hub.Access(progress=progress, local_only=not download)
        return WeightsFile(weights, scale, hub.fetch(source, scale, access), "hub")
    if _looks_like_a_path(weights):
        raise WeightsError(f"there are no weights at {weights}", "check the path given to -w")
    raise WeightsError(
        f"there are no weights called '{weights}'",
        f"give one of {', '.join(NAMES)}, a path, or a hub id OWNER/REPO; see: hasn weights list",
    )


def files_of(
    weights: str, scale: int | None = None, *, download: bool = False, progress: Progress | None = None
) -> list[WeightsFile]:
    """The files that `weights` stands for, one a scale.

    Args:
        weights: as `-w` takes it. A single file counts under the scale that its tensors are for.
        scale: one scale only.
        download: fetch them; else only what is on this machine, without any network access.
        progress: told of downloads.

    Raises:
        WeightsError: there is none.
        DownloadError: they cannot be fetched, or none is here.
    """
    files: list[WeightsFile] = []
    refusal: WeightsError | None = None
    for one in SCALES if scale is None else (scale,):
        try:
            files.append(resolve(weights, one, progress=progress, download=download))
        except WeightsError as error:
            if download and isinstance(error, DownloadError):
                raise
            refusal = error
    if refusal is not None and not files:
        raise refusal
    if files[0].source in ("file", "hub") and len({found.path for found in files}) == 1:
        # whatever the scale, it is the same file: ask the file
        stated = header.scale_of(files[0].path)
        if stated is not None and scale in (None, stated):
            return [replace(files[0], scale=stated)]
        from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict

        true = network_from_state_dict(load_state_dict_file(files[0].path), origin=weights, scale=scale).scale
        files = [replace(files[0], scale=true)]
    return files


def hub_id(weights: str) -> hub.HubId | None:
    """`weights` as the name of a hub repository, or None if it cannot be one."""
    if weights in NAMES or (_looks_like_a_path(weights) and not weights.startswith(hub.SCHEME)):
        return None
    return hub.HubId.parse(weights)


def load_network(weights: str, scale: int, *, progress: Progress | None = None) -> HASN:
    """Find, read and check weights: `resolve`, then a network in evaluation mode, float32, on the CPU.

    Raises:
        WeightsError: as `resolve`, or the file is damaged, unsafe, not HASN's, or for another scale.
    """
    from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict

    found = resolve(weights, scale, progress=progress)
    return network_from_state_dict(load_state_dict_file(found.path), origin=str(found.path), scale=scale)


def bundled_path(scale: int) -> Path:
    """The file that came with the package: inside an installed wheel, in `weights/` of a checkout.

    Raises:
        WeightsError: there is none for this scale.
    """
    package = Path(__file__).parents[1]
    name = f"hasn_x{scale}.safetensors"
    for folder in (package / "bundled", package.parent / "weights"):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"the package carries no weights for x{scale}", "scales are 2, 3 and 4; else install it again")


def expected_sha256(found: WeightsFile) -> str | None:
    """What the file's SHA-256 should be, if anybody says so: the pin, the hub, or `SHA256SUMS` beside it.

    Raises:
        WeightsError: `SHA256SUMS` cannot be read.
    """
    if found.source == "released":
        return RELEASED_SHA256
    if found.source == "hub" and (stated := hub.stated_sha256(found.path)) is not None:
        return stated
    sums = found.path.parent / CHECKSUMS
    if not sums.is_file():
        return None
    for line in read_text(sums, str(sums)).splitlines():  # sha256sum's: 64 digits, 2 marks, the name
        if line[66:] == found.path.name:
            return line[:64]
    return None


def verify(found: WeightsFile) -> HASN:
    """Check a file against its expected SHA-256, and that its tensors make a HASN for its scale.

    Returns:
        The network.

    Raises:
        WeightsError: it fails either, or the expected one cannot be read.
    """
    from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict

    expected = expected_sha256(found)
    if expected is not None and found.sha256 != expected:
        raise WeightsError(f"{found.path} has SHA-256 {found.sha256}, not {expected}", "it is damaged or was changed")
    return network_from_state_dict(load_state_dict_file(found.path), origin=str(found.path), scale=found.scale)


def publish(repo: str, folder: Path, *, private: bool | None = None, message: str = "Upload HASN weights") -> str:
    """Upload a folder of `hasn_xS.safetensors` as a hub repository that `-w OWNER/REPO` can use.

    The model card (`README.md`), `SOURCES.md` and `SHA256SUMS` are uploaded too if they exist, and a `config.json` is
    written that names the files.

    Returns:
        The commit's web address.

    Raises:
        WeightsError: there are no such files in `folder`, or one of them fails `verify`.
        DownloadError: the hub could not be reached, or refused.
    """
    files = {scale: f"hasn_x{scale}.safetensors" for scale in SCALES}
    files = {scale: name for scale, name in files.items() if (folder / name).is_file()}
    if not files:
        raise WeightsError(f"{folder} holds no hasn_x2.safetensors, hasn_x3… or hasn_x4…")
    networks = [verify(WeightsFile(str(folder), scale, folder / name, "file")) for scale, name in files.items()]
    contents: dict[str, Path | bytes] = {name: folder / name for name in files.values()}
    contents |= {name: folder / name for name in (CARD, SOURCES, CHECKSUMS) if (folder / name).is_file()}
    contents[hub.CONFIG] = hub.config_bytes(files, networks[-1].num_features)
    return hub.push(repo, contents, private=private, message=message)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file of weights.

    Raises:
        WeightsError: it is not a regular file, or too large.
        OSError: it cannot be read.
    """
    with header.open_weights(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _released_path(scale: int, progress: Progress | None, download: bool) -> Path:
    """The authors' checkpoint in the assets cache of `huggingface_hub` (HF_HOME/assets/hasn), checked at every use."""
    from huggingface_hub import constants

    if scale != RELEASED_SCALE:
        raise WeightsError(
            f"the authors released HASN for x{RELEASED_SCALE} only, not x{scale}", "use -s 4, or -w hasn"
        )
    path = Path(constants.HF_ASSETS_CACHE) / "hasn" / RELEASED / RELEASED_COMMIT[:12] / "HASN.pth"
    if path.is_file() and file_sha256(path) == RELEASED_SHA256:
        return path
    if not download or constants.HF_HUB_OFFLINE:
        forbidden = ", and HF_HUB_OFFLINE forbids to fetch it" if constants.HF_HUB_OFFLINE else ""
        raise DownloadError(
            f"the released checkpoint is not on this machine{forbidden}",
            "without HF_HUB_OFFLINE: hasn weights pull released"
            if forbidden
            else "hasn weights pull released fetches it",
        )
    from hasn_cli.weights.download import download as fetch

    url = os.environ.get(RELEASED_URL_VARIABLE) or RELEASED_URL
    report = progress or (lambda label, done, total: None)
    path.parent.mkdir(parents=True, exist_ok=True)
    fetch(
        url,
        path,
        sha256=RELEASED_SHA256,
        size=RELEASED_SIZE,
        progress=lambda done, total: report("released", done, total),
    )
    return path


def find_in_folder(folder: Path, scale: int) -> Path:
    """The file for `scale` in a folder laid out like a hub repository (see `hasn_cli.weights.hub`).

    Raises:
        WeightsError: there is none.
    """
    config_path = folder / hub.CONFIG
    config = hub.read_config(config_path, str(folder)) if config_path.is_file() else None
    names = hub.candidates(config, scale, str(folder))
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder} has no weights for x{scale} (looked for {', '.join(names)})", "name the file itself")


def _expanded(weights: str) -> Path:
    try:
        return Path(weights).expanduser()
    except RuntimeError:  # ~somebody, whom this machine does not know
        raise WeightsError(f"there are no weights at {weights}", "check the path given to -w") from None


def _looks_like_a_path(weights: str) -> bool:
    return weights.endswith(SUFFIXES) or weights.startswith((".", "/", "~")) or "\\" in weights
