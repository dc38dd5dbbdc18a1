"""Graphics keep their colours: nothing overshoots beside lines and text, and what is flat stays flat."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageFont

from hasn_cli.enlarge import limited


def lines() -> Image.Image:
    """1-pixel lines, outlines and a filled square on white."""
    image = Image.new("RGB", (72, 56), "white")
    draw = ImageDraw.Draw(image)
    for index, colour in enumerate(["black", (200, 0, 0), (0, 0, 200), (90, 90, 90)]):
        draw.line((6 + 8 * index, 4, 6 + 8 * index, 30), fill=colour)
    draw.line((40, 6, 68, 26), fill="black")
    draw.ellipse((42, 30, 64, 52), outline=(30, 30, 160))
    draw.rectangle((8, 36, 30, 50), fill=(255, 0, 0))
    return image


def screenshot() -> Image.Image:
    """Coloured text on a dark background, and a button."""
    image = Image.new("RGB", (110, 48), (30, 30, 30))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(12)
    draw.text((4, 2), "# comment", font=font, fill=(106, 153, 85))
    draw.text((4, 18), "grey text", font=font, fill=(128, 128, 128))
    draw.rectangle((70, 6, 104, 40), fill=(0, 122, 204))
    return image


def around(pixels: np.ndarray, choose: np.ufunc) -> np.ndarray:
    """The minimum or maximum of the 5×5 pixels around each pixel, the slow way."""
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="edge")
    shifted = [padded[y : y + pixels.shape[0], x : x + pixels.shape[1]] for y in range(5) for x in range(5)]
    return choose.reduce(shifted)


def larger(pixels: np.ndarray, scale: int) -> np.ndarray:
    return pixels.repeat(scale, 0).repeat(scale, 1).astype(int)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("draw", [lines, screenshot])
def test_graphics_do_not_overshoot_and_their_flat_colours_are_exact(hasn, tmp_path, draw, scale):
    draw().save(tmp_path / "drawing.png")
    assert hasn("drawing.png", "-s", str(scale), "-o", "large.png").code == 0
    small = np.asarray(draw())
    large = np.asarray(Image.open(tmp_path / "large.png")).astype(int)
    low, high = around(small, np.minimum), around(small, np.maximum)
    assert (large >= larger(low, scale) - 16).all() and (large <= larger(high, scale) + 16).all()
    flat = larger((low == high).all(-1), scale).astype(bool)
    assert flat.any() and (large[flat] == larger(small, scale)[flat]).all()


def test_a_screenshots_text_keeps_its_brightness(hasn, tmp_path):
    """The comment's green used to come out nearly white."""
    screenshot().save(tmp_path / "shot.png")
    assert hasn("shot.png", "-s", "4", "-o", "large.png").code == 0
    large = np.asarray(Image.open(tmp_path / "large.png"))
    comment = large[: 4 * 16, : 4 * 64]
    assert (comment.reshape(-1, 3).max(0) <= np.array([106, 153, 85]) + 16).all()


def slowly_limited(large: np.ndarray, small: np.ndarray, scale: int, limit: str) -> np.ndarray:
    """What `limited` should give, for the whole picture at once."""
    low, high = (around(small, choose).astype(float) for choose in (np.minimum, np.maximum))
    span = high - low
    room = np.minimum(2 * span, 16 + span / 2) if limit == "loose" else np.minimum(span, 16)
    bounds = (
        edge.clip(0, 255).astype(np.uint8).repeat(scale, 0).repeat(scale, 1) for edge in (low - room, high + room)
    )
    return large.clip(*bounds)


@settings(max_examples=60, deadline=None)
@given(
    small=arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))),
    scale=st.integers(1, 4),
    limit=st.sampled_from(["loose", "tight"]),
    seed=st.integers(0, 99),
)
def test_the_limit_is_as_documented_for_any_picture(small, scale, limit, seed):
    height, width, channels = small.shape
    shape = (height * scale, width * scale, channels)
    large = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(limited(large.copy(), small, limit), slowly_limited(large, small, scale, limit))


@pytest.mark.parametrize("scale", [1, 3])
def test_a_tall_picture_is_limited_alike_everywhere(scale):
    """It is computed in bands of rows."""
    random = np.random.default_rng(scale)
    small = random.integers(0, 256, (150, 5, 3), dtype=np.uint8)
    small[20:110] //= 16
    large = random.integers(0, 256, (150 * scale, 5 * scale, 3), dtype=np.uint8)
    assert np.array_equal(limited(large.copy(), small, "tight"), slowly_limited(large, small, scale, "tight"))


def test_16_bits_have_the_same_limit_in_proportion():
    small = np.zeros((8, 8, 3), np.uint16)
    small[4:] = 257 * 100
    large = np.full((16, 16, 3), 65535, np.uint16)
    assert limited(large, small, "tight").max() == 257 * 116


def test_lossless_photographs_have_a_loose_limit_and_jpegs_none(hasn, tmp_path):
    """Noise on one half, flat on the other: the flat half stays exact in a PNG, and a JPEG of it is not held to it."""
    pixels = np.full((40, 48, 3), 90, np.uint8)
    pixels[:, 24:] = np.random.default_rng(0).integers(0, 256, (40, 24, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert hasn("a.png", "-s", "2", "-o", "large.png").code == 0
    large = np.asarray(Image.open(tmp_path / "large.png"))
    assert (large[:, : 2 * 22] == 90).all()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=50)
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    assert hasn("a.jpg", "-s", "2", "-o", "jpeg.png").code == 0
    assert np.ptp(np.asarray(Image.open(tmp_path / "jpeg.png"))[:, :40]) > 0
