"""Evaluates the network on pictures: exactly, fast, and in bounded memory.


The names below are imported when they are first used: `planning` and `tiling` do without PyTorch, and so can those who
only want a plan.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasn_cli.inference.planning import Plan
    from hasn_cli.inference.progress import Progress
    from hasn_cli.inference.upscaler import Upscaler

__all__ = ["Plan", "Progress", "Upscaler"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("hasn_cli.inference.upscaler"), name)
