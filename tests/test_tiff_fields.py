"""Fields of TIFF files: no invented resolution, and the meaning of zero in gray pictures is kept."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from pictures import Nearest, exif, photo, picture
from PIL import Image

from hasn_cli.enlarge import Size, enlarge
from hasn_cli.images import EncodeOptions, Metadata, open_picture, write_picture

FORMATS = ("jpeg", "png", "webp", "tiff", "avif", "gif", "jpeg2000", "bmp", "ppm", "tga", "jpegxl", "heic")


def encoded(shown, format) -> bytes:
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, EncodeOptions())
    return buffer.getvalue()


@pytest.mark.parametrize("came", FORMATS)
def test_no_resolution_is_written_if_none_was_read(came):
    for metadata in (Metadata(), Metadata(exif=exif(1))):
        found = open_picture(encoded(picture(photo(24, 32), metadata=metadata), came))
        assert found.metadata.dpi is None
        for format in FORMATS:
            data = encoded(found, format)
            assert open_picture(data).metadata.dpi is None, (came, format)
            if format == "tiff":
                with tifffile.TiffFile(io.BytesIO(data)) as file:
                    assert not {282, 283, 296} & {tag.code for tag in file.pages.first.tags}
            if format == "png":
                assert b"pHYs" not in data
            if format == "jpeg":
                assert data[13:18] == b"\0\0\1\0\1"  # JFIF must state one: no unit, square pixels
            if format == "bmp":
                assert data[38:46] == bytes(8)


def test_a_resolution_without_a_unit_is_in_inches_as_the_standard_says():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, photo(), photometric="rgb", resolution=(300, 150), resolutionunit="inch", metadata=None)
    data = bytearray(buffer.getvalue())
    at = data.index(b"\x28\x01\x03\0")
    data[at : at + 2] = b"\xff\xfe"
    assert open_picture(bytes(data)).metadata.dpi == (300, 150)


def test_only_the_pages_without_a_resolution_lack_one():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(photo(), photometric="rgb", metadata=None)
        writer.write(photo(), photometric="rgb", resolution=(72, 72), resolutionunit="inch", metadata=None)
        writer.write(photo(), photometric="rgb", metadata=None)
    data = encoded(open_picture(buffer.getvalue()), "tiff")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        assert [282 in page.tags for page in file.pages] == [False, True, False]
        assert all(np.array_equal(page.asarray(), photo()) for page in file.pages)


def min_is_white(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, photometric="miniswhite", metadata=None)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_tiff_in_which_zero_is_white_is_written_as_one(dtype):
    if dtype == np.float32:
        samples = np.linspace(-3.1, 3.1, 48 * 64, dtype=np.float32).reshape(48, 64)
    else:
        samples = photo(channels=1, dtype=dtype)[..., 0]
    large = enlarge(open_picture(min_is_white(samples)), Nearest, Size(2))
    with tifffile.TiffFile(io.BytesIO(encoded(large, "tiff"))) as file:
        assert file.pages.first.photometric == tifffile.PHOTOMETRIC.MINISWHITE
        found = file.asarray()
    np.testing.assert_allclose(found, samples.repeat(2, 0).repeat(2, 1), rtol=1e-5, atol=1e-5)


def test_white_is_white_in_other_formats():
    whole = photo(channels=1)
    for samples in (whole[..., 0], (whole[..., 0] / 255).astype(np.float32)):
        found = open_picture(encoded(open_picture(min_is_white(samples)), "png"))
        shown = next(iter(found.frames)).pixels
        wanted = 255 - whole if shown.dtype == np.uint8 else np.rint((1 - whole / 255) * 65535)
        assert np.abs(shown.astype(int) - wanted).max() <= 1


def test_each_page_keeps_its_own_kind_of_gray():
    gray = photo(channels=1)[..., 0]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(gray, photometric="miniswhite", metadata=None)
        writer.write(gray, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(io.BytesIO(encoded(open_picture(buffer.getvalue()), "tiff"))) as file:
        assert [page.photometric.name for page in file.pages] == ["MINISWHITE", "MINISBLACK"]
        assert all(np.array_equal(page.asarray(), gray) for page in file.pages)


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_ccitt"])
@pytest.mark.parametrize("height", [5, 700])
def test_fax_pages_are_read_dot_by_dot(compression, height):
    rng = np.random.default_rng(3)
    runs = rng.integers(1, 90, size=40_000)
    dots = np.resize(np.repeat(np.arange(len(runs)) % 2, runs), (height, 1235)).astype(bool)
    buffer = io.BytesIO()
    Image.fromarray(dots).save(buffer, "TIFF", compression=compression)
    found = next(iter(open_picture(buffer.getvalue()).frames)).pixels
    np.testing.assert_array_equal(found[..., 0], np.where(dots, 255, 0))


def test_a_palette_of_one_bit_is_read():
    dots = photo(channels=1)[..., 0] > 100
    colormap = (320, 3, 6, (0, 65535, 10 * 257, 200 * 257, 0, 30 * 257), True)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, dots, photometric="minisblack", extratags=[colormap], metadata=None)
    data = bytearray(buffer.getvalue())
    at = data.index(b"\x06\x01\x03\0\x01\0\0\0\x01")
    data[at + 8] = 3  # a palette
    found = next(iter(open_picture(bytes(data)).frames)).pixels
    np.testing.assert_array_equal(found, np.where(dots[..., None], (255, 200, 30), (0, 10, 0)))
