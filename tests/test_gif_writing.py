"""A written GIF shows every frame correctly: with pixels that become transparent, few or many colours, and noise."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import photo, picture
from PIL import Image

from hasn_cli.images import EncodeOptions, Frame, Picture, open_picture, write_picture


def film_of(frames: list[np.ndarray], duration: float = 50.0, **fields: object) -> Picture:
    shown = [Frame(pixels, duration) for pixels in frames]
    return picture(frames[0], "gif", frames=shown, frame_count=len(frames), loop=0, **fields)


def written(film: Picture) -> bytes:
    stream = io.BytesIO()
    write_picture(film, stream, "gif", EncodeOptions())
    return stream.getvalue()


def by_pillow(data: bytes) -> list[np.ndarray]:
    """Every frame as RGBA. Transparent pixels are 0 in every channel."""
    frames = []
    with Image.open(io.BytesIO(data)) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.array(image.convert("RGBA")))
            frames[-1][frames[-1][..., 3] == 0] = 0
    return frames


def by_us(data: bytes) -> list[np.ndarray]:
    frames = [frame.pixels for frame in open_picture(data).frames]
    return [np.dstack([f, np.full(f.shape[:2], 255, np.uint8)]) if f.shape[2] == 3 else f for f in frames]


def random_film(seed: int, count: int, shape: tuple[int, int], colors: int, share: float) -> list[np.ndarray]:
    """RGBA frames, each differing from the last in few or many places. A part `share` of the pixels is transparent."""
    dice = np.random.default_rng(seed)
    palette = np.dstack([dice.integers(0, 256, (1, colors, 3), np.uint8), np.full((1, colors), 255, np.uint8)])[0]
    index = dice.integers(0, colors, shape)
    clear = dice.random(shape) < share
    frames = []
    for _ in range(count):
        pixels = palette[index]
        pixels[clear] = 0
        frames.append(pixels)
        changed = dice.random(shape) < dice.choice([0, 0.02, 0.2, 0.9])
        index = np.where(changed, dice.integers(0, colors, shape), index)
        clear = np.where(dice.random(shape) < dice.choice([0, 0.05, 0.9]), dice.random(shape) < share, clear)
    return frames


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(2, 6),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    colors=st.sampled_from([1, 2, 5, 200]),
    share=st.sampled_from([0, 0.1, 0.5, 0.95]),
    one_palette=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_any_animation_with_transparency_is_preserved_exactly(seed, count, shape, colors, share, one_palette):
    frames = random_film(seed, count, shape, colors, share)
    data = written(film_of(frames, one_palette=one_palette))
    for decoded in (by_pillow(data), by_us(data)):
        assert len(decoded) == count
        for got, wanted in zip(decoded, frames, strict=True):
            np.testing.assert_array_equal(got, wanted)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    share=st.sampled_from([0, 0.1, 0.5]),
    one_palette=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_with_too_many_colours_transparency_is_right_and_two_decoders_agree(seed, shape, share, one_palette):
    frames = random_film(seed, 4, shape, 2000, share)
    data = written(film_of(frames, one_palette=one_palette))
    for ours, pillows, wanted in zip(by_us(data), by_pillow(data), frames, strict=True):
        np.testing.assert_array_equal(ours, pillows)
        np.testing.assert_array_equal(ours[..., 3], wanted[..., 3])


def test_clearing_a_part_of_a_frame_keeps_unchanged_pixels_next_to_it():
    backdrop = np.dstack([photo(40, 60), np.full((40, 60), 255, np.uint8)])
    backdrop[:, 40:] = 0
    frames = []
    for left in (30, 36, 42, 48):
        frames.append(backdrop.copy())
        frames[-1][10:20, left : left + 8] = (250, 240, 10, 255)
    found = by_pillow(written(film_of(frames)))
    still = np.ones((40, 60), bool)
    still[10:20, 30:] = False
    for got, wanted in zip(found, frames, strict=True):
        np.testing.assert_array_equal(got[..., 3], wanted[..., 3])
        np.testing.assert_array_equal(got[still], found[0][still])


def gif_by_hand(frames: list[tuple[np.ndarray, int, bool]]) -> bytes:
    """A GIF from full frames of palette indices, each with its disposal. Index 0 is transparent on request."""
    height, width = frames[0][0].shape
    data = (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x81, 0, 0) + bytes([0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9])
    )
    for indices, disposal, transparent in frames:
        alone = io.BytesIO()
        Image.fromarray(indices.astype(np.uint8)).save(alone, "GIF", optimize=False, interlace=0)
        whole = alone.getvalue()
        start = whole.index(b"\x2c" + struct.pack("<HHHH", 0, 0, width, height)) + 10
        data += b"\x21\xf9\x04" + struct.pack("<BHBB", disposal << 2 | transparent, 5, 0, 0)
        data += whole[start - 10 : start - 1] + b"\0" + whole[start:-1]
    return data + b";"


def test_restoring_the_state_before_the_first_frame_clears_the_canvas():
    whole, half = np.ones((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    half[:, :3] = 2
    data = gif_by_hand([(whole, 3, True), (half, 1, True)])
    came = open_picture(data)
    for frames in (by_us(data), by_pillow(data), by_us(written(came)), by_pillow(written(came))):
        assert (frames[0] == (255, 0, 0, 255)).all()
        assert (frames[1][:, :3] == (0, 255, 0, 255)).all()
        assert (frames[1][:, 3:, 3] == 0).all()


def tables(data: bytes) -> tuple[bool, int]:
    """Whether a GIF has a palette for all frames, and how many frames have their own."""
    at, own = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0), 0
    while data[at] != 0x3B:
        if data[at] == 0x21:
            at += 2
        else:
            own += data[at + 9] >> 7
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
        while data[at]:
            at += 1 + data[at]
        at += 1
    return bool(data[10] & 0x80), own


def moving_square(count: int = 5) -> list[np.ndarray]:
    frames = [photo(60, 80) for _ in range(count)]
    for index, pixels in enumerate(frames):
        pixels[10:22, 5 + 9 * index : 17 + 9 * index] = (255, 20 * index, 0)
    return frames


@pytest.mark.parametrize("one_palette", [True, False])
def test_unchanged_parts_are_drawn_once_and_a_shared_palette_stays_shared(one_palette):
    frames = moving_square()
    data = written(film_of(frames, one_palette=one_palette))
    found = by_pillow(data)
    for earlier, later, before, now in zip(found, found[1:], frames, frames[1:], strict=False):
        still = (before == now).all(axis=2)
        np.testing.assert_array_equal(later[still], earlier[still])
    for got, wanted in zip(found, frames, strict=True):
        assert np.abs(got[..., :3].astype(int) - wanted).mean() < 6
    assert tables(data) == ((True, 0) if one_palette else (False, 5))
    assert len(data) < 2 * len(written(film_of(frames[:1])))


def test_few_colours_over_all_frames_make_one_palette_without_loss():
    frames = [np.roll(photo(30, 40) & 0xC0, 3 * index, axis=1) for index in range(4)]
    data = written(film_of(frames))
    assert tables(data) == (True, 0)
    for got, wanted in zip(by_pillow(data), frames, strict=True):
        np.testing.assert_array_equal(got[..., :3], wanted)


def test_a_colour_that_fills_an_area_stays_exact_and_smooth():
    pixels = photo(60, 80)
    pixels[:, :40] = (254, 253, 251)
    shown = by_pillow(written(film_of([pixels])))[0]
    assert (shown[:, :40, :3] == (254, 253, 251)).all()


def test_a_slow_fade_is_followed_although_each_step_is_small():
    frames = [np.clip(photo(30, 40).astype(int) // 2 + index, 0, 255).astype(np.uint8) for index in range(40)]
    found = by_pillow(written(film_of(frames)))
    bias = [float((got[..., :3].astype(int) - wanted).mean()) for got, wanted in zip(found, frames, strict=True)]
    assert np.abs(bias).max() < 3


def test_a_long_animation_is_not_kept_in_memory(monkeypatch):
    monkeypatch.setattr("hasn_cli.images.codecs.gif_writing._IN_MEMORY", 1)
    frames = moving_square()
    found = by_pillow(written(film_of(frames)))
    assert len(found) == 5
    assert np.abs(found[4][..., :3].astype(int) - frames[4]).mean() < 6
