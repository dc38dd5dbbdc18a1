"""Progress of work that has parts, as one fraction that only grows."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[float], None]
"""Called with the fraction that is done, 0 to 1."""


class Whole:
    """Progress that never goes back, even if work is repeated."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._told = progress, 0.0

    def tell(self, fraction: float) -> None:
        """Report the fraction done, 0 to 1, if it has grown."""
        fraction = min(1.0, fraction)
        if self._progress is not None and fraction > self._told:
            self._told = fraction
            self._progress(fraction)

    def part(self, start: float, share: float) -> Part:
        """Progress of a part of the work, which begins at `start` and is `share` of the whole."""
        return Part(self, start, share)


class Part:
    """A part of the work with progress of its own."""

    def __init__(self, whole: Whole | Part, start: float, share: float) -> None:
        self._whole, self._start, self._share, self._done = whole, start, share, 0.0

    def tell(self, fraction: float) -> None:
        """Report the fraction of this part that is done."""
        self._whole.tell(self._start + self._share * fraction)

    def add(self, fraction: float) -> None:
        """Report that this much more of the part is done."""
        self._done += fraction
        self.tell(self._done)

    def part(self, start: float, share: float) -> Part:
        """A part of this part."""
        return Part(self, start, share)
