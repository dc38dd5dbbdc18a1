"""Find weights by name: which exist, where they come from, and which file is for which scale.

What `-w` takes, in the order in which it is tried:

* `clean` and `photo`: the two sets of weights in the package. They need no connection.
* `hasn`: the same, chosen for each picture (see `hasn_cli.choice`); where there is no picture, `clean`.
* `released`: the authors' x4 checkpoint, from one commit of their repository, with a known SHA-256.
* `hf://OWNER/REPO[@REVISION][/FILE]`: a repository on the Hugging Face Hub.
* the path of a file, or of a folder with the layout of such a repository.
* `OWNER/REPO[@REVISION]`: like `hf://`, unless a file or folder has that name.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hasn_cli.errors import DownloadError, WeightsError
from hasn_cli.weights import header, hub
from hasn_cli.weights.documents import read_text
from hasn_cli.weights.hub import Progress

if TYPE_CHECKING:
    from hasn_cli.network import HASN

AUTOMATIC = "hasn"  # chosen for each picture, see `hasn_cli.choice`
CLEAN, PHOTO = "clean", "photo"
RELEASED = "released"
NAMES = (AUTOMATIC, CLEAN, PHOTO, RELEASED)
LISTED = (CLEAN, PHOTO, RELEASED)  # the names that stand for files of their own
SCALES = (2, 3, 4)  # the same as in `network`, which would import torch
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
CHECKSUMS = "SHA256SUMS"
SOURCES = "SOURCES.md"  # the sources and licences of the training pictures
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
    """One file of weights on this machine.

    Attributes:
        name: the requested name.
        scale: the requested scale; `load_network` checks that the tensors agree.
        path: the file.
        source: `bundled`, `released`, `hub` or `file`.
    """

    name: str
    scale: int
    path: Path
    source: str

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the file's current content."""
        return file_sha256(self.path)

    def load(self) -> HASN:
        """Read and check the file; returns a network in evaluation mode, float32, on the CPU.

        Raises:
            WeightsError: the file is damaged, unsafe, for another network, or for another scale.
        """
        from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict

        return network_from_state_dict(load_state_dict_file(self.path), origin=str(self.path), scale=self.scale)


def resolve(weights: str, scale: int, *, progress: Progress | None = None, download: bool = True) -> WeightsFile:
    """Find the file that `weights` means for `scale`, and download it if necessary.

    Args:
        weights: a name, a path or a hub id; see the top of this module.
        scale: 2, 3 or 4.
        progress: called during downloads.
        download: False: use only files on this machine, without any network access.

    Raises:
        WeightsError: there are no such weights, or none for this scale.
        DownloadError: the download failed; with `download=False`, the file is not on this machine.
    """
    if weights in (AUTOMATIC, CLEAN, PHOTO):
        return WeightsFile(weights, scale, bundled_path(scale, weights), "bundled")
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
        f"give one of {', '.join(NAMES)}, a path, or OWNER/REPO on the Hugging Face Hub",
    )


def files_of(
    weights: str, scale: int | None = None, *, download: bool = False, progress: Progress | None = None
) -> list[WeightsFile]:
    """The files that `weights` means, one for each scale.

    Args:
        weights: see `resolve`. A single file is listed for the scale of its tensors.
        scale: only this scale.
        download: download missing files; else use only files on this machine, without any network access.
        progress: called during downloads.

    Raises:
        WeightsError: there are no such weights.
        DownloadError: a download failed, or none of the files is on this machine.
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
        # one file for every scale: its tensors tell which scale it is for
        stated = header.scale_of(files[0].path)
        if stated is not None and scale in (None, stated):
            return [replace(files[0], scale=stated)]
        from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict

        true = network_from_state_dict(load_state_dict_file(files[0].path), origin=weights, scale=scale).scale
        files = [replace(files[0], scale=true)]
    return files


def digest(weights: str, scale: int) -> str:
    """What decides, with a picture's file, what the network for `scale` gives: the SHA-256 of its file.

    For `hasn` it is that of both sets, joined by `&`.

    Raises:
        WeightsError: there are no such weights, or they cannot be read.
    """
    digests = []
    for name in (CLEAN, PHOTO) if weights == AUTOMATIC else (weights,):
        found = resolve(name, scale)
        try:
            digests.append(found.sha256)
        except OSError as error:
            message = f"cannot read weights {found.path}: {error.strerror or error}"
            raise WeightsError(message, "check the path given to -w") from error
    return "&".join(digests)


def hub_id(weights: str) -> hub.HubId | None:
    """Read `weights` as the name of a hub repository; None if it cannot be one."""
    if weights in NAMES or (_looks_like_a_path(weights) and not weights.startswith(hub.SCHEME)):
        return None
    return hub.HubId.parse(weights)


def load_network(weights: str, scale: int, *, progress: Progress | None = None) -> HASN:
    """Find, read and check weights; returns a network in evaluation mode, float32, on the CPU.

    Raises:
        WeightsError: as from `resolve`; or the file is damaged, unsafe, for another network, or for another scale.
    """
    return resolve(weights, scale, progress=progress).load()


def load_blend(scale: int, photo: float, photo_weights: str = PHOTO) -> HASN:
    """The mean of the package's clean and photo weights, with a share of `photo`, from 0 to 1, of the latter.

    `photo_weights` names others to take in place of the package's photo weights.

    Raises:
        WeightsError: as from `load_network`.
    """
    import torch

    network = load_network(CLEAN, scale)
    other = load_network(photo_weights, scale).state_dict()
    state = {name: torch.lerp(value, other[name], photo) for name, value in network.state_dict().items()}
    network.load_state_dict(state)
    return network


def bundled_path(scale: int, weights: str = CLEAN) -> Path:
    """The file in the package, `clean` or `photo`: inside an installed wheel, or in `weights/` of a checkout.

    Raises:
        WeightsError: there is none for this scale.
    """
    package = Path(__file__).parents[1]
    name = f"{PHOTO if weights == PHOTO else 'hasn'}_x{scale}.safetensors"
    for folder in (package / "bundled", package.parent / "weights"):
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"the package contains no weights for x{scale}", "for 2, 3 or 4, install it again; there are no other scales"
    )


def expected_sha256(found: WeightsFile) -> str | None:
    """The SHA-256 that the file should have, by this module, the hub, or `SHA256SUMS` beside it; None if unknown.

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
    for line in read_text(sums, str(sums)).splitlines():  # the format of sha256sum: 64 digits, 2 marks, the name
        if line[66:] == found.path.name:
            return line[:64]
    return None


def verify(found: WeightsFile) -> HASN:
    """Check the SHA-256 of a file, and that its tensors form a HASN network for its scale.

    Returns:
        The network.

    Raises:
        WeightsError: one of the checks failed, or `SHA256SUMS` cannot be read.
    """
    expected = expected_sha256(found)
    if expected is not None and found.sha256 != expected:
        raise WeightsError(f"{found.path} has SHA-256 {found.sha256}, not {expected}", "it is damaged or was changed")
    return found.load()


def publish(repo: str, folder: Path, *, private: bool | None = None, message: str = "Upload HASN weights") -> str:
    """Upload a folder of `hasn_xS.safetensors` files as a hub repository for `-w OWNER/REPO`.

    The `photo_xS.safetensors` files, the model card (`README.md`), `SOURCES.md` and `SHA256SUMS` are uploaded too if
    they exist. A `config.json` that names the `hasn_xS.safetensors` files is added.

    Returns:
        The commit's web address.

    Raises:
        WeightsError: there are no such files in `folder`, or one of them fails `verify`.
        DownloadError: the hub could not be reached or refused the upload.
    """
    files, photo = (
        {scale: name for scale in SCALES if (folder / (name := f"{set_name}_x{scale}.safetensors")).is_file()}
        for set_name in ("hasn", PHOTO)
    )
    if not files:
        raise WeightsError(f"{folder} contains no hasn_x2.safetensors, hasn_x3… or hasn_x4…")
    networks = [verify(WeightsFile(str(folder), scale, folder / name, "file")) for scale, name in files.items()]
    for scale, name in photo.items():
        verify(WeightsFile(str(folder), scale, folder / name, "file"))
    contents: dict[str, Path | bytes] = {name: folder / name for name in (*files.values(), *photo.values())}
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
    """The authors' checkpoint in the assets cache of `huggingface_hub` (HF_HOME/assets/hasn). Checked at each use."""
    from huggingface_hub import constants

    if scale != RELEASED_SCALE:
        raise WeightsError(
            f"the authors released HASN for x{RELEASED_SCALE} only, not x{scale}", "use -s 4, or -w hasn"
        )
    path = Path(constants.HF_ASSETS_CACHE) / "hasn" / RELEASED / RELEASED_COMMIT[:12] / "HASN.pth"
    if path.is_file() and file_sha256(path) == RELEASED_SHA256:
        return path
    if not download or constants.HF_HUB_OFFLINE:
        forbidden = ", and HF_HUB_OFFLINE forbids downloads" if constants.HF_HUB_OFFLINE else ""
        raise DownloadError(
            f"the released checkpoint is not on this machine{forbidden}",
            "without HF_HUB_OFFLINE: hasn weights pull released"
            if forbidden
            else "hasn weights pull released downloads it",
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
    """The file for `scale` in a folder with the layout of a hub repository (see `hasn_cli.weights.hub`).

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
    except RuntimeError:  # ~NAME, if there is no such user
        raise WeightsError(f"there are no weights at {weights}", "check the path given to -w") from None


def _looks_like_a_path(weights: str) -> bool:
    return weights.endswith(SUFFIXES) or weights.startswith((".", "/", "~")) or "\\" in weights
