"""Pictures keep their depth, colour, metadata and frames, and files appear complete or not at all."""

from __future__ import annotations

import gc
import io
import os
import shutil
import struct
import subprocess
import sys
import tracemalloc
import weakref
import zlib
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    ICC_FOLDER,
    IPTC,
    MAKER_NOTE,
    SKIMAGE,
    WIDE_GAMUT,
    XMP,
    Nearest,
    animation,
    exif,
    full_metadata,
    interlaced,
    photo,
    picture,
)
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import IFDRational

from hasn_cli.batch.settings import Settings
from hasn_cli.batch.work import bytes_needed
from hasn_cli.enlarge import Size, enlarge
from hasn_cli.errors import HasnError, ImageError, OutputError
from hasn_cli.images import FORMATS, EncodeOptions, Frame, Metadata, Text, check_can_hold, open_picture, write_picture
from hasn_cli.images.adapt import adapt
from hasn_cli.images.color import to_srgb
from hasn_cli.images.exif import EXIF_IFD, GPS_IFD, Exif
from hasn_cli.images.metadata import apply_orientation, resized, upright
from hasn_cli.images.picture import Picture, Shape

LOSSLESS = EncodeOptions(lossless=True)


def encoded(shown, format="png", options=LOSSLESS) -> bytes:
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, options)
    return buffer.getvalue()


def pixels_of(data) -> np.ndarray:
    return next(iter(open_picture(data).frames)).pixels


def saved(image: Image.Image, format: str, **arguments) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **arguments)
    return buffer.getvalue()


# --- depth and kinds of pixels ---------------------------------------------------------------------------------------


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


# --- colour ----------------------------------------------------------------------------------------------------------


def cmyk_profile() -> bytes:
    path = ICC_FOLDER / "default_cmyk.icc"
    if not path.exists():
        pytest.skip("Ghostscript's profiles are not installed")
    return path.read_bytes()


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_goes_through_its_profile(format):
    profile = cmyk_profile()
    image = Image.fromarray(photo()).convert("CMYK")
    data = saved(image, format, icc_profile=profile, **({"quality": 95, "subsampling": 0} if format == "JPEG" else {}))
    with Image.open(io.BytesIO(data)) as again:
        target = ImageCms.createProfile("sRGB")
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        shown = ImageCms.profileToProfile(again, source, target, renderingIntent=1, outputMode="RGB", flags=flags)
    found = open_picture(data)
    assert found.channels == 3
    assert found.metadata.icc is not None and found.metadata.icc[16:20] == b"RGB "
    assert np.abs(next(iter(found.frames)).pixels.astype(int) - np.asarray(shown)).max() <= 2


@pytest.mark.parametrize("space", ["CMYK", "YCCK"])
def test_adobes_inverted_jpegs_are_read_correctly(space):
    pixels = photo()
    inks = np.concatenate([255 - pixels, np.zeros_like(pixels[..., :1])], axis=2)
    data = bytes(imagecodecs.jpeg8_encode(255 - inks, 98, colorspace="CMYK", outcolorspace=space, subsampling="444"))
    assert np.abs(pixels_of(data).astype(int) - pixels).mean() < 5  # colour is subsampled


def test_ycbcr_tiffs_are_converted_to_rgb():
    stored = np.asarray(Image.fromarray(photo()).convert("YCbCr"))
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored, photometric="ycbcr", subsampling=(1, 1))
    assert np.abs(pixels_of(buffer.getvalue()).astype(int) - photo()).max() <= 3


@pytest.mark.parametrize("space", ["LAB", "ICCLAB"])
def test_lab_is_converted_to_rgb(space):
    rgb = Image.fromarray(photo())
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    stored = np.asarray(ImageCms.profileToProfile(rgb, srgb, lab, outputMode="LAB"))  # a and b are signed
    stored = stored if space == "LAB" else stored ^ np.array([0, 128, 128], np.uint8)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, stored, photometric="icclab" if space == "ICCLAB" else "cielab")
    found = pixels_of(buffer.getvalue())
    assert np.abs(found.astype(int) - photo()).mean() < 2


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "avif", "jpeg2000", "heic"])
def test_profiles_are_preserved_byte_for_byte(format):
    found = open_picture(encoded(picture(photo(), metadata=Metadata(icc=WIDE_GAMUT)), format))
    assert found.metadata.icc == WIDE_GAMUT


def test_gray_profiles_stay_with_gray_pictures():
    path = ICC_FOLDER / "sgray.icc"
    if not path.exists():
        pytest.skip("Ghostscript's profiles are not installed")
    for format in ("jpeg", "png", "tiff"):
        shown = picture(photo(channels=1), metadata=Metadata(icc=path.read_bytes()))
        found = open_picture(encoded(shown, format))
        assert (found.channels, found.metadata.icc) == (1, path.read_bytes())


def test_a_linear_png_is_not_darkened_in_a_format_without_gamma():
    linear = np.rint((photo() / 255) ** 2.2 * 65535).astype(np.uint16)
    shown = picture(linear, metadata=Metadata(gamma=1.0))
    found = pixels_of(encoded(shown, "ppm"))
    assert np.abs(found / 257 - photo()).mean() < 2
    assert open_picture(encoded(shown, "tiff")).metadata.icc is not None


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("format", ["bmp", "gif", "tga", "ppm", "jpegxl", "pfm"])
def test_float_pictures_are_converted_by_their_profile_too(format, channels):
    pixels = photo(channels=channels, dtype=np.float32)
    pixels[..., 3:] = 1
    shown = picture(pixels, "tiff", metadata=Metadata(icc=WIDE_GAMUT))
    found = pixels_of(encoded(shown, format))[..., :3]
    full = 1.0 if found.dtype.kind == "f" else np.iinfo(found.dtype).max
    expected = to_srgb(photo(), WIDE_GAMUT) / 255

    def shift(samples):  # the dithered 256 colours of a GIF hardly change it
        return np.abs((samples - expected).mean(axis=(0, 1))).max()

    assert shift(found / full) < 0.1 * shift(photo() / 255)


def test_pfm_converts_light_beyond_white_without_clipping_it():
    linear = bytes(imagecodecs.cms_profile("rgb", whitepoint=(0.3127, 0.329),
                   primaries=(0.64, 0.33, 0.3, 0.6, 0.15, 0.06), gamma=1.0))  # fmt: skip
    pixels = np.array([0, 0.0512, 0.2140, 1, 4], np.float32)[None, :, None].repeat(3, axis=2)
    found = pixels_of(encoded(picture(pixels, "tiff", metadata=Metadata(icc=linear)), "pfm"))
    expected = [0, 0.25, 0.5, 1, 1.055 * 4 ** (1 / 2.4) - 0.055]
    np.testing.assert_allclose(found[0], np.repeat(np.array(expected)[:, None], 3, axis=1), atol=2e-3)


def test_the_background_is_srgb_for_any_profile_of_the_picture():
    clear = np.zeros((8, 8, 4), np.float32)
    shown = picture(clear, "tiff", metadata=Metadata(icc=WIDE_GAMUT))
    found = pixels_of(encoded(shown, "pfm", EncodeOptions(background="#20c040")))
    np.testing.assert_allclose(found[0, 0], np.array([0x20, 0xC0, 0x40]) / 255, atol=1e-6)


LINEAR = bytes(imagecodecs.cms_profile("rgb", whitepoint=(0.3127, 0.329),
               primaries=(0.64, 0.33, 0.3, 0.6, 0.15, 0.06), gamma=1.0))  # fmt: skip
LINEAR_GRAY = bytes(imagecodecs.cms_profile("gray", whitepoint=(0.3127, 0.329), gamma=1.0))


def from_light(samples: np.ndarray) -> np.ndarray:
    """Convert 8-bit linear samples, none of them dark, to sRGB."""
    return 255 * (1.055 * (samples / 255) ** (1 / 2.4) - 0.055)


def shown_in_srgb(data: bytes) -> np.ndarray:
    """H×W×3 sRGB of a file's first frame without alpha. Its profile must fit its number of channels."""
    with Image.open(io.BytesIO(data)) as image:
        shown = image.convert("RGB" if image.mode.startswith("RGB") else "L")
        if image.info.get("icc_profile"):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
            assert profile.profile.xcolor_space.strip() == {"L": "GRAY", "RGB": "RGB"}[shown.mode]
            shown = ImageCms.profileToProfile(shown, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
        return np.asarray(shown.convert("RGB")).astype(float)


@pytest.mark.parametrize(
    "stated",
    [Metadata(gamma=1.0), Metadata(icc=LINEAR_GRAY), Metadata(icc=LINEAR), Metadata(cicp=b"\x09\x08\0\1")],
    ids=["gamma", "gray profile", "RGB profile", "code points"],
)
@pytest.mark.parametrize(
    ("format", "channels"),
    [("jpeg", 1), ("bmp", 1), ("ppm", 1)]
    + [(name, channels) for name in ("tiff", "webp", "avif") for channels in (1, 2)],
)
def test_gray_is_as_bright_in_every_format_as_its_profile_says(format, channels, stated):
    pixels = photo(channels=channels) // 2 + np.uint8(100)
    found = shown_in_srgb(encoded(picture(pixels, metadata=stated), format))
    assert np.abs(found - from_light(pixels[..., :1])).max() < (8 if format == "jpeg" else 2)


@pytest.mark.parametrize("format", ["webp", "avif"])
def test_an_animation_in_gray_is_as_bright_as_its_profile_says(format):
    frames = [Frame(photo(channels=1)[:, ::step] // 2 + np.uint8(100), 50.0) for step in (1, -1)]
    film = picture(frames[0].pixels, frames=frames, frame_count=2, loop=0, metadata=Metadata(icc=LINEAR_GRAY))
    found = shown_in_srgb(encoded(film, format, EncodeOptions()))
    assert np.abs(found - from_light(frames[0].pixels)).mean() < 2


@pytest.mark.parametrize("format", ["tiff", "webp", "png"])
def test_a_gray_profile_is_kept_only_if_the_file_is_gray(format):
    found = open_picture(encoded(picture(photo(channels=2), metadata=Metadata(icc=LINEAR_GRAY)), format)).metadata
    assert found == Metadata(icc=None if format == "webp" else LINEAR_GRAY)


def test_a_palette_of_grays_is_converted_by_its_profile():
    image = Image.fromarray(photo(channels=1)[..., 0] // 2 + np.uint8(100)).convert("P")
    image.putpalette([level for level in range(256) for _ in range(3)])
    found = open_picture(saved(image, "PNG", icc_profile=LINEAR))
    with Image.open(io.BytesIO(encoded(found))) as again:
        assert again.info["icc_profile"] == LINEAR
    for format in ("png", "jpeg", "tiff", "bmp"):
        shown = shown_in_srgb(encoded(found, format))
        assert np.abs(shown - from_light(np.asarray(image)[..., None])).max() < (8 if format == "jpeg" else 2)


@pytest.mark.parametrize(("mode", "profile"), [("L", LINEAR), ("LA", LINEAR), ("RGB", LINEAR_GRAY)])
def test_a_png_profile_for_another_colour_model_is_ignored_as_in_browsers(mode, profile):
    image = Image.fromarray(photo()).convert(mode)
    found = open_picture(saved(image, "PNG", icc_profile=profile))
    assert found.metadata.icc is None
    np.testing.assert_array_equal(shown_in_srgb(encoded(found, "bmp")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("profile", [LINEAR[:300], LINEAR_GRAY[:200], b"no profile at all" * 20])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("format", ["bmp", "webp"])
def test_a_broken_profile_is_dropped_and_nothing_else(format, channels, profile):
    shown = picture(photo(channels=channels), metadata=Metadata(icc=profile))
    with Image.open(io.BytesIO(encoded(shown, format))) as image:
        np.testing.assert_array_equal(
            np.asarray(image.convert("RGB")), np.broadcast_to(photo(channels=channels), (48, 64, 3))
        )


@pytest.mark.parametrize("stated", [Metadata(gamma=1.0), Metadata(icc=LINEAR)], ids=["gamma", "profile"])
def test_the_background_of_a_jpeg_is_srgb_for_any_profile_of_the_picture(stated):
    pixels = np.full((32, 64, 4), 150, np.uint8)
    pixels[..., 3] = np.repeat([0, 255], 32)
    data = encoded(picture(pixels, metadata=stated), "jpeg", EncodeOptions(background="#20c040"))
    found = shown_in_srgb(data)
    assert np.abs(found[:, :24] - (0x20, 0xC0, 0x40)).max() <= 3
    assert np.abs(found[:, 40:] - from_light(pixels[:, 40:, :3])).max() <= 3


@pytest.mark.parametrize("stated", [Metadata(gamma=1.0), Metadata(icc=LINEAR_GRAY)], ids=["gamma", "profile"])
@pytest.mark.parametrize("background", ["#ff0000", "#808080"])
def test_gray_on_a_background_is_as_bright_as_its_profile_says(background, stated):
    pixels = np.full((32, 64, 2), 150, np.uint8)
    pixels[..., 1] = np.repeat([0, 255], 32)
    found = shown_in_srgb(encoded(picture(pixels, metadata=stated), "jpeg", EncodeOptions(background=background)))
    assert np.abs(found[:, :24] - tuple(bytes.fromhex(background[1:]))).max() <= 3
    assert np.abs(found[:, 40:] - from_light(pixels[:, 40:, :1])).max() <= 3


@pytest.mark.parametrize(("alpha", "background", "channels"), [(9, "red", 3), (9, "gray", 1), (255, "red", 1)])
def test_gray_on_a_background_has_the_declared_number_of_channels(alpha, background, channels):
    pixels = np.full((8, 8, 2), alpha, np.uint8)
    adapted = adapt(picture(pixels), "jpeg", EncodeOptions(background=background))
    assert adapted.channels == channels == next(iter(adapted.frames)).pixels.shape[2]


def test_a_profile_is_kept_if_the_background_does_not_show():
    pixels = np.concatenate([photo(), np.full((48, 64, 1), 255, np.uint8)], axis=2)
    shown = picture(pixels, metadata=Metadata(icc=WIDE_GAMUT))
    with Image.open(io.BytesIO(encoded(shown, "jpeg", EncodeOptions(background="red")))) as image:
        assert image.info["icc_profile"] == WIDE_GAMUT


def test_sixteen_bits_are_converted_as_exactly_as_eight():
    dice = np.random.default_rng(3)
    colors = dice.integers(0, 256, (64, 64, 3), np.uint8)
    deep = to_srgb(colors.astype(np.uint16) * 257, WIDE_GAMUT)
    assert np.abs(deep / 257 - to_srgb(colors, WIDE_GAMUT)).max() < 1.5


def test_code_points_become_a_profile_in_formats_without_code_points():
    p3 = bytes(imagecodecs.avif_encode(photo(), level=100, primaries=12, transfer=13))
    found = open_picture(p3)
    assert found.metadata.cicp == bytes([12, 13, 0, 1])
    assert open_picture(encoded(found, "png")).metadata.cicp == bytes([12, 13, 0, 1])
    profile = open_picture(encoded(found, "avif")).metadata.icc
    assert profile is not None
    red = to_srgb(np.array([[[200, 0, 0]]], np.uint8), profile)[0, 0]
    assert red[0] > 215  # P3's red is redder than sRGB's
    gray = to_srgb(np.array([[[120, 120, 120]]], np.uint8), profile)[0, 0]
    assert np.abs(gray.astype(int) - 120).max() <= 1
    assert open_picture(bytes(imagecodecs.avif_encode(photo()))).metadata.cicp is None


def test_hdr_colours_are_kept_in_png_and_refused_elsewhere():
    found = open_picture(bytes(imagecodecs.avif_encode(photo(), level=100, primaries=9, transfer=16)))
    with pytest.raises(ImageError, match="HDR"):
        check_can_hold(found, found.size, "avif", EncodeOptions())
    check_can_hold(found, found.size, "png", EncodeOptions())
    assert open_picture(encoded(found, "png")).metadata.cicp == bytes([9, 16, 0, 1])


# --- metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "jpeg2000", "jpegxl"])
def test_exif_changes_only_where_necessary(format, order):
    before = exif(order=order)
    shown = picture(photo(96, 128), metadata=Metadata(exif=before))
    after = open_picture(encoded(shown, format)).metadata.exif
    assert after is not None and len(after) < len(before)
    thumbnail = before.index(b"\xff\xd8\xff")
    changed = [at for at in range(len(after)) if before[at] != after[at]]
    block = Exif(after)
    private = block.number(block.first, EXIF_IFD)
    allowed = [block.link(block.first)] + [block.find(private, tag).position + 8 for tag in (0xA002, 0xA003)]
    assert all(any(start <= at < start + 4 for start in allowed) for at in changed if at < thumbnail)
    assert (block.number(private, 0xA002), block.number(private, 0xA003)) == (128, 96)
    assert b"\xff\xd8\xff" not in after
    assert after.index(MAKER_NOTE) == before.index(MAKER_NOTE)


@pytest.mark.parametrize("holder", ["main", "interoperability"])
def test_a_value_after_the_thumbnail_in_exif_is_kept(holder):
    def directory(following, *entries):
        packed = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
        return struct.pack("<H", len(entries)) + packed + struct.pack("<L", following)

    thumbnail = b"\xff\xd8" + b"T" * 40 + b"\xff\xd9"
    start, end = 100, 100 + len(thumbnail)
    small = directory(0, (0x0201, 4, 1, start), (0x0202, 4, 1, len(thumbnail)))
    if holder == "main":
        above = directory(26, (0x011A, 5, 1, end)) + small
    else:
        above = directory(62, (EXIF_IFD, 4, 1, 26)) + directory(0, (0xA005, 4, 1, 44))
        above += directory(0, (0x011A, 5, 1, end)) + small
    block = (b"II*\0" + struct.pack("<L", 8) + above).ljust(start, b"\0") + thumbnail + struct.pack("<LL", 300, 1)
    after = Exif(resized(Metadata(exif=block), (96, 128)).exif)
    value = after.find(after.first if holder == "main" else 44, 0x011A)
    assert value is not None and after.value(value) == struct.pack("<LL", 300, 1)
    assert b"TTTT" not in after.data


def test_sizes_above_16_bits_fit_into_exif():
    block = Exif(resized(Metadata(exif=exif()), (70_000, 90_000)).exif)
    private = block.number(block.first, EXIF_IFD)
    assert (block.number(private, 0xA002), block.number(private, 0xA003)) == (90_000, 70_000)


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "avif", "jpeg2000", "jpegxl", "heic"])
def test_exif_gps_and_maker_notes_survive(format):
    found = open_picture(encoded(picture(photo(), metadata=Metadata(exif=exif())), format)).metadata.exif
    block = Exif(found)
    private, gps = block.number(block.first, EXIF_IFD), block.number(block.first, GPS_IFD)
    assert block.value(block.find(block.first, 0x010F)) == b"Maker\0"
    assert block.value(block.find(private, 0x9003)) == b"2024:05:06 07:08:09\0"
    assert block.value(block.find(private, 0x927C)) == MAKER_NOTE
    assert block.value(block.find(gps, 2)) == struct.pack(">6L", 52, 1, 31, 1, 12, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_applied_and_then_stated_as_1(format, orientation):
    arguments = {"exif": b"Exif\0\0" + exif(orientation)}
    if format == "TIFF":
        arguments = {"tiffinfo": {274: orientation}}
    data = saved(Image.fromarray(photo()), format, **arguments)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)
    found = open_picture(data)
    shown = next(iter(found.frames)).pixels
    assert found.size == expected.shape[:2] == shown.shape[:2]
    assert np.abs(shown - expected).mean() < 1
    again = open_picture(encoded(found, format.lower()))
    assert again.size == found.size
    block = Exif(again.metadata.exif) if again.metadata.exif else None
    assert block is None or block.number(block.first, 0x0112) in (None, 1)


@pytest.mark.parametrize("factors", [0x42, 0x24, 0x31, 0x14])
def test_a_jpeg_with_uncommon_subsampling_is_read(factors):
    plain = np.full((64, 64, 3), 128, np.uint8)  # every block is coded as the same two bits, for any factors
    data = bytearray(saved(Image.fromarray(plain), "JPEG", subsampling=0, optimize=True))
    frame = data.index(b"\xff\xc0")
    assert data[frame + 11] == 0x11
    data[frame + 11] = factors
    assert (next(iter(open_picture(bytes(data)).frames)).pixels == plain).all()


def test_a_cmyk_jpeg_with_subsampled_inks_is_read_and_its_missing_end_noticed():
    inks = Image.fromarray(photo()).convert("CMYK")
    whole, half = (saved(inks, "JPEG", quality=95, subsampling=factor) for factor in (0, 2))
    shown = [next(iter(open_picture(data).frames)).pixels.astype(int) for data in (whole, half)]
    assert shown[0].shape == shown[1].shape == (48, 64, 3)
    assert np.abs(shown[0] - shown[1]).mean() < 12
    with pytest.raises(ImageError, match="broken"):
        open_picture(half[: len(half) // 2]).load()


def test_a_resolution_too_large_for_tiff_is_left_out():
    tags = Image.Exif()
    tags[0x011A], tags[0x011B], tags[0x0128] = 4294967295.0, 4294967295.0, 3
    came = open_picture(saved(Image.fromarray(photo()), "WEBP", exif=tags.tobytes()))
    assert open_picture(encoded(came, "tiff")).metadata.dpi is None


@pytest.mark.parametrize("format", ["jpeg", "png", "tiff", "bmp", "jpeg2000"])
@pytest.mark.parametrize(("unit", "inches"), [(2, 1.0), (None, 1.0), (3, 2.54)])
def test_a_resolution_that_only_exif_states_is_kept(format, unit, inches):
    tags = Image.Exif()
    tags[0x011A], tags[0x011B] = 300.0, 150.0
    if unit:
        tags[0x0128] = unit
    came = open_picture(saved(Image.fromarray(photo()), "WEBP", exif=tags.tobytes()))
    found = open_picture(encoded(came, format)).metadata
    assert found.dpi == pytest.approx((300 * inches, 150 * inches), rel=3e-3)


def test_an_invalid_resolution_in_exif_is_ignored():
    for x, y, unit in [(0.0, 150.0, 2), (300.0, 150.0, 1), (IFDRational(300, 0), 150.0, 2)]:
        tags = Image.Exif()
        tags[0x011A], tags[0x011B], tags[0x0128] = x, y, unit
        assert open_picture(saved(Image.fromarray(photo()), "WEBP", exif=tags.tobytes())).metadata.dpi is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_resolutions_are_swapped_if_the_picture_is_turned_by_90_degrees(orientation):
    tags = Image.Exif()
    tags[0x0112], tags[0x011A], tags[0x011B] = orientation, 300.0, 150.0
    for format in ("JPEG", "PNG"):
        data = saved(Image.fromarray(photo()), format, exif=tags.tobytes(), dpi=(300, 150))
        found = open_picture(data).metadata
        expected = (300, 150) if orientation < 5 else (150, 300)
        assert found.dpi == pytest.approx(expected, rel=1e-3)
        after = Image.Exif()
        after.load(found.exif)
        assert (after[0x0112], after[0x011A], after[0x011B]) == (1, *expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_heics_own_orientation_is_applied_once(orientation):
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    stored = heif.from_bytes(mode="RGB", size=(64, 48), data=photo().tobytes())
    stored.save(buffer, quality=95, chroma=444, exif=b"Exif\0\0" + exif(orientation))
    found = open_picture(buffer.getvalue())
    expected = apply_orientation(photo(), orientation).astype(int)
    assert found.size == expected.shape[:2]
    assert np.abs(next(iter(found.frames)).pixels - expected).mean() < 3
    again = open_picture(encoded(found, "heic"))
    assert again.size == found.size


def test_orientation_and_size_are_corrected_in_xmp_too():
    xmp = b"<a tiff:Orientation='6' exif:PixelXDimension=\"640\"><tiff:ImageLength>480</tiff:ImageLength></a>"
    found = open_picture(encoded(picture(photo(96, 128), metadata=Metadata(xmp=xmp)))).metadata.xmp
    expected = b"<a tiff:Orientation='1' exif:PixelXDimension=\"128\"><tiff:ImageLength>96</tiff:ImageLength></a>"
    assert found == expected


@pytest.mark.parametrize(
    ("format", "kept"),
    [
        ("jpeg", "xmp iptc dpi"),
        ("png", "xmp iptc dpi text"),
        ("webp", "xmp"),
        ("tiff", "xmp iptc dpi"),
        ("avif", "xmp"),
        ("jpeg2000", "xmp iptc dpi"),
        ("jpegxl", "xmp"),
        ("heic", "xmp"),
        ("bmp", "dpi"),
    ],
)
def test_other_metadata_survives(format, kept):
    before = full_metadata()
    after = open_picture(encoded(picture(photo(), metadata=before), format)).metadata
    for field in kept.split():
        found = getattr(after, field)
        assert found == (pytest.approx(before.dpi, rel=1e-3) if field == "dpi" else getattr(before, field)), field


def test_comments_are_kept_from_format_to_format():
    words = (Text("Comment", "shot at dawn"),)
    for format in ("jpeg", "gif", "png"):
        assert open_picture(encoded(picture(photo(), metadata=Metadata(text=words)), format)).metadata.text == words


@pytest.mark.parametrize("format", ["jpeg", "gif"])
@pytest.mark.parametrize(("stored", "words"), [("Grüße".encode(), "Grüße"), ("Grüße".encode("latin-1"), "Grüße")])
def test_comments_are_read_as_utf_8_or_else_as_latin_1(format, stored, words):
    plain = encoded(picture(photo(), metadata=Metadata(text=(Text("Comment", "x" * len(stored)),))), format)
    data = plain.replace(b"x" * len(stored), stored)
    assert open_picture(data).metadata.text == (Text("Comment", words),)


@pytest.mark.parametrize("cut", ["whole", "across"])
def test_iptc_is_found_in_a_jpegs_second_photoshop_segment(cut):
    data = encoded(picture(photo(), metadata=Metadata(iptc=IPTC)), "jpeg")
    at = data.index(b"\xff\xed")
    (length,) = struct.unpack_from(">H", data, at + 2)
    body = data[at + 4 + 14 : at + 2 + length]
    other = b"8BIM" + struct.pack(">HHL", 0x03ED, 0, 4) + bytes(4)
    pieces = (other, body) if cut == "whole" else (other + body[:15], body[15:])
    parts = [b"Photoshop 3.0\0" + piece for piece in pieces]
    two = b"".join(b"\xff\xed" + struct.pack(">H", len(part) + 2) + part for part in parts)
    assert open_picture(data[:at] + two + data[at + 2 + length :]).metadata.iptc == IPTC


def packed_boxes(data: bytes, pack=imagecodecs.brotli_encode) -> bytes:
    """A JPEG XL whose EXIF and XMP are compressed."""
    result, at = b"", 0
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + length] if length else data[at + 8 :]
        if kind in (b"Exif", b"xml "):
            kind, body = b"brob", kind + bytes(pack(body))
        result += struct.pack(">I4s", len(body) + 8, kind) + body
        at += length or len(data)
    return result


def test_jpeg_xls_packed_metadata_is_read():
    plain = encoded(picture(photo(), metadata=Metadata(exif=exif(), xmp=XMP)), "jpegxl")
    packed = packed_boxes(plain)
    assert XMP not in packed
    assert open_picture(packed).metadata == open_picture(plain).metadata
    assert open_picture(packed).metadata.exif is not None


def test_packed_metadata_of_a_jpeg_xl_is_left_out_if_it_is_broken_or_huge():
    plain = encoded(picture(photo(), metadata=Metadata(exif=exif(), xmp=XMP)), "jpegxl")
    vast = bytes(imagecodecs.brotli_encode(bytes(100_000_000)))
    for pack in (lambda body: b"\xff" * 20, lambda body: vast, lambda body: imagecodecs.brotli_encode(body)[:-3]):
        found = open_picture(packed_boxes(plain, pack))
        assert found.metadata == Metadata()
        np.testing.assert_array_equal(next(iter(found.frames)).pixels, photo())


@pytest.mark.parametrize("dpi", [(0.5, 1.0), (300.0, 72.0), (2400.0, 4800.0), (25_400.0, 1e6)])
def test_jpeg_2000_keeps_any_resolution(dpi):
    found = open_picture(encoded(picture(photo(), metadata=Metadata(dpi=dpi)), "jpeg2000")).metadata.dpi
    assert found == pytest.approx(dpi, rel=1e-4)


def test_pngs_colour_chunks_survive():
    before = Metadata(gamma=0.5, chromaticities=(0.31, 0.33, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06), cicp=b"\x01\x0d\0\x01")
    assert open_picture(encoded(picture(photo(), metadata=before))).metadata == before
    with_intent = Metadata(srgb_intent=1)
    assert open_picture(encoded(picture(photo(), metadata=with_intent))).metadata == with_intent


def test_large_profiles_and_packets_are_split_or_refused_but_never_truncated():
    large = WIDE_GAMUT + bytes(200_000)
    found = open_picture(encoded(picture(photo(), metadata=Metadata(icc=large)), "jpeg"))
    assert found.metadata.icc == large
    for metadata in (Metadata(xmp=XMP + b" " * 70_000), Metadata(icc=WIDE_GAMUT + bytes(17_000_000))):
        with pytest.raises(ImageError, match="too large for JPEG") as caught:
            check_can_hold(picture(photo(), metadata=metadata), (48, 64), "jpeg", LOSSLESS)
        assert "--strip" in str(caught.value.hint)


@pytest.mark.parametrize("dpi", [(4294967295.0, 4294967295.0), (300.0, 1e30), (300.0, float("inf")), (1e-5, 300.0)])
@pytest.mark.parametrize("format", ["jpeg", "png", "bmp"])
def test_a_resolution_that_a_format_cannot_state_is_left_out(format, dpi):
    found = open_picture(encoded(picture(photo(), metadata=Metadata(dpi=dpi)), format))
    assert found.metadata.dpi is None
    np.testing.assert_array_equal(found.size, (48, 64))


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].icc])
def test_strip_keeps_only_the_profile(format):
    shown = picture(photo(), metadata=full_metadata())
    found = open_picture(encoded(shown, format, replace(LOSSLESS, strip=True))).metadata
    assert found == Metadata(icc=WIDE_GAMUT)


def test_exiftool_agrees(tmp_path):
    tool = shutil.which("exiftool")
    if tool is None:
        pytest.skip("exiftool is not installed")
    for format in ("jpeg", "png", "webp", "tiff", "avif", "jpeg2000", "jpegxl", "heic"):
        path = tmp_path / f"a.{format}"
        write_picture(picture(photo(), metadata=full_metadata()), path, format, LOSSLESS)
        done = subprocess.run(
            [tool, "-a", "-s", "-warning", "-error", "-Make", "-GPSLatitude", str(path)], capture_output=True
        )
        lines = done.stdout.decode()
        assert "Maker" in lines and "52 deg 31' 12" in lines, (format, lines, done.stderr)
        # the only allowed warning is about the maker note, which does not belong to a known maker
        complaints = [line for line in lines.splitlines() if line.startswith(("Warning", "Error"))]
        assert all("aker" in line for line in complaints), (format, complaints)


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "avif", "jpeg2000", "jpegxl", "heic"])
def test_broken_exif_is_dropped_and_nothing_else(format):
    for block in (b"II*\0" + b"\xff" * 40, b"rubbish", exif()[:60], b"MM\0*\0\0\0\x08\xff\xff" + bytes(20)):
        found = open_picture(encoded(picture(photo(), metadata=Metadata(exif=block)), format))
        assert found.size == (48, 64)


@given(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=12), st.integers(20, 800))
@settings(max_examples=150, deadline=None)
def test_broken_exif_is_edited_or_left_out_without_an_error(changes, length):
    block = bytearray(exif())
    for at, value in changes:
        block[at] = value
    before = Metadata(exif=bytes(block[:length]))
    after = resized(upright(before, (48, 64)), (96, 128)).exif
    assert after is None or len(after) <= len(before.exif)


@pytest.mark.parametrize("lossless", [True, False])
def test_an_animated_webp_is_lossless_if_its_input_was(lossless):
    noise = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), np.uint8)
    film = replace(picture(noise[0]), frames=[Frame(pixels, 100.0) for pixels in noise], frame_count=3, loop=0)
    came = open_picture(encoded(film, "webp", EncodeOptions(lossless=lossless)))
    found = [frame.pixels for frame in open_picture(encoded(came, "webp", EncodeOptions())).frames]
    same = [bool((now == then.pixels).all()) for now, then in zip(found, came.frames, strict=True)]
    assert all(same) if lossless else not any(same)


@pytest.mark.parametrize("reversible", [True, False])
def test_jpeg_2000_is_lossless_if_its_input_was(reversible):
    came = open_picture(encoded(picture(photo()), "jpeg2000", EncodeOptions(lossless=reversible)))
    went = pixels_of(encoded(came, "jpeg2000", EncodeOptions(quality=10)))
    assert np.array_equal(went, next(iter(came.frames)).pixels) == reversible


# --- frames ----------------------------------------------------------------------------------------------------------


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


def document(*pages: np.ndarray) -> Picture:
    return picture(pages[0], "tiff", frames=[Frame(page) for page in pages], frame_count=len(pages), paged=True)


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


# --- real files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(SKIMAGE.glob("*.[pjtg][npi]*[gf]")), ids=lambda path: path.name)
def test_real_files_are_decoded_as_by_pillow(path):
    found = open_picture(path)
    frames = list(found.frames)
    if path.name == "multipage_rgb.tif":  # planes of 64-bit floats, which Pillow does not support
        assert [(frame.pixels.shape, frame.pixels.dtype) for frame in frames] == [((10, 10, 3), np.float32)] * 2
        return
    with Image.open(path) as image:
        assert len(frames) == getattr(image, "n_frames", 1)
        for index, frame in enumerate(frames):
            image.seek(index)
            mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[found.channels]
            expected = np.asarray(image.convert(mode)).astype(int).reshape(frame.pixels.shape)
            scale = 257 if frame.pixels.dtype == np.uint16 and mode != "L" else 1
            assert np.abs(frame.pixels / scale - expected).max() <= 1


def test_pythons_own_pictures_are_read():
    folder = Path(os.__file__).parent
    paths = [
        path
        for name in ("idlelib/Icons", "test/imghdrdata", "test/test_email/data")
        for path in (folder / name).glob("*.*")
    ]
    paths = [
        path
        for path in paths
        if path.suffix in (".gif", ".ico", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".webp", ".jpg", ".tiff")
    ]
    if not paths:
        pytest.skip("this Python ships no pictures")
    for path in paths:
        found = open_picture(path)
        assert next(iter(found.frames)).pixels.shape == (*found.size, found.channels), path


# --- limits and faults -----------------------------------------------------------------------------------------------


def declared(format: str, width: int, height: int) -> bytes:
    """The beginning of a file that declares a size, with hardly any data after it."""
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(b"\0")

    def chunk(body: bytes) -> bytes:
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    if format == "png":
        return b"\x89PNG\r\n\x1a\n" + chunk(ihdr) + chunk(idat) + chunk(b"IEND")
    if format == "bmp":
        return b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    if format == "gif":
        return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b"\x3b"
    if format == "ppm":
        return f"P6 {width} {height} 255\n".encode()
    if format == "pfm":
        return f"PF\n{width} {height}\n-1.0\n".encode()
    if format == "tga":
        return struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, width, height, 24, 0)
    if format == "webp":
        size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
        return b"RIFF" + struct.pack("<I", len(body)) + body
    data = bytearray(encoded(picture(photo()), format))
    if format == "jpeg":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    elif format == "jpeg2000":
        at = data.index(b"\xff\x4f\xff\x51")
        data[at + 8 : at + 16] = struct.pack(">II", width, height)
    elif format == "tiff":
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            places = [file.pages[0].tags[tag].valueoffset for tag in (256, 257)]
        for at, value in zip(places, (width, height), strict=True):
            data[at : at + 4] = struct.pack("<I", value)
    elif format in ("avif", "heic"):
        at = data.index(b"ispe") + 8
        data[at : at + 8] = struct.pack(">II", width, height)
    return bytes(data)


BOMBS = ["png", "bmp", "gif", "ppm", "pfm", "tga", "webp", "jpeg", "jpeg2000", "tiff", "avif", "heic"]


@pytest.mark.parametrize("format", BOMBS)
def test_decompression_bombs_are_refused_by_their_declared_size(format):
    data = declared(format, 60_000, 50_000)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError) as caught:
            next(iter(open_picture(data, name="bomb").frames))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith("bomb: ")
    assert peak < 20e6
    if format not in ("avif", "heic"):  # their libraries notice the mismatch and refuse it themselves
        assert "3000 megapixels" in str(caught.value)
        assert "--max-input-megapixels" in str(caught.value.hint)


def test_a_limit_is_applied_exactly():
    data = encoded(picture(photo(40, 50)))
    assert open_picture(data, max_pixels=2000).size == (40, 50)
    with pytest.raises(ImageError, match="limit"):
        open_picture(data, max_pixels=1999)
    assert open_picture(data, max_pixels=0).size == (40, 50)
    assert open_picture(data, max_pixels=None).size == (40, 50)


def test_scans_after_a_jpeg_or_in_its_metadata_do_not_count():
    scan = b"\xff\xda"
    plain = encoded(picture(photo(), metadata=Metadata(icc=WIDE_GAMUT + 500 * scan)), "jpeg")
    video = b"\0\0\0\x18ftypmp42" + 500 * scan
    np.testing.assert_array_equal(pixels_of(plain + video), pixels_of(plain))


@pytest.mark.parametrize("between", [b"", b"\xff\xff", b"\xff\x02\xff\xf0", b"junk", b"\xff\xd0", b"\xff\xfe\0\4ab"])
def test_jpegs_with_absurdly_many_scans_are_refused(between):
    data = saved(Image.fromarray(photo()), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="scans"):
        open_picture(data[:-2] + 100 * (between + data[last:-2]) + data[-2:])
    assert open_picture(data).size == (48, 64)


def with_odd_scan(jpeg: bytes, spectrum: bytes) -> bytes:
    """A JPEG whose scan header ends in other bytes, as some encoders write them."""
    end = jpeg.index(b"\xff\xda") + 8 + 2 * jpeg[jpeg.index(b"\xff\xda") + 4]
    return jpeg[: end - 3] + spectrum + jpeg[end:]


@pytest.mark.parametrize("spectrum", [b"\0\0\0", b"\0\x3e\0", b"\1\x3f\0", b"\0\x3f\x10"])
@pytest.mark.parametrize("left_over", [b"", b"\0", bytes(range(1, 40)), b"\xff\0" * 9])
def test_harmless_mistakes_of_jpeg_encoders_are_accepted(spectrum, left_over):
    data = saved(Image.fromarray(photo()), "JPEG", quality=90)
    odd = with_odd_scan(data[:-2] + left_over + data[-2:], spectrum)
    np.testing.assert_array_equal(pixels_of(odd), pixels_of(data))


@pytest.mark.parametrize("restarts", [0, 8])
@pytest.mark.parametrize("left_over", [b"", bytes(20)])
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_harmless_mistakes_of_jpeg_encoders_do_not_hide_damage(restarts, left_over, damage):
    data = saved(Image.fromarray(photo(256, 256)), "JPEG", quality=90, restart_marker_blocks=restarts)
    middle = data.index(b"\xff\xd3", len(data) // 2) if restarts else len(data) * 6 // 10
    noise = np.random.default_rng(0).integers(0, 254, 200, np.uint8).tobytes() if damage == "overwritten" else b""
    rest = data[middle + 200 : -2] if damage == "overwritten" else b""
    broken = data[:middle] + noise + rest + left_over + data[-2:]
    for each in (broken, with_odd_scan(broken, b"\0\0\0")):
        with pytest.raises(ImageError, match="broken"):
            pixels_of(each)


def test_the_limit_applies_to_every_page():
    pages = [photo(10, 10), photo(100, 100)]
    document = picture(pages[0], "tiff", frames=[Frame(page) for page in pages], frame_count=2, paged=True)
    frames = iter(open_picture(encoded(document, "tiff"), max_pixels=5000).frames)
    next(frames)
    with pytest.raises(ImageError, match="limit"):
        next(frames)


@pytest.mark.parametrize("origin", [b"", "empty", "folder", "missing"])
def test_missing_and_empty_inputs_are_reported_clearly(origin, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageError, match=r"empty|folder|no such file"):
        open_picture(origin if isinstance(origin, bytes) else tmp_path / origin)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_never_accepted(format, share):
    data = encoded(picture(photo(), metadata=Metadata()), format)
    with pytest.raises(ImageError):
        list(open_picture(data[: int(len(data) * share)]).frames)


@pytest.mark.parametrize("format", ["png", "gif", "webp", "tiff"])
def test_an_animation_with_a_broken_last_frame_is_never_written(format, tmp_path):
    film = replace(animation(count=6), paged=format == "tiff")
    data = encoded(film, format)
    cut = data[: int(len(data) * 0.9)]
    target = tmp_path / f"out.{format}"
    with pytest.raises(ImageError):
        write_picture(open_picture(cut), target, format, EncodeOptions())
    assert list(tmp_path.iterdir()) == []


# --- files appear whole or not at all --------------------------------------------------------------------------------


def test_nothing_is_left_behind_when_a_frame_fails(tmp_path):
    class Cancelled(Exception):
        pass

    def frames():
        yield Frame(photo(), 10.0)
        raise Cancelled

    for format in ("png", "gif", "webp", "avif", "tiff"):
        film = picture(photo(), format, frames=frames(), frame_count=2, loop=0, paged=format == "tiff")
        with pytest.raises(Cancelled):
            write_picture(film, tmp_path / "out", format, EncodeOptions())
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays_until_the_new_one_is_complete(tmp_path):
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    target.chmod(0o640)

    def frames():
        assert target.read_bytes() == b"old"
        yield Frame(photo())

    write_picture(picture(photo(), frames=frames()), target, "png", EncodeOptions())
    assert open_picture(target).size == (48, 64)
    assert target.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has another kind of permissions")
def test_a_new_file_gets_the_permissions_of_new_files(tmp_path):
    (tmp_path / "model").touch()
    write_picture(picture(photo()), tmp_path / "out.png", "png", EncodeOptions())
    assert (tmp_path / "out.png").stat().st_mode == (tmp_path / "model").stat().st_mode


def test_the_reason_for_a_failure_is_kept(tmp_path):
    data = encoded(picture(photo()), "jpeg")
    broken = replace(open_picture(encoded(picture(photo()), "ppm")[:-9], name="cut"), format="ppm")
    for target in (tmp_path / "out.png", io.BytesIO()):
        with pytest.raises(ImageError) as caught:
            write_picture(broken, target, "png", EncodeOptions())
        assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ImageError, match="xcf"):
        write_picture(open_picture(data), tmp_path / "out", "xcf", EncodeOptions())


def test_a_file_that_vanishes_is_reported_as_missing(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(photo())))
    found = open_picture(path)
    path.unlink()
    with pytest.raises(ImageError, match="no such file"):
        list(found.frames)


def test_an_unwritable_target_is_an_output_error(tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        write_picture(picture(photo()), tmp_path / "no" / "where.png", "png", EncodeOptions())


def test_a_full_disk_is_an_output_error_and_leaves_nothing():
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")
    with full.open("wb", buffering=0) as stream, pytest.raises(OutputError, match="No space"):
        write_picture(picture(photo()), stream, "png", EncodeOptions())


def test_a_stream_gets_its_bytes_only_at_the_end():
    class Stream(io.BytesIO):
        writes = 0

        def write(self, data):
            self.writes += 1
            return super().write(data)

    stream = Stream()
    write_picture(animation(), stream, "png", EncodeOptions())
    assert stream.writes == 1
    assert open_picture(stream.getvalue()).frame_count == 3


def test_image_and_output_errors_are_hasn_errors():
    assert issubclass(ImageError, HasnError) and issubclass(OutputError, HasnError)
