"""Chooses the colours of a GIF's palette, and maps pixels to them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hasn_cli.images.picture import Pixels

_COLORS = 256
_SAMPLES = 1 << 20  # a palette is chosen from about this many pixels
_FREQUENT = 512  # a colour that at least one in this many pixels has gets an entry of its own
_OWN = 128  # the highest number of such entries


def packed(pixels: Pixels) -> NDArray[np.uint32]:
    """Pack …×3 (or 4) bytes into one number per pixel."""
    red, green, blue = (pixels[..., channel].astype(np.uint32) for channel in range(3))
    colors: NDArray[np.uint32] = red << np.uint32(16) | green << np.uint32(8) | blue
    return colors


def table_length(flags: int) -> int:
    """Bytes of a colour table, according to the flags of a GIF's screen or image descriptor; 0 if there is none."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _unpacked(colors: NDArray[np.uint32]) -> Pixels:
    """Unpack numbers to N×3 bytes."""
    return np.stack([colors >> 16 & 255, colors >> 8 & 255, colors & 255], axis=1).astype(np.uint8)


def _distinct(colors: Pixels, most: int) -> Pixels | None:
    """The distinct colours among N×3 colours, in a fixed order; None if there are more than `most`."""
    if len(colors) == 0:
        return np.zeros((0, 3), np.uint8)
    if Image.fromarray(np.ascontiguousarray(colors[None])).getcolors(most) is None:
        return None
    return _unpacked(np.unique(packed(colors)))


class Colors:
    """Collects the colours of all frames: all of them as long as they are few, and a sample.

    Attributes:
        reappears: a pixel becomes transparent again, so its surroundings must be drawn again too.
        exact: the palette contains every colour; set by `palette`.
    """

    def __init__(self) -> None:
        self.reappears = False
        self.exact = False
        self._every: Pixels | None = np.zeros((0, 3), np.uint8)
        self._samples: list[Pixels] = []
        self._stride = 1  # distance between the pixels that are sampled
        self._frames = 0
        self._holes = False  # some pixels within a rectangle must not be drawn

    def note(self, pixels: Pixels, before: Pixels | None) -> None:
        """Add the H×W×4 pixels of a rectangle. `before` are the pixels that were there."""
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
        """N×3 colours for all frames: at most 255, or 256 if no index is needed for transparency.

        None if each frame should have its own palette, because there are too many colours for one. A common palette is
        still returned if `shared` is set, or if parts that are drawn again must keep their colours.
        """
        room = _COLORS - 1 if self._holes or self.reappears else _COLORS
        if self._every is not None and len(self._every) <= room:
            self.exact = True
            return self._every if len(self._every) else np.zeros((1, 3), np.uint8)
        if shared or self.reappears:
            return _reduced(np.concatenate(self._samples), room if self._frames == 1 else _COLORS - 1)
        return None


def few_colors(pixels: Pixels, fresh: NDArray[np.bool_]) -> bool:
    """Whether the H×W×4 pixels to be drawn have few enough colours to keep all of them."""
    return _distinct(pixels[fresh][:, :3], _room(fresh)) is not None


def frame_colors(pixels: Pixels, fresh: NDArray[np.bool_]) -> tuple[Pixels, int | None]:
    """N×3 colours for the pixels of one frame that are drawn, and the transparent index, if there is one."""
    room = _room(fresh)
    colors = pixels[fresh][:, :3]
    palette = _distinct(colors, room)
    if palette is None:
        palette = _reduced(colors[:: max(1, len(colors) // _SAMPLES)], room)
    return palette if len(palette) else np.zeros((1, 3), np.uint8), _COLORS - 1 if room < _COLORS else None


def _room(fresh: NDArray[np.bool_]) -> int:
    return _COLORS if fresh.all() else _COLORS - 1


def _reduced(colors: Pixels, room: int) -> Pixels:
    """Reduce N×3 colours to at most `room`: frequent ones are kept, so flat areas stay flat; the rest is median cut."""
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
    """Map H×W×3 pixels to indices into N×3 colours: exact if possible, otherwise dithered (Floyd and Steinberg)."""
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
