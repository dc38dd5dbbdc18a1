"""Enlarges a picture: runs the network on its colour and its transparency, then resizes to the exact target size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from numbers import Real
from typing import Protocol

import numpy as np

from hasn_cli.choice import Limit
from hasn_cli.errors import ImageError, UsageError
from hasn_cli.images.color import bleed, is_opaque, rounded, top
from hasn_cli.images.picture import Frame, Picture, Pixels, ReplayableFrames
from hasn_cli.resize import resize
from hasn_cli.stillness import Stillness

SCALES = (2, 3, 4)
PASSES = {2: (2,), 3: (3,), 4: (4,), 6: (2, 3), 8: (2, 4), 9: (3, 3), 12: (3, 4), 16: (4, 4)}
"""Scale → the scales of the networks that reach it, one after the other. The smaller one comes first: for x8, the
networks then process 5 pixels for each input pixel, and in the other order 17."""
LARGEST = max(PASSES)
PLANE_BYTES = 12  # bytes per pixel: float planes that resizing and --consistent use for one channel at a time
AROUND = 2  # input pixels on each side of one that limit overshoots
ROWS = 64  # rows that are processed in double precision at a time
ASKED = 1 << 20  # about this many samples are enough to find the range of most values
PLAIN = 1 / 16  # floats within [0, 1] that span at least this much go to the network unchanged
PROJECTIONS = 5  # steps of --consistent; docs/pictures.md shows what each step achieves
ALPHA = ("blend", "separate")  # what alpha means: the opacity of the colour, or an independent channel
Progress = Callable[[float], None]


class Upscales(Protocol):
    """The part of `hasn_cli.inference.Upscaler` that this module uses."""

    @property
    def scale(self) -> int: ...

    def upscale(self, image: Pixels, progress: Progress | None = None) -> Pixels: ...


@dataclass(frozen=True)
class Size:
    """How large the result becomes. Give one of factor, width and/or height, fit, or megapixels.

    Attributes:
        factor: times the input's sides, from 1 to 16; used when nothing else is given.
        width, height: in pixels; one alone keeps the proportions, and so do both unless `stretch` is set.
        fit: (height, width) of a box. The result is as large as fits into it, and at most 16 times the input.
        megapixels: height times width in millions, as closely as the proportions allow.
        stretch: let `width` and `height` together change the proportions.

    Raises:
        UsageError: impossible values, or several sizes at once.
    """

    factor: Fraction | float | None = 4
    width: int | None = None
    height: int | None = None
    fit: tuple[int, int] | None = None
    megapixels: float | None = None
    stretch: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not isinstance(self.factor, Real | None):
            raise UsageError(f"the scale must be a number, not {self.factor!r}")
        sizes = [self.width or self.height, self.fit, self.megapixels]
        if sum(size is not None for size in sizes) > 1:
            raise UsageError("--width/--height, --fit and --megapixels exclude each other", "give one of them")
        pixels = self.megapixels and self.megapixels * 1e6
        numbers = [self.width, self.height, pixels, *(self.fit or ())]
        if any(number is not None and not 0 < number < math.inf for number in numbers):
            raise UsageError("a size must be a finite number above 0")
        if all(size is None for size in sizes) and not (self.factor is not None and 1 <= self.factor <= LARGEST):
            raise UsageError(f"the scale must be from 1 to {LARGEST}, not {self.factor}")
        if self.stretch and not (self.width and self.height):
            raise UsageError("--stretch needs both --width and --height")

    def target(self, lr_size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that a picture of `lr_size` will have, each at least 1.

        Raises:
            ImageError: `width` and `height` would distort the picture, and `stretch` is not set.
        """
        lr_height, lr_width = lr_size
        if self.width is not None and self.height is not None:
            return self._both(self.width, self.height, lr_size)
        if self.width is not None:
            return _at_least_1(Fraction(lr_height * self.width, lr_width)), self.width
        if self.height is not None:
            return self.height, _at_least_1(Fraction(lr_width * self.height, lr_height))
        if self.fit is not None:
            factor = min(Fraction(self.fit[0], lr_height), Fraction(self.fit[1], lr_width), Fraction(LARGEST))
        elif self.megapixels is not None:
            factor = Fraction(math.sqrt(self.megapixels * 1e6 / (lr_height * lr_width)))
        else:
            # a factor such as 1.1 means exactly eleven tenths, not the nearest binary fraction
            factor = Fraction(str(self.factor))
        return _at_least_1(lr_height * factor), _at_least_1(lr_width * factor)

    def _both(self, width: int, height: int, lr_size: tuple[int, int]) -> tuple[int, int]:
        """`width` and `height`, if they keep the proportions to a pixel or may change them."""
        proportional_height, proportional_width = lr_size[0] * width / lr_size[1], lr_size[1] * height / lr_size[0]
        kept = abs(height - proportional_height) < 1 or abs(width - proportional_width) < 1
        if not kept and not self.stretch:
            message = f"{width}×{height} would distort a picture of {lr_size[1]}×{lr_size[0]}"
            raise ImageError(message, f"use --fit {width}x{height} to keep the proportions, or --stretch to distort it")
        return height, width

    def notices(self, lr_size: tuple[int, int]) -> tuple[str, ...]:
        """What may surprise about the size of the result: `fit` asks for more than is possible."""
        if self.fit is None or any(LARGEST * side >= limit for side, limit in zip(lr_size, self.fit, strict=True)):
            return ()
        return (f"--fit {self.fit[1]}x{self.fit[0]} is not reached: {LARGEST} times is the limit",)

    def network_scale(self, lr_size: tuple[int, int]) -> int:
        """The smallest scale, of those in `PASSES`, that reaches the target in both directions.

        Raises:
            ImageError: the target is more than 16 times as high or wide.
        """
        target = self.target(lr_size)
        for scale in PASSES:
            if all(side <= scale * lr_side for side, lr_side in zip(target, lr_size, strict=True)):
                return scale
        message = f"{target[1]}×{target[0]} is more than {LARGEST} times {lr_size[1]}×{lr_size[0]}"
        raise ImageError(message, f"choose a smaller size: at most {LARGEST} times the input")


@dataclass(frozen=True)
class Pass:
    """One run of a network on the whole picture: its scale, and the (height, width) of its input."""

    scale: int
    size: tuple[int, int]


def passes(scale: int, lr_size: tuple[int, int]) -> list[Pass]:
    """The runs that enlarge a picture of `lr_size` (height, width) by a scale of `PASSES`."""
    found = []
    for one in PASSES[scale]:
        found.append(Pass(one, lr_size))
        lr_size = lr_size[0] * one, lr_size[1] * one
    return found


def _at_least_1(length: Fraction) -> int:
    return max(1, math.floor(length + Fraction(1, 2)))


def enlarge(
    picture: Picture,
    upscaler_for: Callable[[int], Upscales],
    size: Size,
    *,
    consistent: bool = False,
    alpha: str = "blend",
    limit: Limit = "none",
    at_once: bool = False,
    progress: Progress | None = None,
) -> Picture:
    """Return the enlarged picture. Its frames are computed one by one while they are iterated.

    The parts of an animation that do not move keep the same pixels, and equal frames are computed once (see
    `hasn_cli.stillness`). The pages of a document are enlarged independently.

    Args:
        picture: as returned by `open_picture`.
        upscaler_for: returns the upscaler for a scale, 2, 3 or 4; called once for each pass over a frame.
        size: the size of the result.
        consistent: adjust the result so that reducing it by bicubic interpolation gives the input again.
        alpha: "blend": alpha is the opacity of the colour, and the colour of fully transparent pixels means nothing;
            "separate": alpha is data like any other channel, and so is the colour under it.
        limit: how far the colour may leave the range of the input pixels around it; see `limited`.
        at_once: the upscalers reach every scale of `PASSES` in one pass, as interpolation does.
        progress: called with the fraction of the work that is done, 0 to 1; it may raise an exception to cancel.

    Returns:
        A picture with the same kind of pixels, metadata and durations.

    Raises:
        ImageError: the size is out of reach. Raised at once for the first frame, and while iterating for a later page.
    """
    size.network_scale(picture.size)

    def frames() -> Iterator[Frame]:
        still = Stillness(alpha_counts_alone=alpha == "separate")
        for index, frame in enumerate(picture.frames):
            share = progress and _part(progress, index / picture.frame_count, 1 / picture.frame_count)
            large = still.known(frame.pixels)
            if large is None:
                large = enlarge_pixels(
                    frame.pixels, upscaler_for, size, consistent, share, alpha=alpha, limit=limit, at_once=at_once
                )
                large = still.carry_over(frame.pixels, large)
            elif share is not None:
                share(1.0)
            if picture.frame_count > 1 and not picture.paged:
                still.remember(frame.pixels, large)
            yield replace(frame, pixels=large)

    pages = tuple(replace(shape, size=size.target(shape.size)) for shape in picture.page_shapes)
    return replace(picture, size=size.target(picture.size), page_shapes=pages, frames=ReplayableFrames(frames))


def enlarge_pixels(
    pixels: Pixels,
    upscaler_for: Callable[[int], Upscales],
    size: Size,
    consistent: bool = False,
    progress: Progress | None = None,
    *,
    alpha: str = "blend",
    limit: Limit = "none",
    at_once: bool = False,
) -> Pixels:
    """Enlarge H×W×C pixels (C = 1 to 4, as in `Frame.pixels`), keeping dtype and channels.

    `alpha` and `limit`: see `enlarge`.
    """
    if alpha not in ALPHA:
        raise UsageError(f"alpha must be {' or '.join(ALPHA)}, not {alpha!r}")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ImageError("the picture contains infinite or undefined samples", "replace them before enlarging")
    target = size.target(pixels.shape[:2])
    scale = size.network_scale(pixels.shape[:2])
    upscaler = upscaler_for(scale) if at_once else _Passes(upscaler_for, scale)
    if pixels.shape[2] in (1, 3):
        return _enlarge_color(pixels, upscaler, target, consistent, progress, limit)
    color, opacity = pixels[..., :-1], pixels[..., -1:]
    solid = top(pixels) if alpha == "blend" else opacity[0, 0, 0]
    if is_opaque(pixels) if alpha == "blend" else (opacity == solid).all():
        color = _enlarge_color(color, upscaler, target, consistent, progress, limit)
        return np.concatenate([color, np.full((*target, 1), solid, pixels.dtype)], axis=2)
    first = progress and _part(progress, 0.0, 0.5)
    second = progress and _part(progress, 0.5, 0.5)
    if alpha == "separate":
        color = _enlarge_color(color, upscaler, target, consistent, first)
        return np.concatenate([color, _enlarge_color(opacity, upscaler, target, consistent, second)], axis=2)
    color = _enlarge_color(bleed(color, opacity), upscaler, target, consistent, first, limit)
    return np.concatenate([color, _enlarge_alpha(opacity, upscaler, target, second)], axis=2)


class _Passes:
    """Runs several networks one after the other, as one upscaler for a scale of `PASSES`."""

    def __init__(self, upscaler_for: Callable[[int], Upscales], scale: int) -> None:
        self.scale = scale
        self._upscaler_for = upscaler_for

    def upscale(self, image: Pixels, progress: Progress | None = None) -> Pixels:
        steps = passes(self.scale, (image.shape[0], image.shape[1]))
        pixels = [step.size[0] * step.size[1] for step in steps]
        for index, step in enumerate(steps):
            share = progress and _part(progress, sum(pixels[:index]) / sum(pixels), pixels[index] / sum(pixels))
            image = self._upscaler_for(step.scale).upscale(image, share)
        return image


def _enlarge_color(
    color: Pixels,
    upscaler: Upscales,
    target: tuple[int, int],
    consistent: bool,
    progress: Progress | None,
    limit: Limit = "none",
) -> Pixels:
    """Enlarge H×W×(1 or 3) pixels of any dtype to the target size. Floats may have any range, and have no limit."""
    if color.dtype.kind == "f":
        return _enlarge_floats(color, upscaler, target, consistent, progress)
    large = reduce_to(upscaler.upscale(color, progress), target)
    large = _project(large, color) if consistent else large
    return large if limit == "none" else limited(large, color, limit)


def limited(large: Pixels, small: Pixels, limit: Limit) -> Pixels:
    """Keep a result near the range of the input pixels around it. Networks overshoot beside lines and edges.

    With m and M the smallest and largest of the 5×5 input pixels around a place, and r = M − m, a result stays between
    m − d and M + d in each channel. Where the input is flat, d is 0 and so the result is flat, too.

    Args:
        large: the result, h×w×C integers; it may be changed.
        small: the input, H×W×C of the same dtype.
        limit: "loose" for photographs: d is the smaller of 2r and 16 grey levels + r/2; "tight" for graphics: d is the
            smaller of r and 16 grey levels. A grey level is a 255th of the range.
    """
    rows, columns = (
        (2 * np.arange(new) + 1) * length // (2 * new)  # the input pixel under each pixel of the result
        for new, length in zip(large.shape[:2], small.shape[:2], strict=True)
    )
    for start in range(0, len(rows), ROWS):  # in bands, to save memory
        band, under = large[start : start + ROWS], rows[start : start + ROWS]
        first = max(0, int(under[0]) - AROUND)
        low, high = _bounds(small[first : int(under[-1]) + AROUND + 1], limit)
        np.clip(band, low[under - first][:, columns], high[under - first][:, columns], out=band)
    return large


def _bounds(pixels: Pixels, limit: Limit) -> tuple[Pixels, Pixels]:
    """The lowest and highest value that `limited` allows at each pixel of H×W×C integers."""
    level = top(pixels) / 255
    low, high = (_extreme(pixels, choose).astype(np.float32) for choose in (np.minimum, np.maximum))
    span = high - low
    room = np.minimum(2 * span, 16 * level + span / 2) if limit == "loose" else np.minimum(span, 16 * level)
    lowest, highest = (edge.clip(0, top(pixels)).astype(pixels.dtype) for edge in (low - room, high + room))
    return lowest, highest


def _extreme(pixels: Pixels, choose: np.ufunc) -> Pixels:
    """The minimum or maximum of the 5×5 pixels around each pixel of H×W×C, as far as they are in the picture."""
    for axis in (0, 1):
        found = pixels.copy()
        for step in range(1, AROUND + 1):
            if pixels.shape[axis] > step:
                after, before = (np.s_[:, step:], np.s_[:, :-step]) if axis else (np.s_[step:], np.s_[:-step])
                choose(found[after], pixels[before], out=found[after])
                choose(found[before], pixels[after], out=found[before])
        pixels = found
    return pixels


def _enlarge_floats(
    color: Pixels, upscaler: Upscales, target: tuple[int, int], consistent: bool, progress: Progress | None
) -> Pixels:
    """Enlarge H×W×(1 or 3) floats of any range to the target size. The result stays in that range.

    The range of most values is mapped to [0, 1] for the network. The parts of other values beyond that range (the sun
    in an HDR picture, heights that mean missing data) are enlarged by bicubic interpolation and added.
    """
    low, high = _range(color)
    black, white = _bulk(color, low, high)
    if black == white:
        return np.full((*target, color.shape[2]), black, np.float32)
    inside = np.clip(color, black, white)
    unit = ((inside.astype(np.float64) - black) / (white - black)).astype(np.float32)
    large = reduce_to(upscaler.upscale(unit, progress), target)
    if consistent:
        large = _project(large, unit)
    for channel in range(color.shape[2]):
        beyond = color[..., channel].astype(np.float64) - inside[..., channel]
        peak = float(np.abs(beyond).max())
        added = resize((beyond / peak).astype(np.float32), size=target) if peak else None
        for start in range(0, target[0], ROWS):
            rows = slice(start, start + ROWS)
            values = np.clip(large[rows, :, channel].astype(np.float64) * (white - black) + black, black, white)
            if added is not None:
                values = np.clip(values + added[rows].astype(np.float64) * peak, low, high)
            large[rows, :, channel] = values
    return large


def _bulk(pixels: Pixels, low: float, high: float) -> tuple[float, float]:
    """The range of most values, if it is much smaller than the whole range from `low` to `high`; otherwise the latter.

    A value counts once, no matter how many samples have it: a value that means missing data may fill half a picture.
    """
    values = np.unique(pixels.reshape(-1)[:: max(1, pixels.size // ASKED)])
    first, last = (float(value) for value in np.percentile(values, (5, 95), method="nearest"))
    margin = (last - first) / 2
    if not 0 < 16 * margin < high - low:
        return low, high
    bulk = pixels[(pixels >= first - margin) & (pixels <= last + margin)]
    return float(bulk.min()), float(bulk.max())


def _enlarge_alpha(alpha: Pixels, upscaler: Upscales, target: tuple[int, int], progress: Progress | None) -> Pixels:
    """Enlarge H×W×1 alpha. Each result stays between the four input pixels around it, to avoid halos and specks."""
    large = reduce_to(upscaler.upscale(alpha, progress), target)
    return np.clip(large, _around(alpha, target, np.minimum), _around(alpha, target, np.maximum))


def _around(pixels: Pixels, size: tuple[int, int], choose: np.ufunc) -> Pixels:
    """The minimum or maximum of the 2×2 pixels that bilinear interpolation would mix: H×W×C to size×C."""
    for axis, (length, new) in enumerate(zip(pixels.shape, size, strict=False)):
        below = ((2 * np.arange(new) + 1) * length - new) // (2 * new)  # ⌊(i + ½)·length / new − ½⌋
        first, second = (np.clip(below + step, 0, length - 1) for step in (0, 1))
        pixels = choose(np.take(pixels, first, axis), np.take(pixels, second, axis))
    return pixels


def reduce_to(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize H×W×C pixels to (height, width) by a Lanczos filter (a = 3, widened to shrink). Keeps dtype and range."""
    if pixels.shape[:2] == size:
        return pixels
    from PIL import Image

    result = np.empty((*size, pixels.shape[2]), pixels.dtype)
    kind = np.uint8 if pixels.dtype == np.uint8 else np.float32
    for channel in range(pixels.shape[2]):
        image = Image.fromarray(np.ascontiguousarray(pixels[..., channel], kind))
        image = image.resize(size[::-1], Image.Resampling.LANCZOS)
        result[..., channel] = rounded(np.asarray(image), pixels.dtype)
    return result


def _project(large: Pixels, small: Pixels) -> Pixels:
    """Correct the result by what its reduced version lacks, a few times: back-projection (Irani & Peleg 1991)."""
    low, high = _range(small)
    result = np.empty_like(large)
    for channel in range(large.shape[2]):
        wanted = small[..., channel].astype(np.float32)
        estimate = large[..., channel].astype(np.float32)
        for _ in range(PROJECTIONS):
            missing = wanted - resize(estimate, size=small.shape[:2])
            estimate += resize(missing, size=large.shape[:2])
            np.clip(estimate, low, high, out=estimate)
        result[..., channel] = rounded(estimate, large.dtype)
    return result


def _range(pixels: Pixels) -> tuple[float, float]:
    """The range in which a result must stay: that of the dtype. For floats it is [0, 1] if the values are in that range
    and span at least `PLAIN` of it; otherwise the range of the values."""
    if pixels.dtype.kind != "f":
        return 0.0, top(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    return (0.0, 1.0) if low >= 0 and high <= 1 and high - low >= PLAIN else (low, high)


def _part(progress: Progress, start: float, share: float) -> Progress:
    """Progress for a piece of the work that begins at `start` and is `share` of the whole."""
    return lambda fraction: progress(start + share * fraction)
