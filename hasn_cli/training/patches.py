"""Batches of LR/HR patches cut at random from pictures in memory.

A batch depends on the seed and its number alone, so a run goes on after a kill with the very patches it would have
seen, however many worker processes cut them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from hasn_cli.evaluation.bicubic import resize

MARGIN = 2  # LR pixels that bicubic reads beyond a patch: with them it equals that place of the whole LR picture


class Batch(NamedTuple):
    """`lr` N×3×P×P and `hr` N×3×sP×sP, uint8 RGB."""

    scale: int
    lr: Tensor
    hr: Tensor


@dataclass(frozen=True)
class PatchPlan:
    """What to cut, and what is done with it so that few pictures show much."""

    side: int = 48  # of an LR patch, pixels
    batch: int = 8  # patches
    candidates: int = 3  # places looked at for a patch; the one with the most detail is taken
    shrink: float = 2.0  # half the patches come from a picture made smaller, up to so many times
    recolour: bool = True  # half the patches have red, green and blue in another order
    seed: int = 0

    def smallest_side(self, scale: int) -> int:
        """The shortest HR side a picture may have."""
        return scale * (self.side + 2 * MARGIN)


class Patches(Dataset[Batch]):
    """Batch number i, for any i: `pictures` are H×W×3 uint8 RGB, `scales` one or more of 2, 3, 4 drawn in turn."""

    def __init__(self, pictures: Sequence[NDArray[np.uint8]], scales: Sequence[int], plan: PatchPlan) -> None:
        self.pictures = pictures
        self.scales = tuple(scales)
        self.plan = plan
        areas = np.array([picture.shape[0] * picture.shape[1] for picture in pictures], dtype=np.float64)
        self._shares = np.cumsum(areas) / areas.sum()

    def __getitem__(self, index: int) -> Batch:
        random = np.random.default_rng((self.plan.seed, index))
        scale = self.scales[index % len(self.scales)]
        pairs = [self._pair(random, scale) for _ in range(self.plan.batch)]
        lr, hr = (torch.from_numpy(np.stack(side).transpose(0, 3, 1, 2)) for side in zip(*pairs, strict=True))
        return Batch(scale, lr, hr)

    def _pair(self, random: np.random.Generator, scale: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        side = self.plan.smallest_side(scale)
        wider = 1 + max(0.0, random.uniform(-1, 1)) * (self.plan.shrink - 1)
        places = [self._place(random, round(side * wider)) for _ in range(self.plan.candidates)]
        hr = max(places, key=_detail)
        if len(hr) > side:
            hr = resize(hr, size=(side, side))
        if self.plan.recolour and random.random() < 0.5:
            hr = hr[..., random.permutation(3)]
        lr = resize(hr, scale=1 / scale)[MARGIN:-MARGIN, MARGIN:-MARGIN]
        cut = MARGIN * scale
        turn = int(random.integers(8))
        return _turned(lr, turn), _turned(hr[cut:-cut, cut:-cut], turn)

    def _place(self, random: np.random.Generator, side: int) -> NDArray[np.uint8]:
        """A square of a picture, `side` pixels high and wide, or as many as the picture has."""
        picture = self.pictures[int(np.searchsorted(self._shares, random.random(), side="right"))]
        side = min(side, *picture.shape[:2])
        top = random.integers(picture.shape[0] - side + 1)
        left = random.integers(picture.shape[1] - side + 1)
        return picture[top : top + side, left : left + side]


def _detail(patch: NDArray[np.uint8]) -> float:
    green = patch[::2, ::2, 1].astype(np.float32)
    return float(np.abs(np.diff(green, axis=0)).mean() + np.abs(np.diff(green, axis=1)).mean())


def _turned(patch: NDArray[np.generic], turn: int) -> NDArray[np.uint8]:
    """One of the eight flips and turns of H×W×C."""
    if turn & 4:
        patch = patch.transpose(1, 0, 2)
    return patch[:: -1 if turn & 1 else 1, :: -1 if turn & 2 else 1].astype(np.uint8)
