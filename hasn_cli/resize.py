"""Bicubic resizing as in MATLAB's `imresize`, which is the usual way to make LR pictures for research.

It uses Keys' kernel with a = −0.5 (Keys, IEEE Trans. ASSP 29(6), 1981). For reducing, the kernel is widened by the
factor, so that it also removes what the smaller grid cannot show (antialiasing). Beyond the border, the edge pixel is
repeated. Integers are rounded and clipped after each of the two passes, the first along the columns. The LR pictures of
the standard benchmarks are reproduced bit for bit. Pillow's and OpenCV's bicubic differ in several of these points.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUPPORT = 2.0  # half the kernel's width, in pixels of the coarser grid
BAND = 64  # rows or columns that one pass handles at a time


def resize(image: NDArray[Any], *, scale: float | None = None, size: tuple[int, int] | None = None) -> NDArray[Any]:
    """Resize a picture, antialiased when it shrinks.

    Args:
        image: H×W or H×W×C; any integer or float type.
        scale: factor for both axes; the result is ⌈H·scale⌉×⌈W·scale⌉. Give this or `size`.
        size: (height, width) of the result; each axis then has its own factor.

    Returns:
        The same type as `image`. Integers are rounded and clipped to their range; floats may overshoot.

    Raises:
        ValueError: neither or both of `scale` and `size` are given, or the result would have no pixel.
    """
    if (scale is None) == (size is None):
        raise ValueError("give either scale or size")
    height, width = image.shape[:2]
    if size is None:
        assert scale is not None
        size = (math.ceil(height * scale - 1e-9), math.ceil(width * scale - 1e-9))
        factors = (scale, scale)
    else:
        factors = (size[0] / height, size[1] / width)
    result = image
    for axis in sorted((0, 1), key=lambda axis: factors[axis]):  # MATLAB starts with the stronger reduction
        result = resize_axis(result, axis, size[axis], factors[axis])
    return result


def resize_axis(image: NDArray[Any], axis: int, new_length: int, factor: float) -> NDArray[Any]:
    """One pass of `resize` along one axis; the same type as `image`."""
    indices, weights = taps(image.shape[axis], new_length, factor)
    values = np.moveaxis(image, axis, 0)
    kind = np.float64 if image.dtype == np.float64 else np.float32
    columns = weights.astype(kind).reshape(*weights.shape, *(1,) * (values.ndim - 1))
    result = np.empty((new_length, *values.shape[1:]), image.dtype)
    for start in range(0, values.shape[1], BAND):  # so that sums and products need little memory and stay in the cache
        band = values[:, start : start + BAND]
        total = columns[:, 0] * band[indices[:, 0]]
        for tap in range(1, indices.shape[1]):
            total += columns[:, tap] * band[indices[:, tap]]
        result[:, start : start + BAND] = to_type(total, image.dtype)
    return np.moveaxis(result, 0, axis)


def to_type(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Convert floats to `dtype`: integers are rounded half up and clipped, floats are cast."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.floor(values + 0.5), limits.min, limits.max)
    return values.astype(dtype)


@lru_cache(maxsize=64)
def taps(length: int, new_length: int, factor: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The samples that contribute to each new sample, along one axis.

    Args:
        length: number of old samples.
        new_length: number of new samples.
        factor: new samples per old sample; below 1 the kernel is widened.

    Returns:
        Indices and weights, both new_length×T; the weights of a row sum to 1. They are cached: do not change them.
    """
    if length < 1 or new_length < 1:
        raise ValueError(f"cannot resize {length} samples to {new_length}")
    stretch = min(factor, 1.0)
    width = 2 * SUPPORT / stretch
    centre = (np.arange(new_length) + 0.5) / factor - 0.5  # in old samples
    first = np.floor(centre - width / 2).astype(np.intp) + 1
    indices = first[:, None] + np.arange(math.ceil(width))  # may lie outside
    weights = _keys((centre[:, None] - indices) * stretch)
    weights /= weights.sum(1, keepdims=True)
    return indices.clip(0, length - 1), weights


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1  # |x| ≤ 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2  # 1 < |x| ≤ 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
