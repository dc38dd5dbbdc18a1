"""PSNR and SSIM, compared with independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hasn_cli.evaluation.metrics import luma, psnr_b, psnr_y, ssim_y


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


def test_psnr_b_is_psnr_where_no_block_edge_shows(pair):
    smooth = np.repeat(np.tile(np.arange(64, dtype=np.uint8), (64, 1))[..., None], 3, -1)
    assert psnr_b(smooth + np.uint8(2), smooth, 2, 8) == pytest.approx(psnr_y(smooth + np.uint8(2), smooth, 2))


def test_psnr_b_counts_steps_at_the_edges_of_blocks_only():
    hr = np.full((64, 64, 3), 100, np.uint8)
    columns = np.arange(64)
    at_edges = np.broadcast_to((columns // 8 % 2 * 4 + 98).astype(np.uint8)[None, :, None], hr.shape)
    elsewhere = np.broadcast_to(((columns + 4) // 8 % 2 * 4 + 98).astype(np.uint8)[None, :, None], hr.shape)
    assert psnr_b(elsewhere, hr, 0, 8) == pytest.approx(psnr_y(elsewhere, hr, 0))
    # by hand: steps of 4 grey levels at 7 of 63 column edges, none at row edges
    level = (65.481 + 128.553 + 24.966) / 255
    error = (2 * level) ** 2 + 0.5 * (4 * level) ** 2 * math.log2(8) / math.log2(64)
    assert psnr_b(at_edges, hr, 0, 8) == pytest.approx(10 * math.log10(255**2 / error))


def test_block_edges_are_counted_from_the_corner_of_the_whole_picture():
    hr = np.full((64, 64, 3), 100, np.uint8)
    blocks = np.broadcast_to((np.arange(64) // 16 % 2 * 4 + 98).astype(np.uint8)[None, :, None], hr.shape)
    assert psnr_b(blocks, hr, 3, 16) < psnr_y(blocks, hr, 3) - 1
    assert psnr_b(blocks, hr, 3, 15) > psnr_b(blocks, hr, 3, 16)
