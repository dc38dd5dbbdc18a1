"""Colours for error maps, from black through purple and orange to pale yellow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HEAT_END = 32
"""Grey levels at which the ramp ends; larger errors look the same."""

STOPS = ((0, 0, 4), (60, 15, 110), (160, 40, 105), (230, 95, 45), (250, 175, 50), (252, 255, 190))
"""sRGB, evenly spaced along the ramp, each lighter than the one before."""


def heat(error: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """H×W of absolute errors in grey levels → H×W×3 sRGB."""
    positions = np.linspace(0, HEAT_END, len(STOPS))
    levels = np.arange(256)
    table = np.stack([np.interp(levels, positions, channel) for channel in zip(*STOPS, strict=True)], axis=1)
    colours: NDArray[np.uint8] = np.rint(table).astype(np.uint8)[error]
    return colours


def heat_css() -> str:
    """The same colours as a CSS gradient, from 0 to `HEAT_END`."""
    return "linear-gradient(90deg, " + ", ".join(f"rgb({r} {g} {b})" for r, g, b in STOPS) + ")"
