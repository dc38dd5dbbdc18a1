"""Measures a network and bicubic interpolation over a folder of HR pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hasn_cli.batch.walk import OnSkip
from hasn_cli.choice import EIGHTHS, choose
from hasn_cli.enlarge import limited
from hasn_cli.errors import ImageError, UsageError
from hasn_cli.evaluation.metrics import psnr_b, psnr_y, ssim_y
from hasn_cli.evaluation.pictures import as_jpeg, list_pictures, read_rgb
from hasn_cli.images import open_picture
from hasn_cli.images.compression import Compression
from hasn_cli.images.picture import Frame, Picture
from hasn_cli.resize import resize

if TYPE_CHECKING:
    from hasn_cli.inference import Upscaler


JPEG_BLOCK = 8  # side of a JPEG's blocks in pixels


@dataclass(frozen=True)
class Score:
    """The result for one picture, or the mean of several: decibels, SSIM from −1 to 1, the network's seconds.

    `jpeg` is the quality of the JPEG that was enlarged, or None.
    """

    name: str
    psnr_y: float
    ssim_y: float
    bicubic_psnr_y: float
    bicubic_ssim_y: float
    psnr_b: float
    bicubic_psnr_b: float
    seconds: float
    jpeg: int | None = None


class ChosenUpscaler:
    """Enlarges pictures as `hasn upscale` does by default: with the weights that fit each of them.

    Args:
        scale: 2, 3 or 4.
        device: see `hasn_cli.inference.Upscaler`.
        jpeg: the pictures come from JPEGs (4:2:0) of this quality; None: from lossless files.
    """

    def __init__(self, scale: int, device: str, jpeg: int | None) -> None:
        self.scale, self._device = scale, device
        self._compression = None if jpeg is None else Compression("JPEG", jpeg, "4:2:0")
        self._upscalers: dict[int, Upscaler] = {}

    def upscale(self, lr: NDArray[np.uint8], source: Picture | None = None) -> NDArray[np.uint8]:
        """H×W×C → sH×sW×C. `source` is the file that the pixels come from, unless `jpeg` says how they were saved."""
        opened = self._opened(lr)
        if source is not None and self._compression is None:
            opened = replace(source, frames=opened.frames)
        choice = choose(opened)
        large: NDArray[np.uint8] = self._loaded(choice.photo).upscale(lr)
        return large if choice.limit == "none" else limited(large, lr, choice.limit)

    def _opened(self, lr: NDArray[np.uint8]) -> Picture:
        """The picture as it is when it is read from its file."""
        size, format = (lr.shape[0], lr.shape[1]), "png" if self._compression is None else "jpeg"
        return Picture("", format, size, lr.shape[2], lr.dtype, [Frame(lr)], compression=self._compression)

    def _loaded(self, photo: int) -> Upscaler:
        from hasn_cli.inference import Upscaler
        from hasn_cli.weights import load_blend

        if photo not in self._upscalers:
            self._upscalers[photo] = Upscaler(load_blend(self.scale, photo / EIGHTHS), device=self._device)
        return self._upscalers[photo]


def benchmark(
    hr_folder: Path,
    upscaler: Upscaler | ChosenUpscaler,
    lr_folder: Path | None = None,
    *,
    jpeg: int | None = None,
    on_skip: OnSkip,
) -> Iterator[Score]:
    """Score each picture of a folder, in natural order.

    Args:
        hr_folder: HR pictures; read as 8-bit RGB and cut to multiples of the scale.
        upscaler: its scale is also the width of the border that is cut off, as is usual in papers.
        lr_folder: LR pictures with the same names (with or without `xS` at the end); by default they are made from HR
            with MATLAB-style bicubic.
        jpeg: save the LR pictures as JPEG (4:2:0) of this quality, 1 to 100, before they are enlarged.
        on_skip: called for each picture that is left out, with the reason.

    Raises:
        UsageError: a folder does not exist or is empty, or an LR picture is missing.
        ImageError: a picture is corrupt, or LR and HR do not match.
    """
    lr_paths = [] if lr_folder is None else list_pictures(lr_folder, on_skip, recursive=False)
    lr_by_name = {path.stem: path for path in lr_paths}
    for path in list_pictures(hr_folder, on_skip, recursive=False):
        hr = whole_multiple(read_rgb(path), upscaler.scale)
        if not hr.size:
            raise ImageError(f"{path} is too small to be reduced {upscaler.scale} times")
        source = None
        if lr_folder is None:
            lr = resize(hr, scale=1 / upscaler.scale)
        else:
            lr, source = _matching_lr(path, hr, upscaler.scale, lr_by_name)
        yield replace(_score(path.name, hr, lr if jpeg is None else as_jpeg(lr, jpeg), upscaler, source), jpeg=jpeg)


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of each column, named "mean", over the pictures whose PSNR is finite, if there are any."""
    scores = [score for score in scores if is_finite(score)] or scores
    columns = [field.name for field in fields(Score) if field.name not in ("name", "jpeg")]
    means = {column: float(np.mean([getattr(score, column) for score in scores])) for column in columns}
    return Score(name="mean", jpeg=scores[0].jpeg, **means)


def is_finite(score: Score) -> bool:
    """Whether no result equals the HR picture, which happens if a picture has only one colour."""
    return math.isfinite(score.psnr_y) and math.isfinite(score.bicubic_psnr_y)


def whole_multiple(image: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Cut H×W×C at the bottom and right to sides that are multiples of the scale."""
    return image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]


def _score(
    name: str,
    hr: NDArray[np.uint8],
    lr: NDArray[np.uint8],
    upscaler: Upscaler | ChosenUpscaler,
    source: Picture | None,
) -> Score:
    began = perf_counter()
    sr = upscaler.upscale(lr, source) if isinstance(upscaler, ChosenUpscaler) else upscaler.upscale(lr)
    seconds = perf_counter() - began
    border = upscaler.scale
    plain = resize(lr, scale=upscaler.scale)
    try:
        psnr, ssim, plain_psnr, plain_ssim = (m(image, hr, border) for image in (sr, plain) for m in (psnr_y, ssim_y))
        blocky, plain_blocky = (psnr_b(image, hr, border, JPEG_BLOCK * border) for image in (sr, plain))
    except ValueError as error:
        raise ImageError(f"{name}: {error}") from None
    return Score(name, psnr, ssim, plain_psnr, plain_ssim, blocky, plain_blocky, seconds)


def _matching_lr(
    path: Path, hr: NDArray[np.uint8], scale: int, lr_paths: dict[str, Path]
) -> tuple[NDArray[np.uint8], Picture]:
    """The pixels of the LR picture, H×W×3, and its file."""
    lr_path = lr_paths.get(path.stem) or lr_paths.get(f"{path.stem}x{scale}")
    if lr_path is None:
        raise UsageError(f"no LR picture for {path.name}", f"it should be called {path.stem} or {path.stem}x{scale}")
    lr = read_rgb(lr_path)
    if (lr.shape[0] * scale, lr.shape[1] * scale) != hr.shape[:2]:
        sizes = f"{lr.shape[1]}×{lr.shape[0]} and {hr.shape[1]}×{hr.shape[0]}"
        raise ImageError(f"{lr_path} is no x{scale} reduction of {path}: {sizes}")
    return lr, open_picture(lr_path)
