"""Helpers that the writers of animations share."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from hasn_cli.images.picture import Picture, Pixels


def changed_area(before: Pixels | None, now: Pixels) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the smallest rectangle with all differences; a single pixel if there are none."""
    if before is None:
        return 0, 0, now.shape[0], now.shape[1]
    differs = (before != now).any(axis=2)
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if not len(rows):
        return 0, 0, 1, 1
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def to_image(pixels: Pixels) -> Image.Image:
    """8-bit H×W×C pixels as a Pillow image; gray with alpha becomes RGBA, which more formats know."""
    if pixels.shape[2] == 2:
        pixels = pixels[..., (0, 0, 0, 1)]
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


class Ticks:
    """Converts durations to whole units. Rounding errors are carried to the next frame, so the total stays the same.

    Args:
        unit: in milliseconds.
        least: a frame that lasts at least this many units is not shortened below it.
    """

    def __init__(self, unit: int, least: int = 0) -> None:
        self._unit = unit
        self._least = least
        self._due = 0.0

    def __call__(self, duration: float | None) -> int:
        """The next frame's duration in units, from its duration in milliseconds."""
        alone = (duration or 0) / self._unit
        ticks = max(round(self._due + alone), self._least if round(alone) >= self._least else 0)
        self._due = max(self._due + alone - ticks, -0.5)  # a larger difference does not come from rounding
        return ticks


class Film(Image.Image):
    """A picture's frames as one seekable Pillow image. Each frame is computed when it is needed.

    Pillow's writers accept a list of images, which would keep every frame in memory, or one image with many frames.
    `durations` is filled in frame by frame; Pillow reads an entry only after the frame it belongs to.
    """

    def __init__(self, picture: Picture) -> None:
        super().__init__()
        self._coming = iter(picture.frames)
        self._at = -1
        self.n_frames = picture.frame_count
        self.is_animated = True
        self.durations = [0] * picture.frame_count
        self._ticks = Ticks(1)
        self.seek(0)

    def seek(self, frame: int) -> None:
        """Go on to a later frame. Seeking back does nothing: writers do it only when they have finished."""
        if frame >= self.n_frames:
            raise EOFError
        while self._at < frame:
            shown = next(self._coming)
            self._at += 1
            self.durations[self._at] = self._ticks(shown.duration)
            image = to_image(shown.pixels)
            image = image.convert("RGB") if image.mode == "L" else image
            self.im: Any = image.im
            self._mode = image.mode
            self._size = image.size

    def tell(self) -> int:
        return max(self._at, 0)
