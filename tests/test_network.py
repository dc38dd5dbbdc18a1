"""The network matches the paper and the released checkpoint: size, keys and numbers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasn_cli.network import HASN, MIN_SIDE, complexity, pad_to_min_side


@pytest.fixture(scope="module")
def released(shared):
    network = HASN(4)
    checkpoint = torch.load(shared / "weights/HASN_x4_released.pth", weights_only=True)
    network.load_state_dict(checkpoint["params_ema"], strict=True)
    return network.eval()


@pytest.mark.parametrize("name", ["butterfly", "odd_37x53", "min_15x15"])
def test_the_released_weights_give_the_golden_outputs(released, shared, name):
    golden = np.load(shared / "golden/x4_released.npz")
    lr = torch.from_numpy(golden[f"{name}_lr"]).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        sr = released(lr)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(sr, golden[f"{name}_sr"], rtol=0, atol=1e-5)


def test_x4_has_the_parameters_of_the_paper():
    assert complexity(HASN(4)).parameters == 435_272


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_multiply_adds_agree_with_a_count_by_hand(scale):
    height, width = -(-720 // scale), -(-1280 // scale)
    pixels = height * width
    low = ((height - 3) // 2 + 1, (width - 3) // 2 + 1)
    pooled = ((low[0] - 7) // 3 + 1) * ((low[1] - 7) // 3 + 1)
    pointwise = 3 * 52 * 156 + 156 * 52 + 156 * 16 + 16 * 16 + 16 * 156
    depthwise = 2 * 49 * 52
    bottleneck = 2 * 9 * 52 * 17
    esa_low = 9 * 16 * 16 * (low[0] * low[1] + pooled)
    block = pixels * (pointwise + depthwise + bottleneck) + esa_low + 2 * 52
    ends = pixels * 9 * (3 * 52 + 52 * 52 + 52 * 3 * scale**2)
    assert complexity(HASN(scale)).multiply_adds == 6 * block + ends


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="scale"):
        HASN(5)


network_of = cache(lambda scale: HASN(scale).eval())  # one for each scale


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 3, 4]))
def test_any_size_comes_out_exactly_scaled(height, width, scale):
    with torch.inference_mode():
        assert network_of(scale)(torch.rand(1, 3, height, width)).shape == (1, 3, scale * height, scale * width)


@given(st.integers(1, 30), st.integers(1, 30))
def test_padding_reaches_the_minimum_side_and_keeps_the_picture(height, width):
    x = torch.rand(1, 2, height, width)
    padded = pad_to_min_side(x)
    assert padded.shape[-2:] == (max(MIN_SIDE, height), max(MIN_SIDE, width))
    assert torch.equal(padded[..., :height, :width], x)


def test_padding_mirrors_if_possible_and_repeats_otherwise():
    row = torch.arange(10.0).view(1, 1, 1, 10)
    assert pad_to_min_side(row)[0, 0, 0].tolist() == [*range(10), 8, 7, 6, 5, 4]
    assert pad_to_min_side(row[..., :2])[0, 0, 0].tolist() == [0] + [1] * 14
