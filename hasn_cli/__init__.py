"""hasn: faithful, exact image super-resolution with the Hybrid Attention Separable Network.

    from hasn_cli import upscale

    large = upscale("photo.jpg", scale=4)  # a Pillow image for a path or a Pillow image, an array for an array

Nothing heavy is imported before it is used: each name below is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasn_cli.api import upscale
    from hasn_cli.errors import HasnError
    from hasn_cli.inference import Upscaler
    from hasn_cli.weights import load_network
    from hasn_cli.weights.pretrained import HASN

__version__ = "0.1.0"

_HOMES = {
    "HASN": "hasn_cli.weights.pretrained",
    "HasnError": "hasn_cli.errors",
    "Upscaler": "hasn_cli.inference",
    "load_network": "hasn_cli.weights",
    "upscale": "hasn_cli.api",
}

__all__ = ["HASN", "HasnError", "Upscaler", "__version__", "load_network", "upscale"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
