"""Enlarging: exact sizes, no colour shift, clean transparent edges, every kind of pixel, frame by frame."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import Nearest, Overshooting, animation, full_metadata, photo, picture
from PIL import Image

from hasn_cli.batch.process import bytes_needed
from hasn_cli.batch.settings import Settings
from hasn_cli.enlarge import Size, enlarge, enlarge_pixels, reduce_to
from hasn_cli.errors import ImageError, UsageError
from hasn_cli.images import Frame, open_picture
from hasn_cli.images.color import bleed, over
from hasn_cli.resize import resize

sides = st.integers(1, 4000)


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "target", "scale"),
    [
        (Size(2), (200, 300), 2),
        (Size(), (400, 600), 4),
        (Size(Fraction(3, 2)), (150, 225), 2),
        (Size(1.1), (110, 165), 2),
        (Size(2.5), (250, 375), 3),
        (Size(width=450), (300, 450), 3),
        (Size(width=451), (301, 451), 4),
        (Size(height=123), (123, 185), 2),
        (Size(width=160, height=300, stretch=True), (300, 160), 3),
        (Size(fit=(1000, 400)), (267, 400), 3),
        (Size(fit=(260, 4000)), (260, 390), 3),
        (Size(megapixels=0.06), (200, 300), 2),
        (Size(width=75), (50, 75), 2),
    ],
)
def test_sizes_are_exact_to_the_pixel(size, target, scale):
    assert size.target((100, 150)) == target
    assert size.network_scale((100, 150)) == scale
    shown = enlarge(picture(photo(100, 150)), Nearest, size)
    assert shown.size == target == next(iter(shown.frames)).pixels.shape[:2]


@given(lr=st.tuples(sides, sides), box=st.tuples(sides, sides))
def test_a_fit_touches_its_box_and_stays_inside(lr, box):
    target = Size(fit=box).target(lr)
    assert target[0] <= box[0] and target[1] <= box[1]
    assert target[0] == box[0] or target[1] == box[1] or max(target) == 16 * max(lr)


@given(lr=st.tuples(sides, sides), factor=st.fractions(1, 4, max_denominator=100))
def test_the_network_reaches_every_factor(lr, factor):
    size = Size(factor)
    target, scale = size.target(lr), size.network_scale(lr)
    assert scale in (2, 3, 4)
    assert all(wanted <= scale * side for wanted, side in zip(target, lr, strict=True))
    assert scale == 2 or any(wanted > (scale - 1) * side for wanted, side in zip(target, lr, strict=True))


@given(lr=st.tuples(st.integers(20, 4000), st.integers(20, 4000)), megapixels=st.floats(0.01, 100))
def test_megapixels_are_met_as_closely_as_the_proportions_allow(lr, megapixels):
    height, width = Size(megapixels=megapixels).target(lr)
    assert abs(height * width - megapixels * 1e6) <= max(height, width) + 1


@pytest.mark.parametrize(
    "wish",
    [
        {"factor": 17},
        {"stretch": True, "width": 9},
        {"factor": 0.5},
        {"factor": None},
        {"width": 0},
        {"megapixels": -1},
        {"megapixels": float("inf")},
        {"megapixels": float("nan")},
        {"megapixels": 1e308},
        {"width": float("inf")},
        {"fit": (9, float("inf"))},
        {"fit": (0, 9)},
        {"width": 9, "fit": (9, 9)},
        {"height": 9, "megapixels": 1},
    ],
)
def test_impossible_sizes_are_refused(wish):
    with pytest.raises(UsageError):
        Size(**wish)


def test_more_than_sixteen_times_is_refused_before_anything_runs():
    with pytest.raises(ImageError, match="more than 16 times"):
        enlarge(picture(photo(10, 10)), Nearest, Size(width=161))


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("size", [Size(2), Size(1.7)])
def test_every_kind_of_pixel_keeps_its_kind(channels, dtype, size):
    pixels = photo(channels=channels, dtype=dtype)
    upscaler = Nearest(2)
    large = enlarge_pixels(pixels, lambda scale: upscaler, size)
    assert (large.shape[2], large.dtype) == (channels, dtype)
    assert {name for _, name in upscaler.calls} == {np.dtype(dtype).name}
    colors = [shape[2] for shape, _ in upscaler.calls]
    assert colors == ([1] if channels == 1 else [1, 1] if channels == 2 else [3] if channels == 3 else [3, 1])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [Size(2), Size(3), Size(4), Size(1.5), Size(2.7)])
def test_nothing_shifts(channels, size):
    soft = Image.fromarray(photo(15, 20)).resize((80, 60), Image.Resampling.BICUBIC)
    pixels = np.asarray(soft)[..., :channels]
    large = enlarge_pixels(pixels, Nearest, size)
    for channel in range(channels):
        back = np.asarray(Image.fromarray(large[..., channel]).resize((80, 60), Image.Resampling.BOX)).astype(int)
        assert np.abs(back - pixels[..., channel]).mean() <= 2
        assert abs((back - pixels[..., channel]).mean()) < 0.2


def test_sixteen_bits_stay_sixteen():
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64, 1) * 16 + 5
    large = enlarge_pixels(pixels, Nearest, Size(2))
    assert len(np.unique(large)) == 4096
    reduced = enlarge_pixels(pixels, Nearest, Size(1.5))
    assert len(np.unique(reduced)) > 3000


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, 7.0), (0.2, 0.4), (0.0, 60000.0), (5.0, 5.0)])
def test_floats_keep_their_own_range(low, high):
    pixels = (photo(dtype=np.float32) * (high - low) + low).astype(np.float32)
    large = enlarge_pixels(pixels, Overshooting, Size(2))
    bounds = (0.0, 1.0) if 0 <= low < high <= 1 else (float(pixels.min()), float(pixels.max()))
    assert bounds[0] <= large.min() and large.max() <= bounds[1]
    same = enlarge_pixels(pixels, Nearest, Size(2))
    np.testing.assert_allclose(same[::2, ::2], pixels, rtol=1e-5, atol=1e-6 * max(1.0, high - low))


@pytest.fixture(scope="module")
def network():
    """The included x2 network."""
    from hasn_cli.inference import Upscaler
    from hasn_cli.weights import load_network

    upscaler = Upscaler(load_network("hasn", 2), device="cpu")
    return lambda scale: upscaler


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1e-3), (0.0, 1e-5), (8020.0, 8100.0), (-979.0, -900.0), (-1.6e38, 3.4e38)]
)
def test_floats_of_any_range_are_enlarged_as_well_as_those_from_0_to_1(network, low, high, recwarn):
    unit = photo(channels=1, dtype=np.float32)
    unit = (unit - unit.min()) / np.ptp(unit)
    expected = enlarge_pixels(unit, network, Size(2)).astype(np.float64)
    large = enlarge_pixels((unit.astype(np.float64) * (high - low) + low).astype(np.float32), network, Size(2))
    assert np.abs((large.astype(np.float64) - low) / (high - low) - expected).max() < 1e-3
    assert not recwarn.list


@pytest.mark.parametrize("missing", [-9999.0, -3.4028235e38, 1e30])
@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("side", [3, 24])
def test_values_far_from_all_others_leave_those_alone(network, missing, consistent, side, recwarn):
    heights = photo(64, 64, channels=1).astype(np.float32) / 255 * 95 + 405
    expected = enlarge_pixels(heights, network, Size(2), consistent)
    heights[:side, :side] = missing
    large = enlarge_pixels(heights, network, Size(2), consistent)
    assert abs(float(large[0, 0, 0]) / missing - 1) < 1e-3
    difference = np.abs(large[64:, 64:] - expected[64:, 64:])
    assert difference.mean() < 0.2  # the values span 95
    assert consistent or difference.max() < 2
    assert not recwarn.list


def test_values_brighter_than_white_stay_and_do_not_darken_others(network):
    dim = photo(64, 64, dtype=np.float32)
    expected = enlarge_pixels(dim, network, Size(2))
    dim[50:53, 50:53] = 5000
    large = enlarge_pixels(dim, network, Size(2))
    assert large.max() > 4000
    assert np.abs(large[:64] - expected[:64]).max() < 0.1


def test_a_flat_picture_of_floats_stays_flat(network):
    assert (enlarge_pixels(np.full((20, 20, 3), -500, np.float32), network, Size(2)) == -500).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [1, 3])
def test_undefined_floats_are_refused_in_colour_and_in_alpha(bad, channel):
    pixels = photo(channels=4, dtype=np.float32)
    pixels[3, 4, channel] = bad
    with pytest.raises(ImageError, match="undefined"):
        enlarge_pixels(pixels, Nearest, Size(2))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_reducing_keeps_range_and_mean(dtype):
    checks = (np.indices((40, 60)).sum(axis=0) // 5 % 2)[..., None].repeat(3, axis=2).astype(np.float64)
    pixels = (checks * (1 if dtype == np.float32 else np.iinfo(dtype).max)).astype(dtype)
    reduced = reduce_to(pixels, (25, 35))
    assert reduced.shape == (25, 35, 3) and reduced.dtype == dtype
    assert abs(float(reduced.mean()) - float(pixels.mean())) < 0.03 * float(pixels.max())


# --- memory ----------------------------------------------------------------------------------------------------------


def peak_and_result(pixels: np.ndarray, size: Size, consistent: bool) -> tuple[int, int]:
    """Peak memory of enlarging, including the result, and the memory of the result alone, in bytes."""
    enlarge_pixels(pixels[:8, :8], Nearest, size, consistent)  # imports and tables are not counted
    tracemalloc.start()
    try:
        result = enlarge_pixels(pixels, Nearest, size, consistent)
        return tracemalloc.get_traced_memory()[1], result.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("dtype", "size", "consistent", "most"),
    [
        (np.uint8, Size(4), True, 6),
        (np.uint8, Size(3.9), True, 6),
        (np.uint8, Size(3.9), False, 3.5),
        (np.uint16, Size(4), True, 4.5),
        (np.uint16, Size(3.9), False, 4.5),
        (np.float32, Size(4), False, 2.5),
        (np.float32, Size(4), True, 3.5),
        (np.float32, Size(3.9), False, 3.5),
    ],
)
def test_steps_after_the_network_need_only_a_few_times_the_memory_of_the_result(dtype, size, consistent, most):
    peak, result = peak_and_result(photo(300, 400, dtype=dtype), size, consistent)
    assert peak < most * result


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize(("size", "consistent"), [(Size(4), False), (Size(4), True), (Size(3.9), False)])
def test_a_batch_counts_the_memory_of_enlarging(channels, dtype, size, consistent):
    pixels = photo(300, 400, channels=channels, dtype=dtype)
    counted = bytes_needed(picture(pixels), Settings(size=size, consistent=consistent))
    peak, _ = peak_and_result(pixels, size, consistent)
    assert pixels.nbytes + peak < counted


def test_a_batch_counts_no_memory_for_steps_that_are_not_needed():
    shown = picture(photo(30, 40))
    plain, consistent = (bytes_needed(shown, Settings(size=Size(4), consistent=wish)) for wish in (False, True))
    assert plain == 30 * 40 * 3 * (1 + 3 * 16)
    assert consistent > plain


# --- transparency ----------------------------------------------------------------------------------------------------


def disc(background: tuple[int, int, int], dtype: type = np.uint8) -> np.ndarray:
    """A green disc with a soft edge and another colour under the transparent pixels."""
    rows, columns = np.mgrid[:40, :40]
    distance = np.hypot(rows - 19.5, columns - 19.5)
    opacity = np.clip(14.5 - distance, 0, 1)
    pixels = np.empty((40, 40, 4))
    pixels[...] = (*background, 0)
    pixels[opacity > 0, :3] = (20, 200, 40)
    pixels[..., 3] = np.rint(255 * opacity)
    return (pixels * (257 if dtype == np.uint16 else 1)).astype(dtype)


@pytest.mark.parametrize("upscaler", [Nearest, Overshooting])
@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (255, 0, 255)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [Size(4), Size(2.5)])
def test_no_colour_bleeds_out_of_transparent_pixels(upscaler, background, dtype, size):
    large = enlarge_pixels(disc(background, dtype), upscaler, size).astype(float)
    full = np.iinfo(dtype).max
    seen = large[..., 3] > 0
    error = np.abs(large[..., :3] / full * 255 - (20, 200, 40)).max(axis=2)
    assert error[seen].max() <= 1


def test_the_colour_of_transparent_pixels_does_not_change_visible_ones():
    black, pink = (enlarge_pixels(disc(color), Overshooting, Size(3)) for color in ((0, 0, 0), (255, 0, 255)))
    seen = black[..., 3] > 0
    np.testing.assert_array_equal(black[..., 3], pink[..., 3])
    np.testing.assert_array_equal(black[seen], pink[seen])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_opaque_stays_opaque_without_running_the_network_on_alpha(dtype):
    full = 1 if dtype == np.float32 else np.iinfo(dtype).max
    pixels = photo(channels=4, dtype=dtype)
    pixels[..., 3] = full
    upscaler = Overshooting(2)
    large = enlarge_pixels(pixels, lambda scale: upscaler, Size(1.8))
    assert (large[..., 3] == full).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    scale=st.sampled_from([2, 3, 4]),
)
@settings(max_examples=60, deadline=None)
def test_alpha_stays_within_the_range_of_its_neighbours(seed, shape, scale):
    dice = np.random.default_rng(seed)
    pixels = np.zeros((*shape, 4), np.uint8)
    pixels[..., 3] = dice.choice([0, 0, 90, 200, 255, 255], shape)
    large = enlarge_pixels(pixels, Overshooting, Size(scale))[..., 3]
    for row in range(large.shape[0]):
        for column in range(large.shape[1]):
            y, x = row // scale, column // scale
            near = pixels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2, 3]
            assert near.min() <= large[row, column] <= near.max()


@given(seed=st.integers(0, 2**32 - 1), shape=st.tuples(st.integers(1, 30), st.integers(1, 30)))
@settings(max_examples=60, deadline=None)
def test_filling_changes_only_invisible_pixels_and_adds_no_new_colour(seed, shape):
    dice = np.random.default_rng(seed)
    color = dice.integers(0, 256, (*shape, 3), np.uint8)
    alpha = dice.choice([0, 0, 0, 7, 255], (*shape, 1)).astype(np.uint8)
    filled = bleed(color, alpha)
    seen = alpha[..., 0] > 0
    np.testing.assert_array_equal(filled[seen], color[seen])
    if seen.any():
        assert (filled >= color[seen].min(axis=0)).all() and (filled <= color[seen].max(axis=0)).all()
    else:
        assert (filled == 0).all()


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_compositing_follows_porter_and_duffs_over_operator(seed):
    upper, lower = np.random.default_rng(seed).integers(0, 256, (2, 5, 5, 4), np.uint8)
    a, b = upper[..., 3:] / 255, lower[..., 3:] / 255
    alpha = a + b * (1 - a)
    premultiplied = upper[..., :3] * a + lower[..., :3] * b * (1 - a)
    found = over(upper, lower).astype(float)
    assert np.abs(found[..., 3:] - 255 * alpha).max() <= 0.51
    assert np.abs(found[..., :3] * alpha - premultiplied).max() <= 0.51


# --- pictures --------------------------------------------------------------------------------------------------------


def test_everything_except_the_pixels_is_passed_on():
    shown = picture(photo(), metadata=full_metadata())
    large = enlarge(shown, Nearest, Size(3))
    assert large.metadata == shown.metadata
    assert (large.size, large.channels, large.dtype) == ((144, 192), 3, np.uint8)
    assert next(iter(large.frames)).pixels.shape == (144, 192, 3)


def test_frames_are_enlarged_when_they_are_iterated():
    film = animation(count=4)
    upscaler = Nearest(2)
    frames = iter(enlarge(film, lambda scale: upscaler, Size(2)).frames)
    assert upscaler.calls == []
    first = next(frames)
    assert len(upscaler.calls) == 2  # colour and transparency
    assert first.duration == 100.0 and first.pixels.shape == (80, 112, 4)
    assert [frame.duration for frame in frames] == [150.0, 200.0, 250.0]


def test_pages_of_different_sizes_are_enlarged_independently():
    pages = [Frame(photo(20, 30)), Frame(photo(40, 20, channels=1))]
    document = replace(picture(photo(20, 30)), frames=pages, frame_count=2, paged=True)
    large = [frame.pixels.shape for frame in enlarge(document, Nearest, Size(width=60)).frames]
    assert large == [(40, 60, 3), (120, 60, 1)]


def test_progress_rises_from_0_to_1_over_all_frames():
    told: list[float] = []
    list(enlarge(animation(count=3), Nearest, Size(2), progress=told.append).frames)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert len(told) == 12


def test_progress_may_cancel():
    class Cancelled(Exception):
        pass

    def stop(fraction: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        list(enlarge(picture(photo()), Nearest, Size(2), progress=stop).frames)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("size", [Size(2), Size(4), Size(2.5)])
def test_consistent_shrinks_back_to_the_input(dtype, size):
    pixels = photo(64, 96, dtype=dtype)
    full = 1.0 if dtype == np.float32 else float(np.iinfo(dtype).max)

    def error(consistent: bool) -> float:
        large = enlarge_pixels(pixels, Overshooting, size, consistent)
        assert large.dtype == dtype
        back = resize(large.astype(np.float32), size=(64, 96))
        return float(np.abs(back - pixels).mean()) / full * 255

    assert error(True) < 0.5
    assert error(True) < error(False) / 4


@pytest.mark.parametrize("name", ["legacy/ac-adapter.png", "legacy/accessories-calculator.png"])
def test_the_background_of_a_real_icon_stays_transparent(name):
    path = Path("/usr/share/icons/Adwaita/48x48") / name
    if not path.exists():
        pytest.skip("the Adwaita icons are not installed")
    found = open_picture(path)
    assert found.channels == 4
    lr = next(iter(found.frames)).pixels
    large = next(iter(enlarge(found, Overshooting, Size(2)).frames)).pixels
    clear = lr[..., 3] == 0
    around = np.pad(clear, 1, constant_values=True)
    height, width = clear.shape
    for down, across in np.ndindex(3, 3):
        clear &= around[down : down + height, across : across + width]
    assert clear.any()
    assert (large[..., 3][clear.repeat(2, axis=0).repeat(2, axis=1)] == 0).all()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_real_network_shifts_nothing(scale, channels):
    from hasn_cli.inference import Upscaler
    from hasn_cli.weights import load_network

    upscaler = Upscaler(load_network("hasn", scale), device="cpu")
    pixels = photo(60, 80, channels=channels)
    large = enlarge_pixels(pixels, lambda _: upscaler, Size(scale))
    back = resize(large, size=(60, 80)).astype(int)
    assert np.abs(back - pixels).mean() <= 2
    assert abs((back - pixels).mean()) < 0.5


def test_alpha_stays_between_the_four_pixels_around_so_that_no_specks_appear():
    rng = np.random.default_rng(0)
    rgba = np.dstack([np.full((12, 11, 3), 90, np.uint8), rng.choice(np.uint8([0, 255]), (12, 11))])

    class Wild:
        scale = 4

        def upscale(self, image, progress=None):
            return rng.integers(0, 256, (4 * image.shape[0], 4 * image.shape[1], image.shape[2]), dtype=np.uint8)

    alpha = enlarge_pixels(rgba, lambda scale: Wild(), Size(4))[..., 3]
    for row, column in np.ndindex(alpha.shape):
        top, left = (max(0, (2 * at + 1 - 4) // 8) for at in (row, column))
        bottom, right = (min(side - 1, (2 * at + 1 - 4) // 8 + 1) for at, side in ((row, 12), (column, 11)))
        around = rgba[top : bottom + 1, left : right + 1, 3]
        assert around.min() <= alpha[row, column] <= around.max()
