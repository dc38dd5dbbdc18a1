"""Bicubic resizing as MATLAB's `imresize` does it, which is how the field makes its LR pictures.

Keys' kernel with a = −0.5 (Keys, IEEE Trans. ASSP 29(6), 1981); when shrinking, the kernel is stretched by the
reduction so that it also removes what the smaller grid cannot hold (antialiasing); beyond the border the edge pixel is
repeated; integers are rounded and clipped after each of the two passes, the first down the columns. So made, the LR
pictures of the standard benchmarks come out bit for bit. Pillow's and OpenCV's bicubic differ in several of these.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

SUPPORT = 2.0  # half the kernel's width, in pixels of the coarser grid
BAND = 64  # rows or columns that a pass along the other axis does at a time


def resize(image: NDArray[Any], *, scale: float | None = None, size: tuple[int, int] | None = None) -> NDArray[Any]:
    """Resize a picture, antialiased when it shrinks.

    Args:
        image: H×W or H×W×C; any integer or float type.
        scale: factor for both axes; the result is ⌈H·scale⌉×⌈W·scale⌉. Give this or `size`.
        size: (height, width) of the result; each axis has its own factor then.

    Returns:
        The same type as `image`: integers rounded and clipped to their range, floats as they come (overshoot included).

    Raises:
        ValueError: neither or both of `scale` and `size`, or one that leaves no pixel.
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
    for axis in sorted((0, 1), key=lambda axis: factors[axis]):  # MATLAB begins with the stronger reduction
        result = resize_axis(result, axis, size[axis], factors[axis])
    return result


def resize_axis(image: NDArray[Any], axis: int, new_length: int, factor: float) -> NDArray[Any]:
    """One pass of `resize` along one axis; the same type as `image`."""
    indices, weights = taps(image.shape[axis], new_length, factor)
    values = np.moveaxis(image, axis, 0)
    kind = np.float64 if image.dtype == np.float64 else np.float32
    columns = weights.astype(kind).reshape(*weights.shape, *(1,) * (values.ndim - 1))
    result = np.empty((new_length, *values.shape[1:]), image.dtype)
    for start in range(0, values.shape[1], BAND):  # so that sums and products take little memory, and lie in the cache
        band = values[:, start : start + BAND]
        total = columns[:, 0] * band[indices[:, 0]]
        for tap in range(1, indices.shape[1]):
            total += columns[:, tap] * band[indices[:, tap]]
        result[:, start : start + BAND] = to_type(total, image.dtype)
    return np.moveaxis(result, 0, axis)


def to_type(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Floats → `dtype`: rounded half up and clipped for integers, merely cast for floats."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.floor(values + 0.5), limits.min, limits.max)
    return values.astype(dtype)


@lru_cache(maxsize=64)
def taps(length: int, new_length: int, factor: float) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Which samples make each new one, along one axis.

    Args:
        length: samples there are.
        new_length: samples wanted.
        factor: new samples for an old one; below 1 the kernel is stretched.

    Returns:
        indices and weights, both new_length×T; the weights of a row sum to 1. Not to be written to (cached).
    """
    if length < 1 or new_length < 1:
        raise ValueError(f"cannot resize {length} samples to {new_length}")
    stretch = min(factor, 1.0)
    width = 2 * SUPPORT / stretch
    centre = (np.arange(new_length) + 0.5) / factor - 0.5  # in old samples
    first = np.floor(centre - width / 2).astype(np.intp) + 1
    indices = first[:, None] + np.arange(math.ceil(width))  # may point outside
    weights = _keys((centre[:, None] - indices) * stretch)
    weights /= weights.sum(1, keepdims=True)
    return indices.clip(0, length - 1), weights


def _keys(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1  # |x| ≤ 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2  # 1 < |x| ≤ 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
