"""The batches of `patches.py`, cut and reduced on an accelerator.

A GPU trains faster than worker processes can cut patches for it. So the pictures are kept in its memory (3 bytes a
pixel), and bicubic resizing becomes two products with matrices, one for each axis. The patches are those of `Patches`
but for rounding: a value may differ by one level.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hasn_cli.evaluation.bicubic import taps
from hasn_cli.training.patches import MARGIN, Batch, Draw, Drawing, Image, PatchPlan, Place


class DevicePatches:
    """Batch number i, for any i, cut on a device. The first three arguments are those of `Patches`.

    Args:
        device: where the pictures are kept and the batches come out, such as cuda.
    """

    def __init__(self, pictures: Sequence[Image], scales: Sequence[int], plan: PatchPlan, device: str) -> None:
        self.drawing = Drawing(pictures, scales, plan)
        self.device = device
        lengths = [picture.size for picture in pictures]
        self._starts = np.cumsum([0, *lengths[:-1]])
        self._values = torch.empty(sum(lengths), dtype=torch.uint8, device=device)
        for start, picture in zip(self._starts, pictures, strict=True):
            values = torch.from_numpy(np.array(picture).reshape(-1))  # a copy, since the picture may be read-only
            self._values[start : start + picture.size] = values.to(device)

    @torch.no_grad()
    def __getitem__(self, index: int) -> Batch:
        scale, draws = self.drawing.batch(index)
        side = self.drawing.plan.smallest_side(scale)
        chosen = self._most_detailed(draws)
        hr = _resized(self._windows(chosen), [place.side for place in chosen], side)
        colours = self._tensor([draw.colours for draw in draws])[:, :, None, None]
        hr = hr.gather(1, colours.expand_as(hr))
        lr = _resized(hr, [side] * len(hr), side // scale)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
        cut = MARGIN * scale
        turns = self._tensor([draw.turn for draw in draws])
        return Batch(scale, _turned(lr, turns), _turned(hr[..., cut:-cut, cut:-cut], turns))

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, device=self.device)

    def _most_detailed(self, draws: Sequence[Draw]) -> list[Place]:
        """The candidate of each draw whose neighbouring pixels differ most."""
        places = [place for draw in draws for place in draw.places]
        green = self._windows(places, step=2, channels=(1,))[:, 0]
        sides = self._tensor([(place.side + 1) // 2 for place in places])
        scores = (_roughness(green, sides) + _roughness(green.mT, sides)).view(len(draws), -1)
        return [draw.places[best] for draw, best in zip(draws, scores.argmax(1).tolist(), strict=True)]

    def _windows(self, places: Sequence[Place], step: int = 1, channels: Sequence[int] = (0, 1, 2)) -> Tensor:
        """Every `step`th pixel of the places, N×C×P×P float32, filled up to the largest with their last pixels."""
        offsets = np.arange(0, max(place.side for place in places), step)
        lasts = np.array([(place.side - 1) // step * step for place in places])[:, None]
        within = np.minimum(offsets[None], lasts)  # N×P
        widths = np.array([self.drawing.sizes[place.picture][1] for place in places])[:, None]
        tops, lefts = (np.array([[place[axis]] for place in places]) for axis in (1, 2))
        starts = np.array([[self._starts[place.picture]] for place in places])
        rows = self._tensor(starts + 3 * widths * (tops + within))  # of the first value in each row
        columns = self._tensor(3 * (lefts + within))
        indices = rows[:, None, :, None] + columns[:, None, None, :] + self._tensor(list(channels))[:, None, None]
        return self._values[indices].float()


def _roughness(green: Tensor, sides: Tensor) -> Tensor:
    """Mean difference between neighbouring rows of N×P×P, of which the first `sides` rows and columns count: N."""
    differences = green.diff(dim=1).abs()  # N×(P−1)×P; rows beyond a place repeat its last one, so they differ by 0
    counted = torch.arange(green.shape[2], device=green.device) < sides[:, None]  # N×P
    return (differences * counted[:, None]).sum((1, 2)) / (sides * (sides - 1))


def _resized(images: Tensor, sides: Sequence[int], new_side: int) -> Tensor:
    """`resize` of the first `sides` rows and columns of N×C×P×P, whole numbers up to 255 as floats: N×C×Q×Q."""
    if all(side == new_side for side in sides):
        return images[..., :new_side, :new_side]
    matrices = _matrices(sides, new_side, images.shape[-1], images.device)[:, None]  # N×1×Q×P
    rows = _rounded(matrices @ images)
    return _rounded(rows @ matrices.mT)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor_().clamp_(0, 255)


def _matrices(sides: Sequence[int], new_side: int, columns: int, device: torch.device) -> Tensor:
    """What bicubic resizing multiplies by, for each of N sides: N×Q×`columns`, zero beyond the side."""
    found = [taps(side, new_side, new_side / side) for side in sides]
    longest = max(indices.shape[1] for indices, _ in found)
    indices, weights = (
        np.stack([np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for array in arrays])
        for arrays in zip(*found, strict=True)
    )  # N×Q×T, filled up with weights of 0
    matrices = torch.zeros(len(sides), new_side, columns, device=device)
    # beyond the border one sample counts several times, hence the sum
    return matrices.scatter_add_(
        2, torch.from_numpy(indices).to(device), torch.from_numpy(weights.astype(np.float32)).to(device)
    )


def _turned(patches: Tensor, turns: Tensor) -> Tensor:
    """`patches.turned` of each of N×3×P×P, as uint8."""
    swapped, rows, columns = ((turns & bit).bool()[:, None, None, None] for bit in (4, 1, 2))
    patches = torch.where(swapped, patches.mT, patches)
    patches = torch.where(rows, patches.flip(-2), patches)
    return torch.where(columns, patches.flip(-1), patches).to(torch.uint8)
