"""Parts of an animation that do not move keep exactly the same pixels when it is enlarged, in every animated format."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import Nearest, photo, picture
from PIL import Image

from hasn_cli.batch.process import bytes_needed
from hasn_cli.batch.settings import Settings
from hasn_cli.enlarge import Size, enlarge, enlarge_pixels
from hasn_cli.images import EncodeOptions, Frame, Picture, open_picture, write_picture
from hasn_cli.stillness import RADIUS


class Global(Nearest):
    """An upscaler like the network: each value depends on the whole frame. It never gives the same values twice."""

    def __init__(self, scale: int) -> None:
        super().__init__(scale)
        self.dice = np.random.default_rng(0)

    def upscale(self, image, progress=None):
        large = super().upscale(image, progress)
        return large ^ self.dice.integers(0, 8, large.shape, large.dtype)


def film_of(frames: list[np.ndarray], **fields: object) -> Picture:
    shown = [Frame(pixels, 50.0) for pixels in frames]
    return picture(frames[0], frames=shown, frame_count=len(frames), loop=0, **fields)


def enlarged(frames: list[np.ndarray], upscaler, size: Size = Size(2), **options) -> list[np.ndarray]:  # noqa: B008
    return [frame.pixels for frame in enlarge(film_of(frames), lambda scale: upscaler, size, **options).frames]


def passing(count: int = 5, channels: int = 3, width: int = 120) -> list[np.ndarray]:
    """A square that crosses a photo from left to right, and leaves it in the last frame."""
    frames = [photo(60, width, channels=channels).copy() for _ in range(count)]
    for index, pixels in enumerate(frames[:-1]):
        left = 4 + index * (width - 12) // (count - 1)
        pixels[20:28, left : left + 8] = 255
    return frames


def still(before: np.ndarray, now: np.ndarray, scale: int) -> np.ndarray:
    """sH×sW: where two frames are equal within `RADIUS`."""
    differs = (before != now).any(axis=2)
    near = np.zeros_like(differs)
    for row, column in np.argwhere(differs):
        near[max(0, row - RADIUS) : row + RADIUS + 1, max(0, column - RADIUS) : column + RADIUS + 1] = True
    return ~near.repeat(scale, 0).repeat(scale, 1)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("scale", [2, 3])
def test_unchanged_surroundings_keep_their_values_and_the_rest_is_recomputed(channels, scale):
    frames = passing(channels=channels)
    large = enlarged(frames, Global(scale), Size(scale))
    for earlier, later, before, now in zip(large, large[1:], frames, frames[1:], strict=False):
        where = still(before, now, scale)
        assert 0.3 < where.mean() < 0.99
        np.testing.assert_array_equal(later[where], earlier[where])
        assert (later[~where] != earlier[~where]).any()


def test_sizes_between_the_scales_keep_unchanged_parts_too():
    frames = passing()
    large = enlarged(frames, Global(2), Size(1.6))
    far = np.s_[:16]  # above the square and its surroundings
    for later in large[1:]:
        np.testing.assert_array_equal(later[far], large[0][far])


def test_a_background_uncovered_again_looks_as_before():
    frames = passing()
    large = enlarged(frames, Global(2))
    where = still(frames[0], frames[-1], 2)
    np.testing.assert_array_equal(large[-1][where], large[0][where])


def test_every_value_comes_from_a_full_evaluation_of_some_frame():
    frames = passing(9)
    alone = [enlarge_pixels(pixels, lambda scale: Global(2), Size(2)) for pixels in frames]
    for index, pixels in enumerate(enlarged(frames, Global(2))):
        # `Global` gives other values each time, all of them within 7 of the pixel itself
        assert np.abs(pixels.astype(int) - alone[index]).max() <= 14


def test_a_cut_to_another_scene_starts_afresh():
    one, two = photo(40, 60), photo(40, 60)[::-1].copy()
    large = enlarged([one, two, two[:, ::-1].copy()], Global(2))
    for pixels, small in zip(large, (one, two, two[:, ::-1]), strict=True):
        assert np.abs(pixels.astype(int) - small.repeat(2, 0).repeat(2, 1)).max() <= 7
    again = passing()
    scenes = enlarged([one, *again], Global(2))
    where = still(again[0], again[-1], 2)
    np.testing.assert_array_equal(scenes[-1][where], scenes[1][where])


def test_equal_frames_are_computed_once():
    one, other = photo(30, 40), photo(30, 40).copy()
    other[:10] = 0
    upscaler, told = Nearest(2), []
    frames = [one, one.copy(), other, other.copy(), one.copy()]
    large = enlarged(frames, upscaler, progress=told.append)
    assert len(upscaler.calls) == 2
    assert told[-1] == 1.0 and told == sorted(told)
    for pixels, small in zip(large, frames, strict=True):
        np.testing.assert_array_equal(pixels, small.repeat(2, 0).repeat(2, 1))


def test_colour_under_transparent_pixels_counts_only_if_alpha_is_data():
    one, other = photo(30, 40, channels=4), photo(30, 40, channels=4)
    one[..., 3] = other[..., 3] = np.where(np.arange(40) < 20, 0, 255)
    other[:, :10, :3] = 0
    for alpha, calls in (("blend", 2), ("separate", 4)):
        upscaler = Nearest(2)
        enlarged([one, other], upscaler, alpha=alpha)
        assert len(upscaler.calls) == calls  # colour and alpha, of one frame or of two


def test_pages_of_a_document_are_not_treated_as_an_animation():
    pages = passing(3)
    document = picture(pages[0], "tiff", frames=[Frame(page) for page in pages], frame_count=3, paged=True)
    upscaler = Global(2)
    large = [frame.pixels for frame in enlarge(document, lambda scale: upscaler, Size(2)).frames]
    assert (large[0][:16] != large[1][:16]).any()


def test_only_a_few_frames_are_kept_in_memory():
    def frames():
        for index in range(30):
            pixels = photo(100, 150).copy()
            pixels[10:20, 4 * index : 4 * index + 10] = 255
            yield Frame(pixels, 40.0)

    film = picture(photo(100, 150), frames=frames(), frame_count=30, loop=0)
    upscaler = Nearest(2)
    large = iter(enlarge(film, lambda scale: upscaler, Size(2)).frames)
    next(large)
    tracemalloc.start()
    for _ in large:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < bytes_needed(film, Settings(size=Size(2)))


# --- the real network, and files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    from hasn_cli.inference import Upscaler
    from hasn_cli.weights import load_network

    return Upscaler(load_network("hasn", 2), device="cpu")


@pytest.fixture(scope="module")
def real(network) -> tuple[list[np.ndarray], Picture]:
    """Frames, and their enlargement by the network."""
    frames = passing(3, width=90)
    return frames, film_of(enlarged(frames, network))


def read_back(film: Picture, format: str, **options) -> list[np.ndarray]:
    stream = io.BytesIO()
    write_picture(film, stream, format, EncodeOptions(**options))
    found = open_picture(stream.getvalue())
    assert found.frame_count == film.frame_count
    return [frame.pixels for frame in found.frames]


@pytest.mark.parametrize(
    ("format", "options"),
    [("gif", {}), ("png", {}), ("webp", {"lossless": True}), ("webp", {"quality": 95}), ("webp", {"quality": 50})],
)
def test_files_keep_unchanged_parts(real, format, options):
    frames, film = real
    found = read_back(film, format, **options)
    for index in range(1, len(frames)):
        where = still(frames[index - 1], frames[index], 2)
        assert where.mean() > 0.3
        np.testing.assert_array_equal(found[index][where], found[index - 1][where])
    for got, wanted in zip(found, film.frames, strict=True):
        limit = {"png": 0, "gif": 6}.get(format, {95: 4, 50: 7}.get(options.get("quality"), 0))
        assert np.abs(got[..., :3].astype(int) - wanted.pixels).mean() <= limit


def test_avif_keeps_nearly_all_unchanged_parts(real):
    frames, film = real
    found = read_back(film, "avif", quality=95)
    for index in range(1, len(frames)):
        where = still(frames[index - 1], frames[index], 2)
        change = np.abs(found[index].astype(int) - found[index - 1])[where]
        assert (change > 0).mean() < 0.05 and change.max() < 16  # AV1 codes whole blocks with loss


def test_kept_pixels_are_close_to_the_networks_result_for_the_single_frame(real, network):
    frames, film = real
    for small, frame in zip(frames, film.frames, strict=True):
        alone = enlarge_pixels(small, lambda scale: network, Size(2)).astype(int)
        difference = np.abs(frame.pixels - alone)
        assert difference.mean() < 0.5 and np.percentile(difference, 99) <= 4


# --- animated WebP ---------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    channels=st.sampled_from([1, 2, 3, 4]),
)
@settings(max_examples=40, deadline=None)
def test_any_lossless_animated_webp_is_preserved_exactly(seed, shape, channels):
    dice = np.random.default_rng(seed)
    shown = [dice.integers(0, 256, (*shape, channels), np.uint8)]
    for _ in range(3):
        changed = dice.random(shape) < dice.choice([0.02, 0.3, 0.9])
        shown.append(np.where(changed[..., None], dice.integers(0, 256, shown[0].shape, np.uint8), shown[-1]))
        if channels in (2, 4):
            shown[-1][..., -1] = np.where(dice.random(shape) < 0.5, dice.choice([0, 255]), shown[-1][..., -1])
    frames = [pixels for index, pixels in enumerate(shown) if not index or (pixels != shown[index - 1]).any()]
    if len(frames) == 1:
        return
    for got, wanted in zip(read_back(film_of(frames), "webp", lossless=True), frames, strict=True):
        wanted = np.asarray(Image.fromarray(wanted.squeeze(2) if channels == 1 else wanted).convert("RGBA"))
        if got.shape[2] == 3:
            assert (wanted[..., 3] == 255).all()
        np.testing.assert_array_equal(got[..., 3:], wanted[..., 3 : got.shape[2]])
        seen = wanted[..., 3] > 0
        np.testing.assert_array_equal(got[..., :3][seen], wanted[..., :3][seen])


@pytest.mark.parametrize("quality", [40, 95])
def test_a_lossy_webp_with_partial_transparency_keeps_unchanged_parts(quality):
    frames = []
    for index in range(4):
        pixels = np.dstack([photo(50, 70), np.full((50, 70), 255, np.uint8)])
        pixels[:, 50:, 3] = 90
        pixels[10 + index : 20 + index, 5 + 12 * index : 20 + 12 * index] = (250, 250, 0, 128)
        pixels[30:34, 2 + 15 * index : 8 + 15 * index, 3] = 0
        frames.append(pixels)
    found = read_back(film_of(frames), "webp", quality=quality)
    for index, (got, wanted) in enumerate(zip(found, frames, strict=True)):
        np.testing.assert_array_equal(got[..., 3], wanted[..., 3])
        assert np.abs(got.astype(int) - wanted)[wanted[..., 3] > 0].mean() < 8
        if index:
            where = (frames[index - 1] == wanted).all(axis=2)
            np.testing.assert_array_equal(got[where], found[index - 1][where])


def test_an_animated_webp_is_smaller_if_little_moves():
    moving, first = film_of(passing(9)), film_of(passing(9)[:1])

    def length(film: Picture) -> int:
        stream = io.BytesIO()
        write_picture(film, stream, "webp", EncodeOptions(quality=90))
        return stream.tell()

    assert length(moving) < 2 * length(first)
