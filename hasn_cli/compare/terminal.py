"""The comparison in a terminal, with kitty's protocol, sixels or half blocks, as the terminal supports."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasn_cli.compare.comparison import around

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from hasn_cli.compare.comparison import Comparison, Spot

SPOTS = 3
WIDEST = 120  # columns


def drawer(console: Console) -> type[Any] | None:
    """The class that can draw a picture on this terminal, or None.

    The terminal is asked (primary device attributes, kitty's query), so its input and output must be connected to us.
    One that answers neither query gets half blocks, if it has enough colours.
    """
    if not console.is_terminal or console.is_dumb_terminal or console.no_color or not _has_both_ends():
        return None
    if console.color_system not in ("256", "truecolor"):
        return None
    from textual_image.renderable import Image  # asks the terminal when it is imported

    return Image


def _has_both_ends() -> bool:
    """Whether we can write to the terminal and read from it, and it has a size (a bare pseudo-terminal has none)."""
    try:
        return sys.__stdin__ is not None and sys.__stdin__.isatty() and os.get_terminal_size(1).columns > 0
    except (OSError, ValueError):
        return False


def preview(comparison: Comparison, draw: type[Any], columns: int) -> Iterator[RenderableType]:
    """Show the spots that differ most, with the views side by side.

    Args:
        comparison: the comparison to show.
        draw: the result of `drawer`.
        columns: the terminal's width in characters.
    """
    from rich.text import Text

    views = comparison.views[:3]
    width = (min(columns, WIDEST) - len(views)) // len(views)  # of each view, in columns
    pixels = width * _pixels_a_column(draw)
    for index, spot in enumerate(comparison.spots[:SPOTS]):
        place = f"{index + 1}. at {spot.left + comparison.origin[1]}, {spot.top + comparison.origin[0]}"
        yield Text("".join(f"{view.label[: width - 1]:<{width + 1}}" for view in views), style="bold")
        strip = _strip([view.rgb for view in views], spot, pixels, pixels // width)
        yield draw(strip, width=len(views) * (width + 1) - 1, height="auto")
        yield Text(f"{place}; mean difference {spot.difference:.1f} grey levels\n", style="dim")


def _strip(views: list[NDArray[np.uint8]], spot: Spot, side: int, gap: int) -> Any:
    """One picture with a square from each view, each `side` pixels wide, with empty columns between them."""
    from PIL import Image

    strip = Image.new("RGB", (len(views) * (side + gap) - gap, side))
    for index, pixels in enumerate(views):
        square = Image.fromarray(np.ascontiguousarray(around(pixels, spot, side)))
        strip.paste(square.resize((side, side), Image.Resampling.NEAREST), (index * (side + gap), 0))
    return strip


def _pixels_a_column(draw: type[Any]) -> int:
    if "halfcell" in draw.__module__:
        return 1
    from textual_image._terminal import get_cell_size

    return int(get_cell_size().width)
