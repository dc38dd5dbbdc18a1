"""Pictures keep the depth and the kind of their pixels."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    WIDE_GAMUT,
    encoded,
    full_metadata,
    interlaced,
    photo,
    picture,
    pixels_of,
    saved,
)
from PIL import Image

from hasn_cli.errors import ImageError
from hasn_cli.images import FORMATS, open_picture
from hasn_cli.images.metadata import apply_orientation


@pytest.mark.parametrize("format", ["png", "tiff", "jpeg2000", "ppm", "jpegxl"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_depth_and_number_of_channels_is_preserved_exactly(format, channels, dtype):
    pixels = photo(channels=channels, dtype=dtype)
    found = open_picture(encoded(picture(pixels), format))
    assert (found.channels, found.dtype, found.size) == (channels, dtype, (48, 64))
    np.testing.assert_array_equal(next(iter(found.frames)).pixels, pixels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_avif_keeps_every_sample_and_its_metadata(channels):
    noise = np.random.default_rng(channels).integers(0, 256, (48, 64, channels), np.uint8)
    before = full_metadata(icc=None if channels <= 2 else WIDE_GAMUT)
    data = encoded(picture(noise, metadata=before), "avif")
    expected = noise[..., (0, 0, 0, 1)] if channels == 2 else noise
    np.testing.assert_array_equal(pixels_of(data), expected)
    found = open_picture(data).metadata
    assert (found.icc, found.xmp) == (before.icc, before.xmp)
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get(0x010F) == "Maker"
        np.testing.assert_array_equal(np.asarray(image).reshape(expected.shape), expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4)),
    dtype=st.sampled_from([np.uint8, np.uint16]),
    format=st.sampled_from(["png", "tiff", "jpeg2000", "ppm", "jpegxl"]),
)
@settings(max_examples=150, deadline=None)
def test_any_pixels_are_preserved_exactly(seed, shape, dtype, format):
    dice = np.random.default_rng(seed)
    pixels = dice.integers(0, dice.integers(1, np.iinfo(dtype).max, endpoint=True), shape, dtype, endpoint=True)
    np.testing.assert_array_equal(pixels_of(encoded(picture(pixels), format)), pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("format", FORMATS)
def test_the_smallest_pictures_are_preserved(format, size):
    found = open_picture(encoded(picture(photo(*size)), format))
    assert found.size == size == next(iter(found.frames)).pixels.shape[:2]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_float_tiffs_keep_their_own_range(channels):
    pixels = photo(channels=channels, dtype=np.float32) * 5000 - 12
    np.testing.assert_array_equal(pixels_of(encoded(picture(pixels), "tiff")), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_of_every_mode_is_decoded_as_by_pillow(mode):
    if mode == "I;16":
        image = Image.fromarray(photo(channels=1, dtype=np.uint16)[..., 0])
    else:
        image = Image.fromarray(photo(channels=4)).convert(mode)
    data = saved(image, "PNG")
    found = pixels_of(data)
    with Image.open(io.BytesIO(data)) as again:
        mode = {"1": "L", "P": "RGBA"}.get(mode, mode)
        expected = np.asarray(again if mode == "I;16" else again.convert(mode))
    np.testing.assert_array_equal(found, expected.reshape(*expected.shape[:2], -1)[..., : found.shape[2]])


@pytest.mark.parametrize("size", [(48, 64), (1, 1), (3, 5), (9, 2)])
@pytest.mark.parametrize(("channels", "bits"), [(1, 1), (1, 4), (1, 16), (2, 8), (3, 8), (3, 16), (4, 16)])
def test_interlaced_pngs_are_read_without_messages_on_stderr(channels, bits, size, capfd):
    pixels = photo(*size, channels=channels, dtype=np.uint16) >> (16 - bits)
    found = pixels_of(interlaced(pixels, bits))
    full = np.iinfo(found.dtype).max
    np.testing.assert_array_equal(found, np.rint(pixels * (full / (2**bits - 1))))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_and_low_bit_depths_are_expanded(bits):
    image = Image.fromarray(photo()).quantize(2**bits)
    found = pixels_of(saved(image, "PNG", bits=bits))
    np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TGA"])
def test_a_palette_of_grays_stays_gray(format):
    image = Image.fromarray(photo(channels=1)[..., 0]).quantize(16)
    found = open_picture(saved(image, format))
    assert found.channels == 1
    np.testing.assert_array_equal(next(iter(found.frames)).pixels[..., 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_colour_key_becomes_transparency(channels, deep):
    pixels = photo(channels=channels, dtype=np.uint16 if deep else np.uint8)
    data = bytes(imagecodecs.png_encode(pixels if channels == 3 else pixels[..., 0]))
    key = b"".join(struct.pack(">H", int(value)) for value in pixels[5, 7])
    chunk = b"tRNS" + key
    data = data[:33] + struct.pack(">I", len(key)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    found = open_picture(data)
    assert (found.channels, found.dtype) == (channels + 1, pixels.dtype)
    shown = next(iter(found.frames)).pixels
    hidden = (pixels == pixels[5, 7]).all(axis=2)
    np.testing.assert_array_equal(shown[..., -1] == 0, hidden)
    np.testing.assert_array_equal(shown[..., :-1][~hidden], pixels[~hidden])


def test_16_bit_samples_are_rounded_to_8_bits():
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256, 1)
    found = pixels_of(encoded(picture(pixels), "bmp"))
    np.testing.assert_array_equal(found, np.rint(pixels / 257).astype(np.uint8))


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_in_which_zero_is_white_are_not_inverted(photometric, dtype):
    pixels = photo(channels=1, dtype=dtype)[..., 0]
    stored = pixels if photometric == "minisblack" else np.iinfo(dtype).max - pixels
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored, photometric=photometric)
    np.testing.assert_array_equal(pixels_of(buffer.getvalue())[..., 0], pixels)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "planes", "lzw", "packbits", "bigtiff"])
def test_tiffs_of_every_layout_are_read(layout, order):
    pixels = photo(dtype=np.uint16)
    arguments = {"tiles": {"tile": (16, 16)}, "lzw": {"compression": "lzw"}, "strips": {"rowsperstrip": 5}}
    arguments |= {"packbits": {"compression": "packbits"}, "bigtiff": {"bigtiff": True}}
    arguments["planes"] = {"planarconfig": "separate"}
    stored = np.moveaxis(pixels, 2, 0) if layout == "planes" else pixels
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored, photometric="rgb", byteorder=order, **arguments[layout])
    np.testing.assert_array_equal(pixels_of(buffer.getvalue()), pixels)


@pytest.mark.parametrize("compression", ["group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate", None])
def test_tiffs_from_libtiff_are_read(compression):
    image = Image.fromarray(photo())
    image = image.convert("1") if compression == "group4" else image
    data = saved(image, "TIFF", compression=compression)
    with Image.open(io.BytesIO(data)) as again:
        expected = np.asarray(again.convert("L" if compression == "group4" else "RGB")).astype(int)
    found = pixels_of(data)
    assert np.abs(found.astype(int) - expected.reshape(found.shape)).max() <= (2 if compression == "jpeg" else 0)


@pytest.mark.parametrize("big", [False, True])
def test_each_page_of_a_tiff_is_turned_by_its_own_orientation(big):
    stored = [(photo(), 6), (photo(20, 30), 1), (photo(16, 24), 3), (photo(10, 14), 9), (photo(12, 18), 8)]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=big) as writer:
        for pixels, orientation in stored:
            tag = (274, 3, 1, orientation, True)
            writer.write(pixels, photometric="rgb", resolution=(300, 150), resolutionunit="inch", extratags=[tag])
    found = open_picture(buffer.getvalue())
    assert found.size == (64, 48)
    assert found.metadata.dpi == (150, 300)
    for frame, (pixels, orientation) in zip(found.frames, stored, strict=True):
        np.testing.assert_array_equal(frame.pixels, apply_orientation(pixels, orientation if orientation < 9 else 1))
    again = open_picture(encoded(found, "tiff"))
    for frame, before in zip(again.frames, found.frames, strict=True):
        np.testing.assert_array_equal(frame.pixels, before.pixels)


def test_premultiplied_tiffs_are_divided_by_their_alpha():
    straight = photo(channels=4, dtype=np.uint16)
    alpha = straight[..., 3:] / 65535
    stored = np.concatenate([np.rint(straight[..., :3] * alpha).astype(np.uint16), straight[..., 3:]], axis=2)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored, photometric="rgb", extrasamples=["assocalpha"])
    found = pixels_of(buffer.getvalue())
    solid = alpha[..., 0] > 0.1
    assert np.abs(found.astype(int) - straight)[solid].max() <= 6


def test_10_bit_avif_becomes_16_bit():
    pixels = photo(dtype=np.uint16) >> 6
    found = pixels_of(bytes(imagecodecs.avif_encode(pixels, level=100, bitspersample=10)))
    assert found.dtype == np.uint16
    assert np.abs(found / 65535 - pixels / 1023).max() < 1e-4


@pytest.mark.parametrize("header", ["P1", "P2", "P3", "P4", "P5", "P6"])
def test_netpbm_of_every_kind_is_decoded_as_by_pillow(header):
    pixels = photo(6, 9, channels=1 if header in ("P1", "P2", "P4", "P5") else 3)
    bits = (pixels[..., 0] < 100).astype(np.uint8)
    digits = " ".join(map(str, pixels.reshape(-1)))
    body = {
        "P1": "\n".join("".join(map(str, row)) for row in bits).encode(),
        "P2": f"255\n{digits}\n".encode(),
        "P3": f"255\n{digits}\n".encode(),
        "P4": np.packbits(bits, axis=1).tobytes(),
    }.get(header, b"255\n" + pixels.tobytes())
    data = f"{header}\n# a comment\n9 6\n".encode() + body
    expected = (1 - bits[..., None]) * 255 if header in ("P1", "P4") else pixels
    np.testing.assert_array_equal(pixels_of(data), expected)


def test_netpbm_with_an_unusual_maximum_is_stretched():
    data = b"P5 2 2 1000\n" + np.array([0, 250, 500, 1000], ">u2").tobytes()
    np.testing.assert_array_equal(pixels_of(data).ravel(), [0, 16384, 32768, 65535])


def test_the_largest_picture_of_an_icon_is_read():
    image = Image.fromarray(photo(64, 64, channels=4))
    data = saved(image, "ICO", sizes=[(16, 16), (64, 64), (32, 32)])
    found = open_picture(data)
    assert found.size == (64, 64)
    np.testing.assert_array_equal(next(iter(found.frames)).pixels, photo(64, 64, channels=4))


@pytest.mark.parametrize("premultiplied", [False, True])
def test_jpeg_2000_components_are_sorted_as_the_file_defines(premultiplied):
    straight = photo(channels=4)
    alpha = straight[..., 3:] / 255
    color = np.rint(straight[..., :3] * alpha).astype(np.uint8) if premultiplied else straight[..., :3]
    stored = np.concatenate([straight[..., 3:], color[..., ::-1]], axis=2)  # opacity, blue, green, red
    data = encoded(picture(stored), "jpeg2000")
    at = data.index(b"cdef") + 6
    uses = [(0, 2 if premultiplied else 1, 0), (1, 0, 3), (2, 0, 2), (3, 0, 1)]
    definitions = b"".join(struct.pack(">HHH", *use) for use in uses)
    found = pixels_of(data[:at] + definitions + data[at + len(definitions) :])
    solid = straight[..., 3] > (100 if premultiplied else -1)
    assert np.abs(found.astype(int) - straight)[solid].max() <= (2 if premultiplied else 0)
    unknown = data[:at] + struct.pack(">HHH", 0, 0xFFFF, 0xFFFF) + definitions[6:] + data[at + len(definitions) :]
    np.testing.assert_array_equal(pixels_of(unknown), color)
    with pytest.raises(ImageError, match="channel definitions"):
        open_picture(data[:at] + struct.pack(">H", 9) + data[at + 2 :])
