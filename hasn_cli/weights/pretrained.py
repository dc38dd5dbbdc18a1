"""`HASN` with `from_pretrained`, `save_pretrained` and `push_to_hub`, as the Hugging Face ecosystem knows them.

A class of its own, and not a base of `network.HASN`, because the mixin imports the whole hub client: a third of a
second that a program which never goes to the hub should not pay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import PyTorchModelHubMixin

from hasn_cli import network
from hasn_cli.errors import WeightsError
from hasn_cli.weights import find_in_folder, hub
from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict


class HASN(
    network.HASN,
    PyTorchModelHubMixin,
    library_name="hasn-cli",
    pipeline_tag="image-to-image",
    tags=["super-resolution"],
    paper_url="https://arxiv.org/abs/2410.09844",
):
    """The network of `hasn_cli.network`, from and to hub repositories and folders.

    `HASN.from_pretrained("OWNER/REPO", scale=2)` takes all that `-w OWNER/REPO` takes; without `scale` it is the one in
    the repository's `config.json`. What `push_to_hub` and `save_pretrained` write, `-w` reads.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> HASN:
        """As the mixin's.

        Raises:
            WeightsError: the weights or `config.json` cannot be used.
        """
        try:
            found: HASN = super().from_pretrained(pretrained_model_name_or_path, **options)
        except RecursionError as error:  # the mixin parses config.json itself
            message = f"{hub.CONFIG} of {pretrained_model_name_or_path} cannot be read (it is nested too deeply)"
            raise WeightsError(message) from error
        return found

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        map_location: str = "cpu",
        scale: int = 4,
        **_: Any,  # strict (it always is), num_features (read off the shapes)
    ) -> HASN:
        """What the mixin calls once it has read the config; raises `WeightsError` as `weights.load_network` does."""
        folder = Path(model_id)
        if folder.is_dir():
            path = find_in_folder(folder, scale)
        else:
            access = hub.Access(None, local_files_only, force_download, cache_dir, token)
            path = hub.fetch(hub.HubId(model_id, revision), scale, access)
        found = network_from_state_dict(load_state_dict_file(path), origin=str(path), scale=scale)
        own = cls(found.scale, found.num_features)
        own.load_state_dict(found.state_dict())
        return own.eval().to(map_location)
