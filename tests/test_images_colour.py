"""Pictures keep their colours, whatever describes them."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest
import tifffile
from pictures import (
    ICC_FOLDER,
    WIDE_GAMUT,
    encoded,
    photo,
    picture,
    pixels_of,
    saved,
)
from PIL import Image, ImageCms

from hasn_cli.errors import ImageError
from hasn_cli.images import EncodeOptions, Frame, Metadata, check_can_hold, open_picture
from hasn_cli.images.adapt import adapt
from hasn_cli.images.color import to_srgb


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
