"""Batches of LR/HR patches, cut at random from pictures in memory.

A batch depends only on the seed and its number. A run that was killed therefore continues with the same patches that it
would have seen, however many worker processes cut them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hasn_cli.resize import resize
from hasn_cli.training import degrade
from hasn_cli.training.degrade import Image
from hasn_cli.training.graphics import graphic

MARGIN = 2  # LR pixels around a patch that bicubic reads; with them a patch equals that part of the whole LR picture


class Batch(NamedTuple):
    """`lr` N×3×P×P and `hr` N×3×sP×sP, uint8 RGB."""

    scale: int
    lr: Tensor
    hr: Tensor
    photo: float = 1.0  # share of the trained weights in the blend that learns from the batch


class Place(NamedTuple):
    """A square of one of the pictures, in pixels."""

    picture: int
    top: int
    left: int
    side: int


class Draw(NamedTuple):
    """The random choices behind one patch."""

    places: tuple[Place, ...]  # the candidates; the most detailed one is used
    colours: tuple[int, ...]  # the order of red, green and blue
    turn: int  # one of the eight flips and turns; see `turned`
    seed: int | None = None  # for `degrade` and `graphics`; None with the clean bicubic reduction


@dataclass(frozen=True)
class PatchPlan:
    """How patches are cut and augmented."""

    side: int = 48  # of an LR patch, in pixels
    batch: int = 8  # patches in a batch
    candidates: int = 3  # random places for each patch, of which the most detailed one is used
    shrink: float = 2.0  # half of the patches come from a picture reduced by up to this factor
    recolour: bool = True  # shuffle red, green and blue in half of the patches
    seed: int = 0
    degrade: Literal["bicubic", "photo"] = "bicubic"  # how LR is made; see `degrade.py` for "photo"
    blended: bool = False  # each batch is of one of `degrade.BANDS`, for a blend of two sets of weights

    @property
    def margin(self) -> int:
        """LR pixels around a patch that are needed to make it."""
        return MARGIN if self.degrade == "bicubic" else degrade.MARGIN

    def smallest_side(self, scale: int) -> int:
        """The shortest side that a picture may have, in pixels."""
        return scale * (self.side + 2 * self.margin)


class Drawing:
    """Draws the places of batch number i, for any i.

    Args:
        pictures: H×W×3 uint8 RGB; each is drawn in proportion to its area.
        scales: one or more of 2, 3, 4, used in turn.
        plan: how to draw.
    """

    def __init__(self, pictures: Sequence[Image], scales: Sequence[int], plan: PatchPlan) -> None:
        self.sizes = [picture.shape[:2] for picture in pictures]
        self.scales = tuple(scales)
        self.plan = plan
        areas = np.array([height * width for height, width in self.sizes], dtype=np.float64)
        self._shares = np.cumsum(areas) / areas.sum()

    def batch(self, index: int) -> tuple[int, list[Draw]]:
        """The scale of batch number `index`, and its draws."""
        random = np.random.default_rng((self.plan.seed, index))
        scale = self.scales[index % len(self.scales)]
        return scale, [self._draw(random, scale) for _ in range(self.plan.batch)]

    def _draw(self, random: np.random.Generator, scale: int) -> Draw:
        wider = 1 + max(0.0, random.uniform(-1, 1)) * (self.plan.shrink - 1)
        side = round(self.plan.smallest_side(scale) * wider)
        places = tuple(self._place(random, side) for _ in range(self.plan.candidates))
        shuffled = self.plan.recolour and random.random() < 0.5
        colours = tuple(random.permutation(3).tolist()) if shuffled else (0, 1, 2)
        turn = int(random.integers(8))
        return Draw(places, colours, turn, None if self.plan.degrade == "bicubic" else int(random.integers(2**63)))

    def _place(self, random: np.random.Generator, side: int) -> Place:
        """A square of a picture, `side` pixels high and wide, or as large as the picture allows."""
        picture = int(np.searchsorted(self._shares, random.random(), side="right"))
        height, width = self.sizes[picture]
        side = min(side, height, width)
        top, left = (int(random.integers(length - side + 1)) for length in (height, width))
        return Place(picture, top, left, side)


class Patches(Dataset[Batch]):
    """Batch number i, for any i, cut on the CPU. The arguments are those of `Drawing`."""

    def __init__(self, pictures: Sequence[Image], scales: Sequence[int], plan: PatchPlan) -> None:
        self.pictures = pictures
        self.drawing = Drawing(pictures, scales, plan)

    def __getitem__(self, index: int) -> Batch:
        scale, draws = self.drawing.batch(index)
        plan = self.drawing.plan
        band = degrade.band(plan.seed, index) if plan.blended else None
        pairs = [self._pair(draw, scale, band) for draw in draws]
        lr, hr = (torch.from_numpy(np.stack(side).transpose(0, 3, 1, 2)) for side in zip(*pairs, strict=True))
        return Batch(scale, lr, hr, 1.0 if band is None else band.photo)

    def _pair(self, draw: Draw, scale: int, band: degrade.Band | None) -> tuple[Image, Image]:
        if draw.seed is None:
            hr = self._photograph(draw, scale)
            lr = resize(hr, scale=1 / scale)[MARGIN:-MARGIN, MARGIN:-MARGIN]
        else:
            lr, hr = self._degraded(draw, scale, np.random.default_rng(draw.seed), band)
        cut = self.drawing.plan.margin * scale
        return turned(lr, draw.turn), turned(hr[cut:-cut, cut:-cut], draw.turn)

    def _photograph(self, draw: Draw, scale: int) -> Image:
        """HR with its margin: the most detailed of the candidates."""
        side = self.drawing.plan.smallest_side(scale)
        hr = max(map(self._window, draw.places), key=_detail)
        if len(hr) > side:
            hr = resize(hr, size=(side, side))
        return hr[..., draw.colours]

    def _degraded(
        self, draw: Draw, scale: int, random: np.random.Generator, band: degrade.Band | None
    ) -> tuple[Image, Image]:
        """LR without and HR with its margin."""
        if random.random() >= degrade.GRAPHICS:
            hr = self._photograph(draw, scale)
            return degrade.degraded(hr, scale, random, band), hr
        margin = self.drawing.plan.margin
        lr, hr = graphic(self.drawing.plan.side + 2 * margin, scale, random)
        compressing = random.random() < degrade.GRAPHICS_COMPRESSED
        if compressing or (band is not None and band.photo != degrade.UNCOMPRESSED):
            return degrade.compressed(lr, random, band), hr
        return lr[margin:-margin, margin:-margin], hr

    def _window(self, place: Place) -> Image:
        picture, top, left, side = place
        return self.pictures[picture][top : top + side, left : left + side]


def _detail(patch: Image) -> float:
    green = patch[::2, ::2, 1].astype(np.float32)
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())


def turned(patch: NDArray[np.generic], turn: int) -> Image:
    """One of the eight flips and turns of H×W×C: 4 swaps the axes, then 1 flips the rows and 2 the columns."""
    if turn & 4:
        patch = patch.transpose(1, 0, 2)
    return patch[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1].astype(np.uint8)
