"""Noise, which no encoder can compress, is written in every format, size and depth."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import picture

from hasn_cli.images import FORMATS, EncodeOptions, Frame, open_picture, write_picture

LOSSLESS = {"png", "tiff", "bmp", "ppm", "tga", "webp", "avif", "jpeg2000", "jpegxl", "ico"}
SIZES = [(1, 1), (1, 300), (300, 1), (2, 3), (17, 31), (100, 101)]


def noise(seed: int, shape: tuple[int, ...], colors: int = 0, dtype: type = np.uint8) -> np.ndarray:
    """H×W×C pixels with random values, or with a few random colours."""
    dice = np.random.default_rng(seed)
    if not colors:
        return dice.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    palette = dice.integers(0, 256, (colors, shape[2]), np.uint8)
    return palette[dice.integers(0, colors, shape[:2])]


def through(frames: list[np.ndarray], format: str, options: EncodeOptions) -> list[np.ndarray]:
    shown = [Frame(pixels, 50.0) for pixels in frames]
    many = {"frame_count": len(frames), "loop": 0} if len(frames) > 1 else {}
    stream = io.BytesIO()
    write_picture(picture(frames[0], frames=shown, **many), stream, format, options)
    return [frame.pixels for frame in open_picture(stream.getvalue()).frames]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("format", [name for name in FORMATS if name != "pfm"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_noise_is_written_in_every_format(format, size, channels):
    if max(size) > FORMATS[format].max_side or (channels == 4 and not FORMATS[format].alpha):
        return
    pixels = noise(sum(size), (*size, channels))
    for options in (EncodeOptions(lossless=True), EncodeOptions(quality=100)):
        (found,) = through([pixels], format, options)
        assert found.shape[:2] == size
        if format in LOSSLESS and options.lossless:
            np.testing.assert_array_equal(found, np.broadcast_to(pixels, found.shape))


@pytest.mark.parametrize("format", ["gif", "png", "bmp", "tga", "webp"])
def test_noise_of_a_larger_picture_is_written(format):
    pixels = noise(9, (333, 257, 3))
    (found,) = through([pixels], format, EncodeOptions(lossless=True))
    assert format == "gif" or (found == pixels).all()


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (2000, 2)])
@pytest.mark.parametrize("format", ["png", "gif", "tiff", "bmp", "tga"])
def test_noise_in_a_narrow_strip_is_written(format, size):
    pixels = noise(5, (*size, 1))
    np.testing.assert_array_equal(through([pixels], format, EncodeOptions())[0][..., :1], pixels)


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].deep])
@pytest.mark.parametrize("size", [(1, 1), (61, 47)])
def test_noise_of_16_bits_is_written_in_every_format(format, size):
    pixels = noise(3, (*size, 3), dtype=np.uint16)
    (found,) = through([pixels], format, EncodeOptions(lossless=True))
    assert found.dtype == np.uint16
    if format in LOSSLESS:
        np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].floats])
def test_noise_of_floats_is_written_in_every_format(format):
    pixels = np.random.default_rng(0).random((61, 47, 3), np.float32)
    np.testing.assert_array_equal(through([pixels], format, EncodeOptions())[0], pixels)


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].animation])
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (63, 65)])
@pytest.mark.parametrize("channels", [3, 4])
def test_animated_noise_is_written_in_every_format(format, size, channels):
    frames = [noise(seed, (*size, channels)) for seed in range(3)]
    found = through(frames, format, EncodeOptions(quality=100))
    assert [pixels.shape[:2] for pixels in found] == [size] * 3


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 130), st.integers(1, 130)),
    colors=st.sampled_from([1, 2, 3, 4, 16, 64, 127, 128, 129, 254, 255, 256]),
    count=st.integers(1, 3),
)
@settings(max_examples=25, deadline=None)
def test_noise_of_up_to_256_colours_is_a_gif_without_loss(seed, size, colors, count):
    palette = np.random.default_rng(seed).integers(0, 256, (colors, 3), np.uint8)
    frames = []
    for index in range(count):
        dice = np.random.default_rng([seed, index])
        frames.append(palette[dice.integers(0, colors, size)])
    for got, wanted in zip(through(frames, "gif", EncodeOptions()), frames, strict=True):
        np.testing.assert_array_equal(got[..., :3], np.broadcast_to(wanted, got[..., :3].shape))
