"""Strips give the same result as the plain network for every size, strip and number of threads."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasn_cli.inference import Upscaler, blocks
from hasn_cli.inference.planning import BORDER
from hasn_cli.inference.streaming import LowMap, Window, split
from hasn_cli.network import HASN
from hasn_cli.weights import bundled_path, load_network

CLOSE = 2e-5


@pytest.fixture(scope="module")
def networks() -> dict[int, HASN]:
    """The included networks, by scale."""
    return {scale: load_network("hasn", scale).eval() for scale in (2, 3, 4)}


def photo(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A picture with edges, gradients and noise, float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 16
    waves = [np.sin(x * a + y * b + c) > 0.3 * d for a, b, c, d in rng.normal(size=(channels, 4))]
    image = 0.6 * np.stack(waves, -1) + 0.3 * rng.random((height, width, channels)) + 0.1 * np.sin(x)[..., None] ** 2
    return image.astype(np.float32)


@torch.inference_mode()
def plain(network: HASN, image: np.ndarray) -> np.ndarray:
    """The plain network's result for H×W×3."""
    return network(torch.from_numpy(image).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()


@settings(max_examples=25, deadline=None)
@example(scale=4, height=15, width=15, strip=1, threads=1)
@example(scale=2, height=101, width=16, strip=3, threads=2)
@example(scale=3, height=53, width=67, strip=None, threads=2)
@given(
    scale=st.sampled_from([2, 3, 4]),
    height=st.integers(15, 90),
    width=st.integers(15, 60),
    strip=st.one_of(st.none(), st.integers(1, 100)),
    threads=st.integers(1, 3),
)
def test_any_size_strip_and_number_of_threads_give_the_networks_own_result(
    networks, scale, height, width, strip, threads
):
    upscaler = Upscaler(networks[scale], device="cpu", strip=strip, threads=threads, border=0)
    image = photo(height, width, seed=height * width)
    assert np.abs(upscaler.upscale(image) - plain(networks[scale], image)).max() < CLOSE
    upscaler.close()


@pytest.mark.parametrize("size", [(3000, 17), (17, 3000)])
def test_very_long_pictures_are_exact(networks, size):
    image = photo(*size)
    assert (
        np.abs(
            Upscaler(networks[2], device="cpu", threads=2, border=0).upscale(image) - plain(networks[2], image)
        ).max()
        < CLOSE
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (6, 40), (30, 41)])
def test_the_network_sees_mirrored_pixels_around_the_picture_which_are_cut_off(networks, size):
    image = photo(*size)
    wide = np.pad(image, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), mode="symmetric")
    expected = plain(networks[3], wide)[3 * BORDER :, 3 * BORDER :][: 3 * size[0], : 3 * size[1]]
    result = Upscaler(networks[3], device="cpu", threads=2, strip=5).upscale(image)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() < CLOSE


@pytest.mark.parametrize("options", [{}, {"tta": True}, {"tile": 48}], ids=["whole", "tta", "tiles"])
@pytest.mark.parametrize("weights", ["hasn", "photo"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_flat_colours_stay_flat_to_the_last_pixel(scale, weights, options):
    path = bundled_path(scale).with_name(f"{weights}_x{scale}.safetensors")
    upscaler = Upscaler(load_network(str(path), scale), device="cpu", threads=2, **options)
    assert upscaler.plan((50, 60)).tiles == (4 if "tile" in options else 1)
    for colour in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255), (106, 153, 85), (128, 128, 128)]:
        flat = np.full((50, 60, 3), colour, np.uint8)
        assert np.abs(upscaler.upscale(flat) - np.array(colour, np.int16)).max() <= 2


@pytest.mark.parametrize("native", [True, False], ids=["machine code", "operators"])
def test_features_that_are_held_equal_those_computed_twice(networks, monkeypatch, native):
    """They are held on accelerators."""
    if not native:
        monkeypatch.setattr(blocks, "find_native", lambda: None)
    upscaler = Upscaler(networks[2], device="cpu", threads=2, strip=5, border=0)
    image = photo(70, 50)
    roomy = dataclasses.replace(upscaler.plan((70, 50)), keep=True)
    monkeypatch.setattr(upscaler, "_plan_for", lambda *_, **__: roomy)
    assert np.abs(upscaler.upscale(image) - plain(networks[2], image)).max() < CLOSE


def test_the_released_weights_give_their_golden_pictures(shared):
    network = load_network(str(shared / "weights" / "HASN_x4_released.pth"), 4)
    upscaler = Upscaler(network, device="cpu", threads=2, strip=7, border=0)
    golden = np.load(shared / "golden" / "x4_released.npz")
    names = [name.removesuffix("_lr") for name in golden if name.endswith("_lr")]
    assert names
    for name in names:
        sr = upscaler.upscale((golden[f"{name}_lr"] / 255).astype(np.float32))
        assert np.abs(sr - golden[f"{name}_sr"]).max() < CLOSE


def test_operators_on_the_cpu_give_the_same_result(networks, monkeypatch):
    """Where there is no machine code: without AVX2, and without llvmlite."""
    monkeypatch.setattr(blocks, "find_native", lambda: None)
    image = photo(61, 45)
    upscaler = Upscaler(networks[4], device="cpu", threads=2, strip=7, border=0)
    assert np.abs(upscaler.upscale(image) - plain(networks[4], image)).max() < CLOSE


def test_operators_of_other_devices_give_the_same_result(networks, monkeypatch):
    """Accelerators use public operators, one band and the calling thread; here this runs on the CPU."""
    monkeypatch.setattr("hasn_cli.inference.kernels.has_onednn", lambda _: False)
    monkeypatch.setattr(blocks, "find_native", lambda: None)
    upscaler = Upscaler(networks[3], device="cpu", strip=9, border=0)
    upscaler._threads = 0
    image = photo(41, 37)
    assert np.abs(upscaler.upscale(image) - plain(networks[3], image)).max() < CLOSE


@given(height=st.integers(15, 400), rows=st.integers(1, 66), width=st.integers(15, 40))
@settings(max_examples=25, deadline=None)
def test_the_low_resolution_map_is_enlarged_as_interpolate_does(height, rows, width):
    low = torch.randn(1, 16, rows, 5, generator=torch.Generator().manual_seed(height))
    expected = torch.nn.functional.interpolate(low, size=(height, width), mode="bilinear", align_corners=False)
    enlarged = LowMap(low, height, width).rows(0, height).permute(2, 0, 1)
    assert torch.allclose(enlarged, expected[0], atol=1e-4)  # a row's place, up to 66, is a float32


def test_a_window_slides_and_shows_zeros_outside_the_picture():
    window = Window(-2, torch.empty(7, 1, 1), keep=2, height=5)
    seen = []

    def fill(lo: int, hi: int, out: torch.Tensor) -> None:
        seen.append((lo, hi))
        out[:, 0, 0] = torch.arange(lo, hi) + 1.0

    window.extend(2, fill)
    assert window.rows(-2, 2).flatten().tolist() == [0, 0, 1, 2]
    window.extend(7, fill)
    assert window.rows(0, 7).flatten().tolist() == [1, 2, 3, 4, 5, 0, 0]
    assert seen == [(0, 2), (2, 5)]


@given(length=st.integers(1, 500), parts=st.integers(1, 20), smallest=st.integers(1, 40))
def test_bands_cover_the_height_once(length, parts, smallest):
    bands = split(length, parts, smallest)
    assert bands[0][0] == 0 and bands[-1][1] == length
    assert all(before[1] == after[0] for before, after in itertools.pairwise(bands))
    assert len(bands) <= parts and (len(bands) == 1 or min(hi - lo for lo, hi in bands) >= smallest)
