"""PSNR and SSIM, compared with independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hasn_cli.evaluation.metrics import luma, psnr_y, ssim_y


@pytest.fixture
def pair():
    random = np.random.default_rng(1)
    hr = random.integers(0, 256, (48, 61, 3)).astype(np.uint8)
    return np.clip(hr + random.normal(0, 12, hr.shape), 0, 255).astype(np.uint8), hr


def test_luma_spans_studio_range():
    ends = luma(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
    np.testing.assert_allclose(ends, [[16, 235]])


def test_psnr_of_a_known_error():
    hr = np.full((20, 20, 3), 100, np.uint8)
    step = (65.481 + 128.553 + 24.966) / 255  # luma of one grey level
    assert psnr_y(hr + np.uint8(1), hr, 4) == pytest.approx(20 * math.log10(255 / step))
    assert psnr_y(hr, hr, 4) == math.inf


def test_the_border_does_not_count(pair):
    sr, hr = pair
    spoilt = sr.copy()
    spoilt[:3], spoilt[-3:], spoilt[:, :3], spoilt[:, -3:] = 0, 0, 255, 255
    assert psnr_y(spoilt, hr, 3) == psnr_y(sr, hr, 3)
    assert ssim_y(spoilt, hr, 3) == ssim_y(sr, hr, 3)
    assert psnr_y(spoilt, hr, 2) < psnr_y(sr, hr, 2) - 0.1


@pytest.mark.parametrize("border", [0, 2, 4])
def test_psnr_and_ssim_agree_with_scikit_image(pair, border):
    measures = pytest.importorskip("skimage.metrics")
    planes = [luma(image[border : 48 - border, border : 61 - border]) for image in pair]
    assert psnr_y(*pair, border) == pytest.approx(measures.peak_signal_noise_ratio(*planes, data_range=255))
    full = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "full": True}
    _, similarity = measures.structural_similarity(*planes, **full)
    assert ssim_y(*pair, border) == pytest.approx(similarity[5:-5, 5:-5].mean(), abs=1e-9)


def test_ssim_refuses_pictures_smaller_than_its_window(pair):
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim_y(pair[0][:15], pair[1][:15], 4)
