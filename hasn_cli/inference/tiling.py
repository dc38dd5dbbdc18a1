"""Where a picture is cut if it exceeds the memory budget, and how the tiles are joined without a seam.

Tiles change the picture a little, because the network looks at the whole of its input. They are therefore as large as
the budget allows. Each is evaluated exactly, and where two overlap, the result is blended along a raised cosine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasn_cli.errors import UsageError

Image = NDArray[Any]
SMALLEST_TILE = 24  # LR pixels
LARGE_TILE = 192  # the program chooses at least this, if memory allows
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """LR rows or columns [start, stop) of a tile, the first `fade_in` and last `fade_out` shared with neighbours."""

    start: int
    stop: int
    fade_in: int = 0
    fade_out: int = 0

    def window(self, scale: int) -> Floats:
        """The tile's weight at each SR row or column: 1, or a raised cosine where shared, which adds up to 1."""
        window = np.ones((self.stop - self.start) * scale, np.float32)
        if self.fade_in:
            window[: self.fade_in * scale] = _rise(self.fade_in * scale)
        if self.fade_out:
            window[-self.fade_out * scale :] = _rise(self.fade_out * scale)[::-1]
        return window


def check_tile(tile: int | None, overlap: int | None) -> None:
    """Check that tiles of `tile` LR pixels, or of any size the program may choose, can share `overlap`.

    Raises:
        UsageError: the tiles are too small for this overlap.
    """
    if tile is not None and tile != 0 and tile < SMALLEST_TILE:
        raise UsageError(f"tiles of {tile} px are too small", f"use at least {SMALLEST_TILE}, or 0 for no tiles")
    if overlap is not None and not 0 <= overlap <= (tile or LARGE_TILE) // 3:
        raise UsageError(f"an overlap of {overlap} px does not suit the tiles", "use at most a third of the tile")


def _rise(length: int) -> Floats:
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)).astype(np.float32)


def cut(length: int, tile: int, overlap: int) -> list[Span]:
    """Cover [0, length) by nearly equal spans of at most `tile`, neighbours sharing `overlap`.

    Args:
        tile: at least three times `overlap`, so that no more than two spans meet anywhere.

    Raises:
        ValueError: `tile` is smaller than that.
    """
    if tile < 3 * overlap:
        raise ValueError(f"tiles of {tile} px cannot share {overlap}")
    if length <= tile:
        return [Span(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    steps = [(length - overlap) * i // count for i in range(count + 1)]
    return [
        Span(start, stop, overlap if i else 0, overlap if i < count - 1 else 0)
        for i, (start, stop) in enumerate((low, high + overlap) for low, high in pairwise(steps))
    ]


class Output:
    """The array that results are written to, with conversion to its type.

    Args:
        array: sH×sW×C, integers or floats.
        share: None to write values, or the factor with which they are added to the array (floats only).
        margin: SR rows above the array and columns left of it that are not kept; what lies below and right is not kept
            either.
    """

    def __init__(self, array: Image, share: float | None = None, margin: int = 0) -> None:
        self.array, self.share, self.margin = array, share, margin

    def put(self, top: int, left: int, values: Floats) -> None:
        """Write h×w×C values, floats about [0, 1], at SR position (top, left); may overwrite `values`."""
        top, left = top - self.margin, left - self.margin
        values = values[max(0, -top) :, max(0, -left) :]
        top, left = max(0, top), max(0, left)
        target = self.array[top : top + len(values), left : left + values.shape[1]]
        values = values[: target.shape[0], : target.shape[1]]
        if self.share is not None:
            target += values * np.float32(self.share)
        else:
            target[...] = quantised(values, self.array.dtype)


def quantised(values: Floats, dtype: np.dtype[Any]) -> Image:
    """Floats around [0, 1] → integers, rounded and clipped, or unchanged floats; may overwrite `values`."""
    if dtype.kind == "f":
        return values
    values *= np.float32(np.iinfo(dtype).max)
    np.rint(values, out=values)
    np.clip(values, 0, np.iinfo(dtype).max, out=values)
    result: Image = values.astype(dtype)
    return result


class Canvas:
    """Joins the results of tiles, which come row by row and from left to right.

    Only the parts that two or four tiles share are held, in floats, until the last of these tiles is done. Everything
    else is written at once.

    Args:
        output: the result.
        rows, columns: from `cut`.
        channels: of the picture.
    """

    def __init__(
        self, output: Output, rows: Sequence[Span], columns: Sequence[Span], scale: int, channels: int
    ) -> None:
        self.output, self.rows, self.columns, self.scale, self.channels = output, rows, columns, scale, channels
        self._shared_rows: dict[int, Floats] = {}  # above tile row i: (overlap·s)×sW×C
        self._shared_columns: dict[
            int, Floats
        ] = {}  # left of column j, for this row of tiles: tile height×(overlap·s)×C

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Rows and columns of tiles in the order of evaluation; a tile is finished when the next one is requested."""
        for i, row in enumerate(self.rows):
            self._open(self._shared_rows, i + 1, (row.fade_out, self.columns[-1].stop))
            for j, column in enumerate(self.columns):
                self._open(self._shared_columns, j + 1, (row.stop - row.start, column.fade_out))
                yield i, j
                self._close_column(i, j)
            if row.fade_in:
                self.output.put(row.start * self.scale, 0, self._shared_rows.pop(i))

    def put(self, tile: tuple[int, int], top: int, values: Floats) -> None:
        """SR rows from `top` of a tile's result, over its whole width: h×w×C."""
        (i, j), s = tile, self.scale
        row, column = self.rows[i], self.columns[j]
        length = (row.stop - row.start) * s
        weights, across = row.window(s), column.window(s)[:, None]
        for lo, hi, shared in (
            (0, row.fade_in * s, self._shared_rows.get(i)),
            (row.fade_in * s, length - row.fade_out * s, None),
            (length - row.fade_out * s, length, self._shared_rows.get(i + 1)),
        ):
            first, last = max(lo, top), min(hi, top + len(values))
            if first >= last:
                continue
            part = values[first - top : last - top]
            if shared is None:
                self._put_middle(tile, first, part, across)
            else:
                left = column.start * s
                weighted = part * (across * weights[first:last, None, None])
                shared[first - lo : last - lo, left : left + part.shape[1]] += weighted

    def _put_middle(self, tile: tuple[int, int], top: int, values: Floats, across: Floats) -> None:
        """Write rows that no other row of tiles shares."""
        (i, j), s = tile, self.scale
        column = self.columns[j]
        fade_in, fade_out = column.fade_in * s, column.fade_out * s
        width = values.shape[1]
        if fade_in:
            self._shared_columns[j][top : top + len(values)] += values[:, :fade_in] * across[:fade_in]
        if fade_out:
            shared = values[:, width - fade_out :] * across[width - fade_out :]
            self._shared_columns[j + 1][top : top + len(values)] += shared
        middle = values[:, fade_in : width - fade_out]
        self.output.put(self.rows[i].start * s + top, column.start * s + fade_in, middle)

    def _open(self, shared: dict[int, Floats], index: int, size: tuple[int, int]) -> None:
        if min(size) > 0:
            shared[index] = np.zeros((size[0] * self.scale, size[1] * self.scale, self.channels), np.float32)

    def _close_column(self, i: int, j: int) -> None:
        """Write what tile column j shares with the previous one, except rows that another row of tiles shares."""
        if self.columns[j].fade_in:
            row, s = self.rows[i], self.scale
            shared = self._shared_columns.pop(j)[row.fade_in * s : (row.stop - row.start - row.fade_out) * s]
            self.output.put((row.start + row.fade_in) * s, self.columns[j].start * s, shared)
