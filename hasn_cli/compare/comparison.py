"""Enlarges a picture with several methods, times and measures them, and finds where they differ most."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasn_cli.errors import UsageError
from hasn_cli.images import Picture
from hasn_cli.images.color import profile_of
from hasn_cli.images.picture import Pixels

if TYPE_CHECKING:
    from hasn_cli.choice import Limit
    from hasn_cli.enlarge import Progress, Size


SPOT_SIDE = 128  # side of a spot in SR pixels; at most a quarter of a small picture
SPOTS = 6
PART_PIXELS = 8_000_000  # of a larger result, only the part of this size that differs most is kept
CELL = 8  # SR pixels; the grid on which differences are averaged


@dataclass(frozen=True)
class Method:
    """A way to enlarge a picture.

    Attributes:
        label: a short name: "Bicubic", "HASN".
        detail: weights, device and precision.
        run: enlarges a `Picture`, calling its second argument with the fraction done, 0 to 1.
    """

    label: str
    detail: str
    run: Callable[[Picture, Progress], Picture]


@dataclass(frozen=True, eq=False)
class Rendition:
    """One rendition of the picture.

    Attributes:
        label, detail: those of the method, or "Reference" for the true picture.
        pixels: H×W×C, the method's result in 8 bits; C = 1 is grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        seconds: wall time of the enlargement; None for the reference.
        psnr, ssim: of the luma against the reference, without a border as wide as the scale; None without a reference.
        error: H×W uint8, absolute luma error against the reference in grey levels; None without a reference.
    """

    label: str
    detail: str
    pixels: NDArray[np.uint8]
    seconds: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    error: NDArray[np.uint8] | None = None

    @property
    def rgb(self) -> NDArray[np.uint8]:
        """H×W×3: grey is repeated, and transparency shows white."""
        return _over_white(self.pixels)


@dataclass(frozen=True)
class Spot:
    """A square in which the first two views differ much, with its position and side in pixels of the views.

    Attributes:
        difference: mean absolute difference over the square, in grey levels.
    """

    top: int
    left: int
    side: int
    difference: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that a comparison shows.

    Attributes:
        name: of the picture.
        format: of the picture's file.
        lr_size: (height, width) of the picture.
        sr_size: (height, width) of its enlargement.
        views: two or more of the same size; the first two are compared.
        spots: where the first two differ most, the largest difference first.
        origin: (top, left) of the views in the enlargement; (0, 0) unless they are only a part of it.
        icc: colour profile of the pixels; None means sRGB.
    """

    name: str
    format: str
    lr_size: tuple[int, int]
    sr_size: tuple[int, int]
    views: tuple[Rendition, ...]
    spots: tuple[Spot, ...]
    origin: tuple[int, int] = (0, 0)
    icc: bytes | None = field(default=None, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the views."""
        height, width = self.views[0].pixels.shape[:2]
        return height, width

    @property
    def is_part(self) -> bool:
        return self.size != self.sr_size

    @property
    def factor(self) -> float:
        return self.sr_size[1] / self.lr_size[1]


class Bicubic:
    """MATLAB-style bicubic interpolation with an upscaler's interface, so that both are used in the same way."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def upscale(self, image: Pixels, progress: Progress | None = None) -> Pixels:
        """H×W×C → sH×sW×C of the same dtype; integers are rounded and clipped."""
        from hasn_cli.resize import resize

        result = resize(image, scale=self.scale)
        if progress:
            progress(1.0)
        return result


def bicubic(size: Size) -> Method:
    """Interpolation in one step, whatever the scale, as any viewer does it."""
    from hasn_cli.enlarge import enlarge

    def run(picture: Picture, progress: Progress) -> Picture:
        return enlarge(picture, Bicubic, size, at_once=True, progress=progress)

    return Method("Bicubic", "interpolation", run)


def network(label: str, detail: str, upscaler_for: Callable[[int], Any], size: Size, limit: Limit = "none") -> Method:
    """The method that runs the network, with loaded upscalers, so that only the network is timed."""
    from hasn_cli.enlarge import enlarge

    def run(picture: Picture, progress: Progress) -> Picture:
        return enlarge(picture, upscaler_for, size, limit=limit, progress=progress)

    return Method(label, detail, run)


def compare(
    picture: Picture,
    methods: Sequence[Method],
    *,
    reference: Picture | None = None,
    whole: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> Comparison:
    """Enlarge a picture's first frame by every method.

    Args:
        picture: the LR picture.
        methods: two or more; the first two are compared.
        reference: the HR picture that the LR one was made from. At the right and bottom, it may be larger than the
            result by less than the factor; that rest is cut off.
        whole: keep the whole result, however large; otherwise the 8 megapixels that differ most.
        progress: called with the label of the current method and the fraction of it that is done.

    Raises:
        UsageError: the reference has another size.
        ImageError: a picture is broken.
    """
    picture = picture.first().load()  # in advance, so that decoding is not timed
    views = []
    for method in methods:
        seconds, pixels = _timed(method, picture, progress)
        views.append(Rendition(method.label, method.detail, pixels, seconds))
    sr_size = _size(views[0].pixels)
    if reference is not None:
        truth = _reference_pixels(reference, picture, sr_size)
        border = round(sr_size[1] / picture.size[1])
        views = [_measured(view, truth, border) for view in views]
        views.append(Rendition("Reference", reference.name, truth))
    origin = (0, 0)
    if not whole and sr_size[0] * sr_size[1] > PART_PIXELS:
        origin, part = most_telling_part(views[0].rgb, views[1].rgb, PART_PIXELS)
        views = [_cut(view, origin, part) for view in views]
    spots = most_telling_spots(views[0].rgb, views[1].rgb)
    icc = profile_of(picture.metadata, picture.channels)
    return Comparison(picture.name, picture.format, picture.size, sr_size, tuple(views), spots, origin, icc)


def most_telling_spots(a: NDArray[np.uint8], b: NDArray[np.uint8], count: int = SPOTS) -> tuple[Spot, ...]:
    """Squares that do not overlap, in which two H×W×3 pictures differ most; the largest difference first.

    Each is 128 pixels wide, or less in a small picture. There are fewer than `count` if no more fit, or if the pictures
    are equal.
    """
    shorter = min(a.shape[:2])
    side = min(SPOT_SIDE, max(2 * CELL, shorter // 4), shorter)
    cell = min(CELL, side)
    across = side // cell  # cells along a spot's side
    means = _box_means(_cell_means(a, b, cell), (across, across))
    spots: list[Spot] = []
    while len(spots) < count and means.max() > 0:
        row, column = (int(index) for index in np.unravel_index(means.argmax(), means.shape))
        spots.append(Spot(row * cell, column * cell, across * cell, float(means[row, column])))
        top, left = max(0, row - across + 1), max(0, column - across + 1)
        means[top : row + across, left : column + across] = 0
    return tuple(spots)


def most_telling_part(
    a: NDArray[np.uint8], b: NDArray[np.uint8], pixels: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The rectangle in which the pictures differ most, of their shape and at most `pixels`: (top, left), size."""
    height, width = a.shape[:2]
    shrink = (pixels / (height * width)) ** 0.5
    cell = 4 * CELL
    cells = max(1, int(height * shrink) // cell), max(1, int(width * shrink) // cell)
    means = _box_means(_cell_means(a, b, cell), cells)
    row, column = np.unravel_index(means.argmax(), means.shape)
    return (int(row) * cell, int(column) * cell), (cells[0] * cell, cells[1] * cell)


def around(pixels: NDArray[np.uint8], spot: Spot, side: int) -> NDArray[np.uint8]:
    """The square around a spot's centre that fills `side` screen pixels when enlarged by a whole number."""
    ratio = max(1, round(side / spot.side))
    seen = min(side // ratio, *pixels.shape[:2])
    top, left = (
        min(max(0, start + (spot.side - seen) // 2), length - seen)
        for start, length in zip((spot.top, spot.left), pixels.shape[:2], strict=False)
    )
    return pixels[top : top + seen, left : left + seen]


def _cell_means(a: NDArray[np.uint8], b: NDArray[np.uint8], cell: int) -> NDArray[np.float64]:
    """Mean absolute difference of each complete cell×cell square, one row of squares at a time to save memory."""
    rows, columns = a.shape[0] // cell, a.shape[1] // cell
    means = np.empty((rows, columns))
    for row in range(rows):
        band = np.s_[row * cell : (row + 1) * cell, : columns * cell]
        difference = np.abs(a[band].astype(np.int16) - b[band])
        means[row] = difference.reshape(cell, columns, -1).mean((0, 2))
    return means


def _box_means(values: NDArray[np.float64], box: tuple[int, int]) -> NDArray[np.float64]:
    """Mean over every box of rows×columns cells, indexed by the box's top left cell."""
    for axis, length in enumerate(box):
        sums = np.cumsum(values, axis)
        sums = np.insert(sums, 0, 0, axis)
        steps = sums.shape[axis] - length
        values = (sums.take(range(length, length + steps), axis) - sums.take(range(steps), axis)) / length
    return values


def _timed(
    method: Method, picture: Picture, progress: Callable[[str, float], None] | None
) -> tuple[float, NDArray[np.uint8]]:
    def told(fraction: float) -> None:
        if progress:
            progress(method.label, fraction)

    told(0.0)
    started_at = time.perf_counter()
    frame = next(iter(method.run(picture, told).frames))
    seconds = time.perf_counter() - started_at
    told(1.0)
    return seconds, _eight_bits(frame.pixels)


def _reference_pixels(reference: Picture, picture: Picture, sr_size: tuple[int, int]) -> NDArray[np.uint8]:
    pixels = _over_white(_eight_bits(next(iter(reference.frames)).pixels))
    factors = (sr_size[0] / picture.size[0], sr_size[1] / picture.size[1])
    for have, need, factor in zip(pixels.shape, sr_size, factors, strict=False):
        if not 0 <= have - need < factor:
            raise UsageError(
                f"{reference.name} is {pixels.shape[1]}×{pixels.shape[0]}, "
                f"but {picture.name} enlarged is {sr_size[1]}×{sr_size[0]}",
                f"--reference is the large original of {picture.name}; -s says how many times larger it is",
            )
    return pixels[: sr_size[0], : sr_size[1]]


def _measured(view: Rendition, truth: NDArray[np.uint8], border: int) -> Rendition:
    from hasn_cli.evaluation.metrics import WINDOW, luma, psnr_y, ssim_y

    rgb = view.rgb
    roomy = min(rgb.shape[:2]) >= WINDOW + 2 * border
    return replace(
        view,
        psnr=psnr_y(rgb, truth, border) if roomy else None,
        ssim=ssim_y(rgb, truth, border) if roomy else None,
        error=np.rint(np.abs(luma(rgb) - luma(truth))).astype(np.uint8),
    )


def _cut(view: Rendition, origin: tuple[int, int], size: tuple[int, int]) -> Rendition:
    part = np.s_[origin[0] : origin[0] + size[0], origin[1] : origin[1] + size[1]]
    return replace(view, pixels=view.pixels[part], error=None if view.error is None else view.error[part])


def _size(pixels: Pixels) -> tuple[int, int]:
    height, width = pixels.shape[:2]
    return height, width


def _eight_bits(pixels: Pixels) -> NDArray[np.uint8]:
    """uint8 from uint8, uint16 or float32; floats are shown from 0 to 1."""
    if pixels.dtype == np.uint8:
        return pixels
    full = 1.0 if pixels.dtype == np.float32 else float(np.iinfo(pixels.dtype).max)
    result: NDArray[np.uint8] = np.rint(np.clip(pixels / np.float32(full), 0, 1) * 255).astype(np.uint8)
    return result


def _over_white(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    colour = pixels[..., :-1] if pixels.shape[2] in (2, 4) else pixels
    if pixels.shape[2] in (2, 4):
        alpha = pixels[..., -1:].astype(np.float32) / 255
        colour = np.rint(colour * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)))
