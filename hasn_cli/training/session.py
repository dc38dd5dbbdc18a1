"""Sets up a `Trainer` from folders and files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasn_cli.batch.walk import OnSkip
from hasn_cli.errors import UsageError, WeightsError
from hasn_cli.evaluation.pictures import list_pictures, read_all
from hasn_cli.network import NUM_FEATURES
from hasn_cli.training.recipe import Recipe
from hasn_cli.training.trainer import Trainer
from hasn_cli.weights import resolve
from hasn_cli.weights.checkpoint import StateDict, load_state_dict_file, network_from_state_dict

SMALLEST_VALID = 64  # shortest side of a validation picture, in pixels


def prepare(
    data_dir: Path,
    output: Path,
    recipe: Recipe,
    *,
    valid: Path | None = None,
    valid_side: int = 384,
    on_skip: OnSkip,
) -> Trainer:
    """Read all pictures into memory and set up a run, or continue the run in `output`.

    Args:
        data_dir: HR pictures, including those in subfolders.
        output: the run's folder.
        recipe: how to train. If its initial weights are a name or a folder, each scale starts from its own file. A
            single file may be of any scale.
        valid: HR pictures to choose the best weights by.
        valid_side: only the middle of each validation picture is used, up to so many HR pixels a side.
        on_skip: called with each picture that is corrupt or too small, and why.

    Raises:
        UsageError: a folder is missing or holds nothing usable.
        WeightsError: the initial weights cannot be loaded, or are not those of a HASN of the published width.
    """
    min_side = recipe.patches.smallest_side(max(recipe.scales))
    _check_folder(output)
    pictures = list(read_all(list_pictures(data_dir, on_skip), min_side, on_skip))
    if not pictures:
        raise UsageError(f"{data_dir} holds no picture of at least {min_side}×{min_side} pixels")
    chosen_by = [] if valid is None else [middle(p, valid_side) for p in _valid_pictures(valid, on_skip)]
    initial = None if recipe.initial is None else partial(_states, recipe.initial, recipe.scales)
    partners = None if recipe.blend_with is None else _states(recipe.blend_with, recipe.scales)
    return Trainer(pictures, chosen_by, output, recipe, initial, partners)


def _states(weights: str, scales: tuple[int, ...]) -> dict[int, StateDict]:
    return {scale: _state(resolve(weights, scale).path) for scale in scales}


def _state(path: Path) -> StateDict:
    """The tensors of a file, which must be a complete HASN of the published width."""
    network = network_from_state_dict(load_state_dict_file(path), origin=str(path))
    if network.num_features != NUM_FEATURES:
        raise WeightsError(f"{path} is {network.num_features} channels wide, and only {NUM_FEATURES} can be trained")
    return network.state_dict()


def middle(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The middle of H×W×C, at most `side` pixels high and wide."""
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side].copy()


def _check_folder(output: Path) -> None:
    """Check that a folder can be made at `output`, before the pictures are read, which may take minutes."""
    existing = next(path for path in (output.absolute(), *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"{existing} is a file, not a folder", "choose another folder with -o")


def _valid_pictures(folder: Path, on_skip: OnSkip) -> list[NDArray[np.uint8]]:
    pictures = list(read_all(list_pictures(folder, on_skip), SMALLEST_VALID, on_skip))
    if not pictures:
        raise UsageError(f"{folder} holds no usable picture")
    return pictures
