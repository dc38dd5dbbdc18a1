"""PSNR-Y, SSIM-Y and PSNR-B as in super-resolution papers: on MATLAB's luma, with a border cut off."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

PEAK = 255.0
WINDOW = 11  # SSIM's Gaussian window, pixels
SIGMA = 1.5


def luma(image: NDArray[np.generic]) -> NDArray[np.float64]:
    """BT.601 luma in studio range as in MATLAB's `rgb2ycbcr`, not rounded.

    Args:
        image: H×W×3 RGB, 0 to 255.

    Returns:
        H×W, 16 to 235.
    """
    return 16.0 + image.astype(np.float64) @ (np.array([65.481, 128.553, 24.966]) / 255.0)


def psnr_y(sr: NDArray[np.generic], hr: NDArray[np.generic], crop_border: int) -> float:
    """Peak signal-to-noise ratio of the luma in decibels (peak 255); infinite for equal pictures.

    Args:
        sr, hr: H×W×3 RGB of the same size, uint8.
        crop_border: pixels cut off at each side; papers use the scale.
    """
    difference = _luma_inside(sr, crop_border) - _luma_inside(hr, crop_border)
    error = float(np.mean(difference**2))
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


def psnr_b(sr: NDArray[np.generic], hr: NDArray[np.generic], crop_border: int, block: int) -> float:
    """PSNR-B: `psnr_y` with a penalty for visible block edges.

    The penalty is added to the mean square error if neighbouring pixels of SR differ more across block edges than
    elsewhere. It is log2(block) / log2(shorter side) times the excess of the mean square difference (Yim and Bovik,
    IEEE Trans. Image Processing 20(1), 2011).

    Args:
        sr, hr: H×W×3 RGB of the same size, uint8.
        crop_border: pixels cut off at each side. The blocks start at the corner of the whole picture.
        block: side of the blocks in SR pixels: 8 times the scale for a JPEG that was enlarged.
    """
    luma_sr = _luma_inside(sr, crop_border)
    error = float(np.mean((luma_sr - _luma_inside(hr, crop_border)) ** 2))
    across: list[NDArray[np.float64]] = []
    elsewhere: list[NDArray[np.float64]] = []
    for axis in (0, 1):
        squares = np.diff(luma_sr, axis=axis) ** 2
        at_edge = (np.arange(1, luma_sr.shape[axis]) + crop_border) % block == 0
        across.append(np.compress(at_edge, squares, axis).ravel())
        elsewhere.append(np.compress(~at_edge, squares, axis).ravel())
    edges, others = np.concatenate(across), np.concatenate(elsewhere)
    if edges.size and others.size:
        excess = max(0.0, float(edges.mean() - others.mean()))
        error += excess * math.log2(block) / math.log2(min(luma_sr.shape))
    return 10 * math.log10(PEAK**2 / error) if error else math.inf


def ssim_y(sr: NDArray[np.generic], hr: NDArray[np.generic], crop_border: int) -> float:
    """Structural similarity of the luma (Wang et al., IEEE Trans. Image Processing 13(4), 2004), at most 1.

    Gaussian window of 11×11 with σ = 1.5, K = (0.01, 0.03), mean over the positions where the window fits.

    Args:
        sr, hr: H×W×3 RGB of the same size, uint8, sides of at least 11 + 2·crop_border.
        crop_border: pixels cut off at each side; papers use the scale.

    Raises:
        ValueError: the pictures differ in size or are too small for the window.
    """
    x, y = _luma_inside(sr, crop_border), _luma_inside(hr, crop_border)
    if x.shape != y.shape or min(x.shape) < WINDOW:
        raise ValueError(f"SSIM needs two pictures of one size, at least {WINDOW} px inside the border")
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(similarity.mean())


def _luma_inside(image: NDArray[np.generic], border: int) -> NDArray[np.float64]:
    height, width = image.shape[:2]
    return luma(image[border : height - border, border : width - border])


def _blur(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel = np.exp(-((np.arange(WINDOW) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(plane, WINDOW, axis=axis)
        plane = windows @ kernel
    return plane
