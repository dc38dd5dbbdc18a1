"""What writers of animations share."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from hasn_cli.images.picture import Picture, Pixels


def changed_area(before: Pixels | None, now: Pixels) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of the smallest rectangle that holds all that differs; one pixel where nothing does."""
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
    """Durations in whole units; what rounding takes from one frame the next gets, so that the whole lasts as long.

    Args:
        unit: in milliseconds.
        least: what no frame is shortened below that is as long by itself.
    """

    def __init__(self, unit: int, least: int = 0) -> None:
        self._unit = unit
        self._least = least
        self._due = 0.0

    def __call__(self, duration: float | None) -> int:
        """The next frame's, from its duration in milliseconds."""
        alone = (duration or 0) / self._unit
        ticks = max(round(self._due + alone), self._least if round(alone) >= self._least else 0)
        self._due = max(self._due + alone - ticks, -0.5)  # more is no matter of rounding
        return ticks


class Film(Image.Image):
    """A picture's frames as one Pillow image that is sought through, each frame made when its turn comes.

    Pillow's writers ask for a list of images, which would hold every frame at once, but take an image of many frames
    too. `durations` is filled in as the frames come; Pillow reads an entry only after the frame it belongs to.
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
        """Go on to the next frame; asked to go back, stay, since writers do so only when they have finished."""
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
