"""Bicubic resizing, compared with the LR pictures of standard benchmarks and checked for its properties."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hasn_cli.resize import resize, taps


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shrinking_gives_the_benchmarks_lr_pictures_bit_for_bit(shared, scale):
    folder = shared / "bench" / "Set5" / f"x{scale}"
    compared = 0
    for path in sorted((folder / "HR").iterdir()):
        hr, lr = (np.array(Image.open(p).convert("RGB")) for p in (path, folder / "LR" / path.name))
        np.testing.assert_array_equal(resize(hr, scale=1 / scale), lr, err_msg=path.name)
        compared += 1
    assert compared == 5


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("size", [(7, 40), (40, 7), (13, 13), (50, 60)])
def test_a_flat_picture_stays_flat_and_keeps_its_type(dtype, size):
    resized = resize(np.full((21, 33, 3), 77, dtype), size=size)
    assert resized.dtype == dtype
    assert resized.shape == (*size, 3)
    np.testing.assert_allclose(resized, 77, rtol=1e-6)


def test_enlarging_reproduces_a_parabola_inside():
    # Keys' kernel with a = −0.5 is exact for polynomials up to the second degree
    old = np.arange(20.0) ** 2
    new = resize(np.tile(old, (20, 1)), scale=2)[10]
    places = (np.arange(40) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(new[4:-4], places[4:-4] ** 2, atol=1e-9)


def test_a_one_pixel_pattern_vanishes_when_halved():
    stripes = np.tile(np.array([0.0, 1.0]), (8, 16))
    np.testing.assert_allclose(resize(stripes, scale=0.5)[:, 2:-2], 0.5, atol=0.03)


def test_integers_are_clipped_and_floats_overshoot():
    edge = np.zeros((8, 16), np.float32)
    edge[:, 8:] = 1
    assert resize(edge, scale=2).max() > 1.02
    assert resize((edge * 255).astype(np.uint8), scale=2).max() == 255


def test_weights_sum_to_one_and_indices_stay_inside():
    for length, new_length in [(5, 3), (3, 5), (1, 4), (4, 1), (100, 33)]:
        indices, weights = taps(length, new_length, new_length / length)
        np.testing.assert_allclose(weights.sum(1), 1)
        assert indices.min() >= 0
        assert indices.max() < length


@pytest.mark.parametrize("arguments", [{}, {"scale": 2, "size": (4, 4)}, {"size": (0, 4)}])
def test_meaningless_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=r"give either|cannot resize"):
        resize(np.zeros((4, 4)), **arguments)
