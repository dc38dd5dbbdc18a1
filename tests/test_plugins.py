"""Formats that imageio's plugins read: their pixels arrive unchanged, and hostile files are refused."""

from __future__ import annotations

import io
import os
import struct

import imagecodecs
import numpy as np
import pytest
from format_table import foreign_files, photoshop_file, through_pillow
from pictures import WIDE_GAMUT, photo, pixels_of
from PIL import Image

from hasn_cli.batch.jobs import find_jobs
from hasn_cli.errors import ImageError
from hasn_cli.images import EncodeOptions, open_picture, write_picture
from hasn_cli.images.codecs import plugins
from hasn_cli.images.color import to_srgb
from hasn_cli.images.formats import READ_ONLY, sniff

PILLOWS = ("psd", "qoi", "dds", "pcx", "sgi", "xbm")


EXACT = {
    "psd": lambda pixels: photoshop_file(pixels),
    "qoi": lambda pixels: bytes(imagecodecs.qoi_encode(pixels)),
    "dds": lambda pixels: through_pillow("DDS", Image.fromarray(pixels)),
    "pcx": lambda pixels: through_pillow("PCX", Image.fromarray(pixels)),
    "sgi": lambda pixels: through_pillow("SGI", Image.fromarray(pixels)),
}


@pytest.mark.parametrize("format", EXACT)
@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_arrive_unchanged_and_the_plugin_is_named(format, channels):
    if (format, channels) == ("pcx", 4):
        pytest.skip("PCX has no transparency")
    found = open_picture(EXACT[format](photo(channels=channels)))
    assert found.format == format
    np.testing.assert_array_equal(next(iter(found.frames)).pixels, photo(channels=channels))
    assert found.metadata.notices == ("read by imageio's Pillow plugin: pixels only",)


def test_a_set_bit_of_an_xbm_is_black():
    data = b"#define a_width 8\n#define a_height 2\nstatic char a_bits[] = {\n0x01, 0xff };\n"
    np.testing.assert_array_equal(pixels_of(data)[..., 0], [[0] + [255] * 7, [0] * 8])


def test_the_profile_of_a_photoshop_file_is_kept():
    found = open_picture(photoshop_file(photo(), WIDE_GAMUT))
    assert found.metadata.icc == WIDE_GAMUT
    assert "colour profile" in found.metadata.notices[0]


def test_a_photoshop_file_with_16_bits_gets_advice():
    data = bytearray(photoshop_file(photo()))
    data[22:24] = struct.pack(">H", 16)
    with pytest.raises(ImageError, match="16 bits are not supported; save it as TIFF"):
        open_picture(bytes(data))


def test_16_bits_of_an_sgi_that_are_lost_are_named():
    rows = photo(dtype=np.uint16)[::-1].transpose(2, 0, 1).astype(">u2")
    head = struct.pack(">HBBHHHHII", 474, 0, 2, 3, 64, 48, 3, 0, 65535).ljust(512, b"\0")
    found = open_picture(head + rows.tobytes())
    np.testing.assert_array_equal(next(iter(found.frames)).pixels, photo(dtype=np.uint16) >> 8)
    assert "only 8 of its 16 bits are read" in found.metadata.notices


@pytest.mark.parametrize("format", PILLOWS)
def test_declared_sizes_over_the_limit_are_refused_before_decoding(format):
    for data in foreign_files(format):
        with pytest.raises(ImageError, match="over the limit"):
            open_picture(data, max_pixels=1000)


@pytest.mark.parametrize("format", PILLOWS)
def test_a_truncated_file_is_refused_in_plain_words(format):
    data = foreign_files(format)[0]
    with pytest.raises(ImageError) as caught:
        list(open_picture(data[:40], name="x").frames)
    assert "BytesIO" not in str(caught.value)
    assert caught.value.hint == "save it as PNG or TIFF in another program, and upscale that"


def test_a_video_is_not_opened_by_a_plugin():
    for head in (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", b"\x1aE\xdf\xa3\x01\0\0\0", b"RIFF\x10\0\0\0AVI LIST"):
        assert sniff(head + bytes(200)) is None


@pytest.mark.parametrize("format", plugins.PACKAGES)
def test_a_missing_package_is_named(format, monkeypatch):
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    window = b"dataWindow\0box2i\0" + struct.pack("<I4i", 16, 0, 0, 63, 47)
    heads = {"exr": b"v/1\x01\2\0\0\0" + window, "fits": b"SIMPLE  =" + bytes(200), "dicom": bytes(128) + b"DICM"}
    with pytest.raises(ImageError, match="needs another package") as caught:
        open_picture(heads[format])
    assert caught.value.hint == f"pip install {plugins.PACKAGES[format][1]}"


def test_results_get_a_format_that_holds_everything(tmp_path):
    for name in ("a.psd", "b.exr", "c.qoi"):
        (tmp_path / name).write_bytes(b"x")
    targets = [job.target.name for job in find_jobs([tmp_path])]
    assert targets == ["a_x4.png", "b_x4.tif", "c_x4.png"]


def test_a_file_without_a_known_signature_is_not_tried():
    with pytest.raises(ImageError, match="not a picture of a known format") as caught:
        open_picture(b"PK\3\4" + bytes(500))
    assert all(only.title in caught.value.hint for only in READ_ONLY.values())


def test_openexr_keeps_floats_alpha_and_linear_light():
    os.environ["OPENCV_IO_ENABLE_OPENEXR"] = "1"
    cv2 = pytest.importorskip("cv2")
    if not cv2.haveImageWriter("a.exr"):
        pytest.skip("this OpenCV has no OpenEXR")
    pixels = photo(channels=4, dtype=np.float32) * np.float32([3, 3, 3, 1])
    alpha = np.maximum(pixels[..., 3:], 0.25)
    stored = np.concatenate([pixels[..., 2::-1] * alpha, alpha], axis=2)  # BGR, multiplied by alpha
    found = open_picture(cv2.imencode(".exr", stored)[1].tobytes())
    shown = next(iter(found.frames)).pixels
    np.testing.assert_allclose(shown[..., :3], pixels[..., :3], rtol=1e-5)
    buffer = io.BytesIO()
    write_picture(found, buffer, "tiff", EncodeOptions())
    half = np.full((1, 1, 3), 0.5, np.float32)
    icc = open_picture(buffer.getvalue()).metadata.icc
    assert to_srgb(half, icc).mean() == pytest.approx(0.735, abs=0.01)  # of linear light


def test_fits_is_shown_with_its_first_row_below():
    fits = pytest.importorskip("astropy.io.fits")
    for dtype in (np.uint16, np.float32):
        pixels = photo(channels=1, dtype=dtype)[..., 0]
        buffer = io.BytesIO()
        fits.PrimaryHDU(pixels).writeto(buffer)
        found = pixels_of(buffer.getvalue())
        assert found.dtype == dtype
        np.testing.assert_array_equal(found[::-1, :, 0], pixels)


def test_dicom_is_read_as_it_is_shown():
    pytest.importorskip("pydicom")
    for pixels in (photo(), photo(channels=1, dtype=np.uint16)):
        from imageio.v3 import imwrite

        data = imwrite("<bytes>", pixels.squeeze(), plugin="pydicom", extension=".dcm")
        np.testing.assert_array_equal(pixels_of(data), pixels)
