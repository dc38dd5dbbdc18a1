"""What stands still in an animation stays still in its enlargement.

The network looks at the whole frame, so two frames that are equal around a pixel still give slightly different values
there. Here such a pixel keeps the value it had: the result then stems, pixel by pixel, from a whole evaluation of the
frame since which nothing near it has changed. Values are only ever copied, so nothing adds up from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RADIUS = 8  # LR pixels on each side that must be equal: the reach of one of the network's blocks, 3 + 3 + 1 + 1
RENEW = 0.25  # where a smaller share of a frame is as in the first one, the scene has changed
ROWS = 64  # of the result, copied at a time
Pixels = NDArray[Any]


@dataclass(frozen=True)
class _Done:
    """A frame, H×W×C, and its enlargement."""

    small: Pixels
    large: Pixels


class Stillness:
    """Carries over what stands still, from the frame before and from the first frame of the scene.

    The first frame is there for what passes: the background behind it is the same again as it was before. A frame that
    shares little with the first frame takes its place, so two frames and their results are held, however many come.

    Args:
        alpha_counts_alone: colour under wholly transparent pixels is looked at, too.
    """

    def __init__(self, alpha_counts_alone: bool = False) -> None:
        self._exact = alpha_counts_alone
        self._first: _Done | None = None
        self._last: _Done | None = None

    def known(self, small: Pixels) -> Pixels | None:
        """The enlargement of a frame that is as the last one, or as the first of the scene; None for any other."""
        for done in (self._first, self._last):
            if done is not None and not self._differs(done, small).any():
                return done.large
        return None

    def carry_over(self, small: Pixels, large: Pixels) -> Pixels:
        """A frame's enlargement, changed in place: what stands still gets the values that it had."""
        for done in (self._last, self._first):  # the first has the last word: it agrees with what came between
            if done is not None and done.large.shape == large.shape:
                _copy_where(large, done.large, ~_near(self._differs(done, small)))
        return large

    def remember(self, small: Pixels, large: Pixels) -> None:
        """Keep a frame and its final enlargement for those that follow."""
        self._last = _Done(small, large)
        if self._first is None or 1 - self._differs(self._first, small).mean() < RENEW:
            self._first = self._last

    def _differs(self, done: _Done, small: Pixels) -> NDArray[np.bool_]:
        """H×W: where a frame is not as one before."""
        if done.small is small:
            return np.zeros(small.shape[:2], bool)
        if done.small.shape != small.shape or done.small.dtype != small.dtype:
            return np.ones(small.shape[:2], bool)
        differs: NDArray[np.bool_] = (done.small != small).any(axis=2)
        if small.shape[2] in (2, 4) and not self._exact:
            differs &= (done.small[..., -1] > 0) | (small[..., -1] > 0)
        return differs


def _near(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """H×W: whether anything within `RADIUS` is marked, in a square."""
    for axis in (0, 1):
        length = marked.shape[axis]
        counts = np.insert(np.cumsum(marked, axis=axis, dtype=np.int32), 0, 0, axis=axis)
        at = np.arange(length)
        ends = np.minimum(at + RADIUS + 1, length), np.maximum(at - RADIUS, 0)
        marked = np.take(counts, ends[0], axis=axis) > np.take(counts, ends[1], axis=axis)
    return marked


def _copy_where(large: Pixels, earlier: Pixels, still: NDArray[np.bool_]) -> None:
    """Copy an earlier result, of the same shape, to where the H×W pixels that it was made from are marked."""
    if not still.any():
        return
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(large.shape[:2], still.shape, strict=True)
    )
    for start in range(0, len(rows), ROWS):
        part = slice(start, start + ROWS)
        where = still[rows[part]][:, columns]
        np.copyto(large[part], earlier[part], where=where[..., None])
