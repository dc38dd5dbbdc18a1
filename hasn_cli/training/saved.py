"""A run's checkpoint, read as a file that may be a stranger's: it holds tensors and numbers, or it is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hasn_cli.errors import HasnError
from hasn_cli.weights.pytorch import read_pytorch_file

MOST_BYTES = 1 << 30  # a run of three scales takes some 30 MB
MOST_DESCRIPTION = 16 << 20  # of which describe the tensors and hold the log


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `torch.save` put there, a dict with an integer `step` and a dict `plan`.

    Raises:
        HasnError: it is damaged, too large, wants to run code, or holds something else.
    """
    with understood(path):
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise ValueError("no regular file, or too large")
        state = read_pytorch_file(path, MOST_DESCRIPTION)
        if not (isinstance(state, dict) and type(state["step"]) is int and isinstance(state["plan"], dict)):
            raise ValueError("neither a step nor a plan")
    return state


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong over what a checkpoint holds into one error that names it."""
    try:
        yield
    except Exception as error:
        hint = "give another folder, or delete the file to begin anew"
        if type(error) is HasnError:  # it says what is wrong already
            raise
        raise HasnError(f"{path} is damaged, or no checkpoint of a run", hint) from error


def load_finite(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict`, for numbers only.

    Raises:
        ValueError: there are others.
    """
    network.load_state_dict(state)
    if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
        raise ValueError("values that are not finite")
