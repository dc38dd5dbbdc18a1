"""Animations and documents keep their frames."""

from __future__ import annotations

import gc
import io
import struct
import tracemalloc
import weakref
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    IPTC,
    MAKER_NOTE,
    WIDE_GAMUT,
    XMP,
    Nearest,
    animation,
    document,
    encoded,
    exif,
    full_metadata,
    photo,
    picture,
    pixels_of,
    saved,
)
from PIL import Image

from hasn_cli.batch.process import bytes_needed
from hasn_cli.batch.settings import Settings
from hasn_cli.enlarge import Size, enlarge
from hasn_cli.errors import ImageError
from hasn_cli.images import EncodeOptions, Frame, open_picture
from hasn_cli.images.exif import EXIF_IFD, GPS_IFD, Exif
from hasn_cli.images.picture import Shape


@pytest.mark.parametrize("format", ["png", "gif", "webp", "avif"])
def test_animations_keep_frames_durations_and_loops(format):
    film = animation(count=5)
    found = open_picture(encoded(film, format))
    assert found.frame_count == 5
    assert found.loop == (0 if format == "avif" else 3)
    for got, wanted in zip(found.frames, film.frames, strict=True):
        assert got.duration == wanted.duration
        opaque = wanted.pixels[..., 3] > 0
        np.testing.assert_array_equal(got.pixels[..., 3] > 128, opaque)
        assert np.abs(got.pixels[opaque].astype(int) - wanted.pixels[opaque]).mean() < 3


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(2, 6),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    format=st.sampled_from(["png", "gif"]),
)
@settings(max_examples=100, deadline=None)
def test_any_animation_is_preserved_exactly(seed, count, shape, format):
    dice = np.random.default_rng(seed)
    palette = dice.integers(0, 256, (5, 4), np.uint8)
    palette[:, 3] = 255
    palette[0] = 0  # transparent
    shown = [dice.integers(0, 5, shape)]
    for _ in range(count - 1):  # each frame differs from the last in a few places, or in none
        changed = dice.random(shape) < dice.choice([0, 0.1, 0.9])
        shown.append(np.where(changed, dice.integers(0, 5, shape), shown[-1]))
    frames = [Frame(palette[indices], 10.0 * dice.integers(1, 9)) for indices in shown]
    film = picture(frames[0].pixels, format, frames=frames, frame_count=count, loop=0)
    for got, wanted in zip(open_picture(encoded(film, format)).frames, frames, strict=True):
        np.testing.assert_array_equal(got.pixels[..., 3], wanted.pixels[..., 3])
        seen = wanted.pixels[..., 3] > 0
        np.testing.assert_array_equal(got.pixels[seen], wanted.pixels[seen])
        assert got.duration == wanted.duration


@pytest.mark.parametrize("loop", [0, 1, 2, 7])
@pytest.mark.parametrize("format", ["png", "gif", "webp"])
def test_loop_counts_survive(format, loop):
    assert open_picture(encoded(animation(loop=loop), format)).loop == loop


def durations_after(durations: list[float], format: str) -> list[float]:
    """The durations of an animation after it was written in a format."""
    shown = [frame.pixels for frame in animation().frames]
    frames = [Frame(shown[index % 3], duration) for index, duration in enumerate(durations)]
    film = picture(shown[0], frames=frames, frame_count=len(frames), loop=0)
    return [frame.duration for frame in open_picture(encoded(film, format)).frames]


@pytest.mark.parametrize(("format", "tick"), [("gif", 10), ("webp", 1), ("avif", 1)])
@pytest.mark.parametrize("durations", [10 * [33.3], 12 * [1000 / 30], [40.4, 12.2, 33.3, 7.7, 104.9, 66.6], 40 * [4.2]])
def test_rounding_durations_keeps_the_total_duration(format, tick, durations):
    found = durations_after(durations, format)
    assert np.abs(np.cumsum(found) - np.cumsum(durations)).max() <= tick / 2 + 1e-6
    assert len(found) == len(durations)


def test_webp_joins_equal_frames_and_adds_their_durations():
    one, other = (frame.pixels for frame in animation(count=2).frames)
    frames = [Frame(pixels, 50.0) for pixels in (one, other, other, other, one)]
    film = picture(one, frames=frames, frame_count=5, loop=0)
    assert [frame.duration for frame in open_picture(encoded(film, "webp")).frames] == [50, 150, 50]


def test_raising_a_gif_frames_duration_does_not_shorten_the_next():
    assert durations_after([1e6, 100.0, 100.0], "gif") == [655_350.0, 100.0, 100.0]
    # browsers would show a frame of less than two hundredths of a second for a tenth
    assert durations_after([*(9 * [1000 / 60]), 100.0], "gif") == [*(9 * [20.0]), 100.0]


@pytest.mark.parametrize("duration", [0.0, 10.0, 1000 / 30, 1000 / 60, 1001 / 30, 16.7, 120_000.0, 65_535_000.0])
def test_apng_keeps_any_duration(duration):
    frames = [replace(frame, duration=duration) for frame in animation().frames]
    found = open_picture(encoded(picture(frames[0].pixels, frames=frames, frame_count=3, loop=0)))
    assert [frame.duration for frame in found.frames] == pytest.approx([duration] * 3, rel=1e-8)


def test_image_data_too_long_for_a_png_chunk_is_split(monkeypatch):
    monkeypatch.setattr("hasn_cli.images.codecs.png._MAX_CHUNK", 40)
    still, film = encoded(picture(photo())), encoded(animation())
    assert still.count(b"IDAT") > 9 and film.count(b"fdAT") > 4
    np.testing.assert_array_equal(pixels_of(still), photo())
    with Image.open(io.BytesIO(still)) as image:
        np.testing.assert_array_equal(np.asarray(image), photo())
    for got, wanted in zip(open_picture(film).frames, animation().frames, strict=True):
        np.testing.assert_array_equal(got.pixels, wanted.pixels)
    with Image.open(io.BytesIO(film)) as image:
        image.seek(2)
        image.load()


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
def test_gif_frames_are_composed_for_every_disposal(disposal):
    frames = [Image.fromarray(frame.pixels).quantize(16) for frame in animation(count=4).frames]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:], disposal=disposal, duration=50)
    found = open_picture(data)
    with Image.open(io.BytesIO(data)) as again:
        assert found.frame_count == again.n_frames
        for index, frame in enumerate(found.frames):
            again.seek(index)
            np.testing.assert_array_equal(frame.pixels, np.asarray(again.convert("RGBA")))


@pytest.mark.parametrize("blend", [0, 1])
@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_apng_frames_are_composed_for_every_disposal_and_blending(disposal, blend):
    # only opaque or fully transparent pixels, because Pillow blends partial transparency over nothing differently
    frames = [Image.fromarray(photo()).convert("RGBA")]
    frames += [Image.fromarray(frame.pixels).resize((64, 48), 0) for frame in animation(count=3).frames]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], disposal=disposal, blend=blend)
    with Image.open(io.BytesIO(data)) as again:
        for index, frame in enumerate(open_picture(data).frames):
            again.seek(index)
            # Pillow also restores the previous state differently; here the canvas is then always empty
            shown = frames[index] if (disposal, blend) == (2, 1) else again.convert("RGBA")
            expected = np.asarray(shown).astype(float)
            # compare only the colours of visible pixels
            weight = expected[..., 3:] / 255
            assert np.abs((frame.pixels - expected)[..., :3] * weight).max() < 2
            assert np.abs(frame.pixels[..., 3] - expected[..., 3]).max() <= 1


def test_a_default_image_that_is_not_part_of_the_apng_is_left_out():
    frames = [Image.fromarray(frame.pixels) for frame in animation(count=3).frames]
    still = Image.new("RGBA", frames[0].size, "blue")
    data = saved(still, "PNG", save_all=True, default_image=True, append_images=frames)
    found = open_picture(data)
    assert found.frame_count == 3
    np.testing.assert_array_equal(next(iter(found.frames)).pixels[..., 3], np.asarray(frames[0])[..., 3])


def test_an_apng_whose_first_frame_is_reverted_becomes_transparent_there():
    second = np.zeros((48, 64, 3), np.uint8)
    second[10:20, 30:40] = 200
    frames = [Image.fromarray(photo()), Image.fromarray(second)]
    data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], disposal=[2, 0], blend=0, duration=50)
    assert struct.pack(">IIII", 10, 10, 30, 10) in data  # the second frame contains only the patch
    found = open_picture(data)
    first, last = (frame.pixels for frame in found.frames)
    np.testing.assert_array_equal(first, np.dstack([photo(), np.full((48, 64), 255, np.uint8)]))
    np.testing.assert_array_equal(last[..., 3] == 255, second[..., 0] > 0)
    np.testing.assert_array_equal(last[10:20, 30:40, :3], second[10:20, 30:40])
    assert found.channels == 4


def test_16_bit_apng_is_preserved():
    frames = [Frame(np.roll(photo(channels=4, dtype=np.uint16), shift, axis=1), 40.0) for shift in (0, 3, 9)]
    film = picture(frames[0].pixels, frames=frames, frame_count=3, loop=0)
    found = open_picture(encoded(film))
    assert (found.dtype, found.loop) == (np.uint16, 0)
    for got, wanted in zip(found.frames, frames, strict=True):
        np.testing.assert_array_equal(got.pixels, wanted.pixels)


def test_pages_keep_their_own_size_and_kind():
    pages = [photo(), photo(20, 30, channels=1), photo(25, 15, channels=4, dtype=np.uint16)]
    document = picture(pages[0], "tiff", frames=[Frame(page) for page in pages], frame_count=3, paged=True)
    found = open_picture(encoded(document, "tiff"))
    assert found.paged and found.frame_count == 3 and found.loop is None
    for got, wanted in zip(found.frames, pages, strict=True):
        assert got.pixels.dtype == wanted.dtype
        np.testing.assert_array_equal(got.pixels, wanted)


def test_the_shape_of_every_page_is_known_before_any_is_decoded():
    pages = [photo(8, 9), photo(20, 30, channels=1), photo(25, 15, channels=4, dtype=np.uint16)]
    found = open_picture(encoded(document(*pages), "tiff"))
    assert found.shapes == tuple(Shape(page.shape[:2], page.shape[2], page.dtype) for page in pages)
    assert found.nbytes == sum(page.nbytes for page in pages)
    large = enlarge(found, Nearest, Size(width=30))
    assert [shape.size for shape in large.shapes] == [frame.pixels.shape[:2] for frame in large.frames]
    alike = open_picture(encoded(document(photo(), photo()), "tiff"))
    assert alike.shapes == (Shape((48, 64), 3, np.dtype(np.uint8)),)
    assert alike.nbytes == 2 * photo().nbytes


def test_the_shape_of_a_page_on_its_side_is_the_one_it_is_shown_in():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(photo(8, 8), photometric="rgb")
        writer.write(photo(20, 30), photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    found = open_picture(buffer.getvalue())
    assert [shape.size for shape in found.shapes] == [frame.pixels.shape[:2] for frame in found.frames]


def test_an_unreadable_page_raises_an_error_only_when_it_is_reached():
    data = encoded(document(photo(10, 10), photo(100, 100), photo(20, 20)), "tiff")
    found = open_picture(data, max_pixels=5000)
    assert [shape.size for shape in found.shapes] == [(10, 10), (20, 20)]
    assert next(iter(found.frames)).pixels.shape == (10, 10, 3)


@pytest.mark.parametrize("pages", [(photo(8, 8), photo(100, 100)), (photo(100, 100), photo(8, 8))])
def test_the_size_of_all_pages_decides_whether_a_tiff_is_a_bigtiff(pages, monkeypatch):
    source = open_picture(encoded(document(*pages), "tiff"))
    for limit, version in ((40_000, 42), (20_000, 43)):
        monkeypatch.setattr("hasn_cli.images.codecs.tiff._4_GIB", limit)
        assert struct.unpack_from("<H", encoded(source, "tiff"), 2) == (version,)


def test_a_truncated_heic_gets_a_hint():
    data = encoded(picture(photo()), "heic")
    with pytest.raises(ImageError, match="the file is truncated") as caught:
        list(open_picture(data[:-100]).frames)
    assert "export it as JPEG" in caught.value.hint


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_bigtiff_keeps_all_metadata(order, monkeypatch):
    monkeypatch.setattr("hasn_cli.images.codecs.tiff._4_GIB", 1000)
    metadata = replace(full_metadata(), exif=exif(order=order), text=())
    data = encoded(picture(photo(), metadata=metadata), "tiff")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        assert file.is_bigtiff
        np.testing.assert_array_equal(page.asarray(), photo())
        assert page.tags["ExifTag"].value["DateTimeOriginal"] == "2024:05:06 07:08:09"
        assert len(page.tags["GPSTag"].value["GPSLatitude"]) == 6
    found = open_picture(data).metadata
    assert (found.xmp, found.iptc, found.icc, found.dpi) == (XMP, IPTC, WIDE_GAMUT, (300.0, 300.0))
    again = open_picture(encoded(open_picture(data), "jpeg")).metadata
    for block in (Exif(found.exif), Exif(again.exif)):
        private, gps = block.number(block.first, EXIF_IFD), block.number(block.first, GPS_IFD)
        assert block.value(block.find(private, 0x9003)).startswith(b"2024:05:06")
        assert block.value(block.find(private, 0x927C)) == MAKER_NOTE
        assert block.find(gps, 2).count == 3


def test_a_batch_counts_the_largest_page():
    small, large = photo(8, 8), photo(300, 200, dtype=np.uint16)
    settings = Settings(size=Size(2), memory=2**30)
    counted = bytes_needed(open_picture(encoded(document(small, large), "tiff")), settings)
    assert counted == bytes_needed(picture(large), settings)


def test_a_page_that_is_out_of_reach_does_not_count():
    pages = open_picture(encoded(document(photo(20, 20), photo(20, 2)), "tiff"))
    settings = Settings(size=Size(width=40))
    assert bytes_needed(pages, settings) == bytes_needed(picture(photo(20, 20)), settings)


def test_each_page_keeps_its_own_profile_and_resolution():
    gray = bytes(imagecodecs.cms_profile("gray", whitepoint=(0.3127, 0.329), gamma=1.8))
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(photo(channels=1)[..., 0], photometric="minisblack", iccprofile=gray)
        writer.write(photo(), photometric="rgb", iccprofile=WIDE_GAMUT, resolution=(300, 300), resolutionunit="inch")
        writer.write(photo(), photometric="rgb")
    source = open_picture(buffer.getvalue())
    for strip, unit in ((False, 2), (True, None)):
        with tifffile.TiffFile(io.BytesIO(encoded(source, "tiff", EncodeOptions(strip=strip)))) as file:
            assert [page.iccprofile for page in file.pages] == [gray, WIDE_GAMUT, None]
            assert [page.tags.valueof(296) for page in file.pages] == [None, unit, None]
            assert strip or file.pages[1].get_resolution("inch") == (300, 300)


def test_images_that_share_a_directory_are_refused_and_not_lost(tmp_path):
    stack = np.zeros((4, 20, 24), np.uint8)
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, truncate=True, metadata={"axes": "ZYX"})
    with pytest.raises(ImageError, match="several images in one directory"):
        open_picture(tmp_path / "stack.tif")
    tifffile.imwrite(tmp_path / "stack.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    assert open_picture(tmp_path / "stack.tif").frame_count == 4


@pytest.mark.parametrize("kind", [{"ome": True}, {}])
def test_a_description_with_outdated_sizes_is_left_out(tmp_path, kind):
    stack = np.zeros((2, 20, 24), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"}, **kind)
    large = enlarge(open_picture(tmp_path / "in.tif"), Nearest, Size(2))
    with tifffile.TiffFile(io.BytesIO(encoded(large, "tiff"))) as file:
        assert [series.shape for series in file.series] == [(2, 40, 48)]
        assert 270 not in file.pages[0].tags


def test_a_thumbnail_in_a_tiff_is_not_a_page():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(photo(), photometric="rgb")
        writer.write(photo(6, 8), photometric="rgb", subfiletype=1)
    assert open_picture(buffer.getvalue()).frame_count == 1


@pytest.mark.parametrize("kind", ["tag", "sensor", "below"])
def test_the_preview_in_a_raw_file_is_not_taken_for_the_picture(kind):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        if kind == "tag":
            writer.write(photo(), photometric="rgb", extratags=[(50706, 1, 4, b"\1\4\0\0", True)])
        elif kind == "sensor":
            writer.write(photo(channels=1, dtype=np.uint16)[..., 0], photometric="cfa")
        else:
            writer.write(photo(), photometric="rgb", subifds=1)
            writer.write(photo(channels=1, dtype=np.uint16)[..., 0], photometric="cfa")
    if kind == "tag":  # DNG's version tag, but no samples of a sensor
        with pytest.raises(ImageError, match="cannot be developed"):
            open_picture(buffer.getvalue())
    else:
        found = open_picture(buffer.getvalue())
        assert (found.format, found.dtype) == ("raw", np.uint16)


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_at_full_quality_fits_into_a_jpeg(channels):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, channels), np.uint8)
    found = pixels_of(encoded(picture(noise), "jpeg", EncodeOptions(quality=100)))
    assert np.abs(found.astype(int) - noise).mean() < 2


def test_first_frame_takes_one_frame():
    film = animation()
    options = EncodeOptions(first_frame=True, background="#102030")
    found = open_picture(encoded(film, "jpeg", options))
    assert found.frame_count == 1
    with pytest.raises(ImageError, match="one frame"):
        encoded(film, "jpeg", EncodeOptions(background="white"))


@pytest.mark.parametrize("format", ["png", "gif", "webp", "avif", "tiff"])
def test_first_frame_takes_one_frame_even_if_the_format_can_hold_all(format):
    many = replace(animation(), paged=format == "tiff")
    found = open_picture(encoded(many, format, EncodeOptions(first_frame=True, lossless=True)))
    assert (found.frame_count, found.loop) == (1, None)
    shown, first = (next(iter(each.frames)).pixels for each in (found, many))
    assert (shown[..., 3] == first[..., 3]).all()
    assert (shown == first)[first[..., 3] > 0].all()


@pytest.mark.parametrize("format", ["png", "gif", "webp", "avif", "tiff"])
def test_frames_are_written_one_by_one(format):
    alive: list[weakref.ref] = []
    most = 0

    def frames():
        nonlocal most
        for index in range(12):
            pixels = np.roll(photo(channels=3), 5 * index, axis=1).copy()
            alive.append(weakref.ref(pixels))
            yield Frame(pixels, 40.0)
            del pixels
            gc.collect()
            most = max(most, sum(ref() is not None for ref in alive))

    film = picture(photo(), format, frames=frames(), frame_count=12, loop=0, paged=format == "tiff")
    assert open_picture(encoded(film, format)).frame_count == 12
    assert most <= 3


@pytest.mark.parametrize("format", ["png", "gif", "webp", "tiff"])
def test_frames_are_read_one_by_one(format):
    pixels = photo(100, 150)
    frames = [Frame(np.roll(pixels, 5 * index, axis=1), 40.0) for index in range(24)]
    film = picture(pixels, format, frames=frames, frame_count=24, loop=0, paged=format == "tiff")
    data = encoded(film, format, EncodeOptions(quality=50, lossless=False))
    tracemalloc.start()
    count = sum(1 for _ in open_picture(data).frames)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 24
    assert peak < 2 * len(data) + 12 * pixels.nbytes  # all together would be 24 frames, of three or four channels
