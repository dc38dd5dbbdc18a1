"""`HASN` with `from_pretrained`, `save_pretrained` and `push_to_hub`, as usual in the Hugging Face ecosystem.

This is a separate class, because the mixin imports the whole hub client. That takes a third of a second, which programs
that do not use the hub should not have to pay.
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
    """The network of `hasn_cli.network`, loaded from and saved to hub repositories and folders.

    `HASN.from_pretrained("OWNER/REPO", scale=2)` reads the same repositories as `-w OWNER/REPO`. Without `scale`, the
    repository's `config.json` tells the scale. `-w` reads what `push_to_hub` and `save_pretrained` write.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> HASN:
        """Load the network; see `PyTorchModelHubMixin.from_pretrained`.

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
        **_: Any,  # strict (always True), num_features (known from the shapes)
    ) -> HASN:
        """Called by the mixin after it has read the config. Raises `WeightsError` like `weights.load_network`."""
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
