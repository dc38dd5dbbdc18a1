"""Keeps the parts of an animation that do not move free of flicker when it is enlarged.

The network looks at the whole frame. So two frames that are equal around a pixel still give slightly different values
there. This module lets such a pixel keep its earlier value: each pixel of the result comes from a full evaluation of
the last frame in which something near it changed. Values are only copied, so errors do not add up over the frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasn_cli.images.picture import Pixels

RADIUS = 8  # input pixels on each side that must be equal: the reach of one block of the network, 3 + 3 + 1 + 1
RENEW = 0.25  # if a smaller part of a frame equals the first one, the scene has changed
ROWS = 64  # rows of the result that are copied at a time


@dataclass(frozen=True)
class _Done:
    """A frame, H×W×C, and its enlargement."""

    small: Pixels
    large: Pixels


class Stillness:
    """Carries over unchanged parts from the frame before and from the first frame of the scene.

    The first frame is kept because moving objects uncover a background that was visible before. A frame that has little
    in common with the first frame replaces it. So only two frames and their results are kept in memory.

    Args:
        alpha_counts_alone: also compare the colour under fully transparent pixels.
    """

    def __init__(self, alpha_counts_alone: bool = False) -> None:
        self._exact = alpha_counts_alone
        self._first: _Done | None = None
        self._last: _Done | None = None

    def known(self, small: Pixels) -> Pixels | None:
        """The result for a frame that equals the last one or the first one of the scene; otherwise None."""
        for done in (self._first, self._last):
            if done is not None and not self._differs(done, small).any():
                return done.large
        return None

    def carry_over(self, small: Pixels, large: Pixels) -> Pixels:
        """Change a frame's result in place: unchanged parts get their earlier values."""
        for done in (self._last, self._first):  # the first frame comes last, because its values take precedence
            if done is not None and done.large.shape == large.shape:
                _copy_where(large, done.large, ~_near(self._differs(done, small)))
        return large

    def remember(self, small: Pixels, large: Pixels) -> None:
        """Keep a frame and its final result for the frames that follow."""
        self._last = _Done(small, large)
        if self._first is None or 1 - self._differs(self._first, small).mean() < RENEW:
            self._first = self._last

    def _differs(self, done: _Done, small: Pixels) -> NDArray[np.bool_]:
        """H×W: where a frame differs from an earlier one."""
        if done.small is small:
            return np.zeros(small.shape[:2], bool)
        if done.small.shape != small.shape or done.small.dtype != small.dtype:
            return np.ones(small.shape[:2], bool)
        differs: NDArray[np.bool_] = (done.small != small).any(axis=2)
        if small.shape[2] in (2, 4) and not self._exact:
            differs &= (done.small[..., -1] > 0) | (small[..., -1] > 0)
        return differs


def _near(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """H×W: whether a marked pixel lies within `RADIUS`, measured in a square."""
    for axis in (0, 1):
        length = marked.shape[axis]
        counts = np.insert(np.cumsum(marked, axis=axis, dtype=np.int32), 0, 0, axis=axis)
        at = np.arange(length)
        ends = np.minimum(at + RADIUS + 1, length), np.maximum(at - RADIUS, 0)
        marked = np.take(counts, ends[0], axis=axis) > np.take(counts, ends[1], axis=axis)
    return marked


def _copy_where(large: Pixels, earlier: Pixels, still: NDArray[np.bool_]) -> None:
    """Copy an earlier result of the same shape to the places whose H×W input pixels are marked as `still`."""
    if not still.any():
        return
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(large.shape[:2], still.shape, strict=True)
    )
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        where = still[rows[part]][:, columns]
        np.copyto(large[part], earlier[part], where=where[..., None])
