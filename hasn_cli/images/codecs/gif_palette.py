"""Which colours a GIF gets, and which of them stands for which pixel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hasn_cli.images.picture import Pixels

_COLORS = 256
_SAMPLES = 1 << 20  # pixels, about, from which a palette is chosen
_FREQUENT = 512  # a colour that at least one pixel in so many has gets an entry of its own
_OWN = 128  # the most entries that are given away so


def packed(pixels: Pixels) -> NDArray[np.uint32]:
    """…×3 (or 4) bytes to one number a pixel."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    colors: NDArray[np.uint32] = red << np.uint32(16) | green << np.uint32(8) | blue
    return colors


def _unpacked(colors: NDArray[np.uint32]) -> Pixels:
    """Numbers to N×3 bytes."""
    return np.stack([colors >> 16 & 255, colors >> 8 & 255, colors & 255], axis=1).astype(np.uint8)


def _distinct(colors: Pixels, most: int) -> Pixels | None:
    """The distinct ones of N×3 colours, in a fixed order; None where there are more than `most`."""
    if len(colors) == 0:
        return np.zeros((0, 3), np.uint8)
    if Image.fromarray(np.ascontiguousarray(colors[None])).getcolors(most) is None:
        return None
    return _unpacked(np.unique(packed(colors)))


class Colors:
    """The colours of all frames: every one of them while they are few, and a sample.

    Attributes:
        reappears: something becomes transparent again, so that its surroundings are drawn again too.
        exact: `palette` holds every colour; known once that has been asked for.
    """

    def __init__(self) -> None:
        self.reappears = False
        self.exact = False
        self._every: Pixels | None = np.zeros((0, 3), np.uint8)
        self._samples: list[Pixels] = []
        self._stride = 1  # between the pixels that are sampled
        self._frames = 0
        self._holes = False  # something has to be left out of a rectangle

    def note(self, pixels: Pixels, before: Pixels | None) -> None:
        """Take in the H×W×4 pixels of a rectangle, and what was there before."""
        visible = pixels[..., 3] > 0
        changed = visible if before is None else visible & (pixels != before).any(axis=2)
        self._holes |= not visible.all()
        colors = pixels[changed][:, :3]
        if self._every is not None:
            found = _distinct(colors, _COLORS)
            self._every = None if found is None else _distinct(np.concatenate([self._every, found]), _COLORS)
        self._frames += 1
        self._samples.append(colors[:: self._stride])
        while sum(map(len, self._samples)) > 2 * _SAMPLES:
            self._samples = [np.concatenate(self._samples)[::2]]
            self._stride *= 2

    def palette(self, shared: bool) -> Pixels | None:
        """N×3 colours for all frames, at most 255, or 256 where no index need stand for transparency.

        None where each frame had better have its own: there are too many colours for one palette, unless that is
        asked for with `shared`, or parts that are drawn again have to be as they were.
        """
        room = _COLORS - 1 if self._holes or self.reappears else _COLORS
        if self._every is not None and len(self._every) <= room:
            self.exact = True
            return self._every if len(self._every) else np.zeros((1, 3), np.uint8)
        if shared or self.reappears:
            return _reduced(np.concatenate(self._samples), room if self._frames == 1 else _COLORS - 1)
        return None


def few_colors(pixels: Pixels, fresh: NDArray[np.bool_]) -> bool:
    """Whether the H×W×4 pixels that are to be drawn have so few colours that none needs to be changed."""
    return _distinct(pixels[fresh][:, :3], _room(fresh)) is not None


def frame_colors(pixels: Pixels, fresh: NDArray[np.bool_]) -> tuple[Pixels, int | None]:
    """N×3 colours for one frame's pixels that are to be drawn, and the index that leaves a pixel as it is, if any."""
    room = _room(fresh)
    colors = pixels[fresh][:, :3]
    palette = _distinct(colors, room)
    if palette is None:
        palette = _reduced(colors[:: max(1, len(colors) // _SAMPLES)], room)
    return palette if len(palette) else np.zeros((1, 3), np.uint8), _COLORS - 1 if room < _COLORS else None


def _room(fresh: NDArray[np.bool_]) -> int:
    return _COLORS if fresh.all() else _COLORS - 1


def _reduced(colors: Pixels, room: int) -> Pixels:
    """At most `room` colours for N×3: the frequent ones as they are, so that flat areas stay flat, and median cut."""
    values, counts = np.unique(packed(colors), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_OWN]
    own = values[order[counts[order] * _FREQUENT >= len(colors)]]
    others = colors[~np.isin(packed(colors), own)]
    palette = _unpacked(own)
    if len(others):
        reduced = Image.fromarray(np.ascontiguousarray(others[None])).quantize(
            room - len(own), Image.Quantize.MEDIANCUT
        )
        entries = np.frombuffer(bytes(reduced.getpalette("RGB") or []), np.uint8).reshape(-1, 3)
        palette = np.concatenate([palette, entries[: room - len(own)]])
    return palette


def nearest(pixels: Pixels, palette: Pixels) -> Pixels:
    """H×W×3 to indices into N×3 colours: the colour itself where it is there, else dithered (Floyd and Steinberg)."""
    wanted, known = packed(pixels), packed(palette)
    order = np.argsort(known, kind="stable")
    at = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
    exact = order[at].astype(np.uint8)
    found = known[exact] == wanted
    if found.all():
        return exact
    table = Image.new("P", (1, 1))
    table.putpalette(palette.tobytes())
    image = Image.fromarray(np.ascontiguousarray(pixels))
    dithered = np.array(image.quantize(len(palette), palette=table, dither=Image.Dither.FLOYDSTEINBERG))
    return np.where(found, exact, dithered)
