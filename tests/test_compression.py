"""What is read about a file's compression: from real files of each kind, made here."""

from __future__ import annotations

import io
import struct
from typing import Any

import imagecodecs
import numpy as np
import pi_heif
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import photo
from PIL import Image

from hasn_cli.decoding.pool import Decoders
from hasn_cli.images import Picture, open_picture
from hasn_cli.images.compression import Compression, jpeg_compression, jpeg_compression_of, jpeg_quality

PIXELS = photo(40, 56)
SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")


def saved(format: str, pixels: np.ndarray = PIXELS, mode: str | None = None, **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    (image if mode is None else image.convert(mode)).save(buffer, format, **options)
    return buffer.getvalue()


def compression(data: bytes) -> Compression | None:
    """What the product reads, after checking that it also decodes the file."""
    picture = open_picture(data)
    assert next(iter(picture.frames)).pixels.shape[:2] == PIXELS.shape[:2]
    return picture.compression


@pytest.mark.parametrize("quality", [97, 90, 75, 40])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_tells_quality_and_subsampling(quality, subsampling, progressive):
    data = saved("JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
    assert compression(data) == Compression("JPEG", quality, subsampling)


@settings(max_examples=60, deadline=None)
@given(
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(SUBSAMPLINGS),
    optimize=st.booleans(),
    progressive=st.booleans(),
)
def test_the_estimate_is_close_to_the_quality_that_pillow_was_given(quality, subsampling, optimize, progressive):
    data = saved("JPEG", quality=quality, subsampling=subsampling, optimize=optimize, progressive=progressive)
    found = compression(data)
    with Image.open(io.BytesIO(data)) as image:
        assert jpeg_compression_of(image) == found
    assert found is not None and found.quality is not None
    assert abs(found.quality - quality) <= 2
    assert found.subsampling == subsampling


def test_a_saved_again_jpeg_tells_the_last_quality():
    with Image.open(io.BytesIO(saved("JPEG", quality=50))) as first:
        again = saved("JPEG", np.asarray(first), quality=88, subsampling="4:4:4")
    assert compression(again) == Compression("JPEG", 88, "4:4:4")


def test_an_arithmetic_jpeg_is_read_like_any_other():
    segments = _segments(saved("JPEG", quality=62))
    arithmetic = [(0xC9 if marker == 0xC0 else marker, body) for marker, body in segments]
    assert jpeg_compression(arithmetic) == Compression("JPEG", 62, "4:2:0")


def _segments(data: bytes) -> list[tuple[int, bytes]]:
    from hasn_cli.images.codecs.jpeg import segments

    return list(segments(data))


@pytest.mark.parametrize(("mode", "subsampling"), [("L", None), ("CMYK", "4:4:4")])
def test_gray_and_cmyk_jpegs_tell_their_quality(mode, subsampling):
    found = compression(saved("JPEG", mode=mode, quality=70, subsampling=0))
    assert found == Compression("JPEG", 70, subsampling)


def test_other_tables_give_the_quality_of_the_most_similar_one():
    preset = compression(saved("JPEG", qtables="web_low"))  # the tables of another program
    assert preset is not None and preset.quality is not None
    assert 20 <= preset.quality <= 45
    finer = compression(saved("JPEG", qtables="web_high"))
    assert finer is not None and finer.quality is not None
    assert preset.quality + 20 <= finer.quality <= 90
    flat = [[8] * 64, [8] * 64]
    assert compression(saved("JPEG", qtables=flat)) == Compression("JPEG", jpeg_quality([8] * 64), "4:2:0")
    assert jpeg_quality([4] * 64) > jpeg_quality([8] * 64) > jpeg_quality([30] * 64)


def test_tables_of_16_bits_are_read():
    data = saved("JPEG", quality=60)
    wide = [(marker, b"".join(_widened(body)) if marker == 0xDB else body) for marker, body in _segments(data)]
    assert jpeg_compression(wide) == Compression("JPEG", 60, "4:2:0")


def _widened(body: bytes) -> list[bytes]:
    tables = [body[at : at + 65] for at in range(0, len(body), 65)]
    return [bytes([0x10 | table[0]]) + struct.pack(">64H", *table[1:]) for table in tables]


@pytest.mark.parametrize("body", [b"", b"\0", b"\0" + bytes(64), bytes(30), b"\x10" + bytes(128)])
def test_broken_tables_leave_the_quality_unknown(body):
    assert jpeg_compression([(0xDB, body), (0xC0, b"\x08\0\x10\0\x10\3\1\x22\0\2\x11")]) == Compression("JPEG")


def test_webp_with_loss_is_told_from_webp_without():
    moved = np.roll(PIXELS, 3, axis=1)
    frames = {"save_all": True, "append_images": [Image.fromarray(moved)]}
    assert compression(saved("WEBP", quality=80)) == Compression("WebP")
    assert compression(saved("WEBP", quality=80, **frames)) == Compression("WebP")
    assert compression(saved("WEBP", lossless=True)) is None
    assert compression(saved("WEBP", lossless=True, **frames)) is None


def test_avif_with_loss_is_told_from_avif_without():
    assert compression(saved("AVIF", quality=80)) == Compression("AVIF")
    assert compression(bytes(imagecodecs.avif_encode(PIXELS, level=100, primaries=1, transfer=13))) is None


def test_jpeg_xl_with_loss_is_told_from_jpeg_xl_without():
    assert compression(bytes(imagecodecs.jpegxl_encode(PIXELS, level=85))) == Compression("JPEG XL")
    assert compression(bytes(imagecodecs.jpegxl_encode(PIXELS, lossless=True))) is None


def test_jpeg_2000_with_loss_is_told_from_jpeg_2000_without():
    lossy = imagecodecs.jpeg2k_encode(PIXELS, level=40, codecformat="jp2", reversible=False)
    exact = imagecodecs.jpeg2k_encode(PIXELS, codecformat="jp2", reversible=True)
    assert compression(bytes(lossy)) == Compression("JPEG 2000")
    assert compression(bytes(exact)) is None


def test_heic_counts_as_lossy():
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(PIXELS)).save(buffer, quality=70)
    assert pi_heif.is_supported(buffer.getvalue())
    assert compression(buffer.getvalue()) == Compression("HEIC")


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "TGA", "TIFF", "PPM"])
def test_formats_without_loss_have_no_compression(format):
    assert compression(saved(format)) is None


@pytest.mark.parametrize("quality", [90, 50])
def test_a_tiff_that_holds_jpeg_tells_its_quality(quality):
    options = {"compression": "jpeg", "compressionargs": {"level": quality}}
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PIXELS, photometric="rgb", **options)
    found = compression(buffer.getvalue())
    assert found is not None and (found.kind, found.quality) == ("JPEG", quality)
    through_libtiff = compression(saved("TIFF", compression="jpeg", quality=quality))  # the tables are in a tag
    assert through_libtiff is not None and through_libtiff.quality == quality


def test_a_tiff_that_holds_lossy_webp_is_lossy():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PIXELS, photometric="rgb", compression="webp", compressionargs={"level": 70})
    assert compression(buffer.getvalue()) == Compression("WebP")


def test_it_travels_from_the_process_that_decodes():
    data = saved("JPEG", quality=81, subsampling="4:2:2")
    decoders = Decoders(1)
    try:
        picture: Picture = decoders.open(data, max_pixels=None, name="a picture")
        assert picture.compression == Compression("JPEG", 81, "4:2:2")
        assert decoders.open(saved("PNG"), max_pixels=None).compression is None
    finally:
        decoders.close()


def test_it_is_described_in_a_few_words():
    assert str(Compression("JPEG", 75, "4:2:0")) == "JPEG, quality about 75"
    assert str(Compression("WebP")) == "WebP"
