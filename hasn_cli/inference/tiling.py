"""Where a picture is cut when it must be, and how the pieces are joined without a seam."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tile:
    """A rectangle of the LR picture, in LR pixels: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int


def cut(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Cover [0, length) by equal spans of at most `tile` sharing at least `overlap`; the whole where it fits."""
    if tile >= length:
        return [(0, length)]
    step = max(1, tile - overlap)
    count = 1 + -(-(length - tile) // step)
    starts = [round(i * (length - tile) / (count - 1)) for i in range(count)]
    return [(start, start + tile) for start in starts]


def plan_tiles(size: tuple[int, int], tile: int, overlap: int) -> Iterator[Tile]:
    """Tiles of side `tile` over an LR picture of `size` (height, width), row by row."""
    for top, bottom in cut(size[0], tile, overlap):
        for left, right in cut(size[1], tile, overlap):
            yield Tile(top, bottom, left, right)


def ramp(length: int, overlap: int, fade_in: bool, fade_out: bool) -> NDArray[np.float32]:
    """A smooth window over `length` pixels, in (0, 1]: raised cosine over `overlap` at the faded ends, else 1."""
    window = np.ones(length, np.float32)
    fade = 0.5 - 0.5 * np.cos(np.pi * (np.arange(overlap) + 0.5) / max(1, overlap))
    if fade_in:
        window[:overlap] = fade
    if fade_out:
        window[length - overlap :] *= fade[::-1]
    return window
