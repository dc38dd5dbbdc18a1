"""An unused alpha channel (0 everywhere) does not hide the picture, and alpha that is data stays data."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from pictures import Nearest, Overshooting, photo, picture
from PIL import Image

import hasn_cli
from hasn_cli.batch.settings import Settings
from hasn_cli.cli.main import run
from hasn_cli.enlarge import Size, enlarge_pixels
from hasn_cli.errors import UsageError
from hasn_cli.images import EncodeOptions, open_picture, write_picture


def shown(data: bytes) -> np.ndarray:
    found = open_picture(data)
    pixels = next(iter(found.frames)).pixels
    assert pixels.shape == (*found.size, found.channels)
    return pixels


def assert_opaque(pixels: np.ndarray, wanted: np.ndarray) -> None:
    color = pixels[..., : 1 if pixels.shape[2] <= 2 else 3]
    np.testing.assert_array_equal(color, np.broadcast_to(wanted, color.shape))
    assert pixels.shape[2] in (1, 3) or (pixels[..., -1] == 255).all()


def tga(pixels: np.ndarray, alpha_bits: int, attributes: int | None = None) -> bytes:
    """An uncompressed TGA with the top row first, and with an extension area if `attributes` is given."""
    height, width, channels = pixels.shape
    kind, order = (3, (0, 1)) if channels == 2 else (2, (2, 1, 0, 3))
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, kind, 0, 0, 0, 0, 0, width, height, 8 * channels, 0x20 | alpha_bits)
    data = head + pixels[..., order].tobytes()
    if attributes is None:
        return data
    extension = struct.pack("<H", 495) + bytes(492) + bytes([attributes])
    return data + extension + struct.pack("<LL", len(data), 0) + b"TRUEVISION-XFILE.\0"


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("stored", [0, 77, None])
def test_a_tga_whose_header_declares_no_alpha_has_none(channels, stored):
    pixels = photo(channels=channels)
    if stored is not None:
        pixels[..., -1] = stored
    found = shown(tga(pixels, 0))
    assert found.shape[2] == channels - 1
    assert_opaque(found, pixels[..., :-1])
    np.testing.assert_array_equal(shown(tga(pixels, 8)), pixels)  # the header declares alpha, so it counts


@pytest.mark.parametrize(("attributes", "erased"), [(0, False), (1, False), (2, False), (3, True)])
def test_a_tgas_extension_tells_whether_alpha_of_0_everywhere_is_meant(attributes, erased):
    pixels = photo(channels=4)
    pixels[..., 3] = 0
    assert (shown(tga(pixels, 8, attributes))[..., 3] == (0 if erased else 255)).all()


def test_premultiplied_colour_of_a_tga_is_divided_by_alpha():
    pixels = np.full((4, 4, 4), (50, 100, 25, 128), np.uint8)
    assert np.abs(shown(tga(pixels, 8, 4)).astype(int) - (100, 199, 50, 128)).max() <= 1


@pytest.mark.parametrize("channels", [2, 4])
def test_colour_with_a_premultiplied_alpha_of_0_everywhere_is_opaque(channels):
    pixels = photo(channels=channels)
    pixels[..., -1] = 0
    document = io.BytesIO()
    with tifffile.TiffWriter(document) as writer:
        writer.write(pixels, photometric="rgb" if channels == 4 else "minisblack", extrasamples=[1])
    assert_opaque(shown(document.getvalue()), pixels[..., :-1])
    if channels == 4:
        assert_opaque(shown(tga(pixels, 8, 4)), pixels[..., :-1])


def test_tiff_samples_that_are_not_declared_as_alpha_are_not_alpha():
    pixels = photo(channels=4)
    pixels[..., 3] = 0
    document = io.BytesIO()
    with tifffile.TiffWriter(document) as writer:
        writer.write(pixels, photometric="rgb", extrasamples=[0])
    assert_opaque(shown(document.getvalue()), pixels[..., :3])


def test_a_tga_of_16_bits_without_an_alpha_bit_is_opaque():
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 2, 1, 16, 0x20)
    found = shown(head + struct.pack("<HH", 0x7C00, 0x03E0))
    assert_opaque(found, np.array([[[255, 0, 0], [0, 255, 0]]], np.uint8))


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_tga_whose_palette_has_an_alpha_of_0_is_opaque(alpha):
    head = struct.pack("<BBBHHBHHHHBB", 0, 1, 1, 0, 2, 32, 0, 0, 2, 1, 8, 0x20)
    found = shown(head + bytes([3, 2, 1, alpha, 6, 5, 4, alpha]) + bytes([1, 0]))
    assert_opaque(found, np.array([[[4, 5, 6], [1, 2, 3]]], np.uint8))


def bmp(pixels: np.ndarray, header: int) -> bytes:
    """A 32-bit BMP with a bit mask for alpha in its header, of version 3 (56 bytes), 4 or 5."""
    height, width, _ = pixels.shape
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    info = struct.pack("<IiiHHIIiiII", header, width, height, 1, 32, 3, pixels.nbytes, 0, 0, 0, 0) + masks
    body = info.ljust(header, b"\0") + pixels[::-1, :, (2, 1, 0, 3)].tobytes()
    return b"BM" + struct.pack("<IHHI", 14 + len(body), 0, 0, 14 + header) + body


@pytest.mark.parametrize("header", [56, 108, 124])
def test_a_bmp_whose_alpha_is_0_everywhere_is_opaque(header):
    pixels = photo(channels=4)
    np.testing.assert_array_equal(shown(bmp(pixels, header)), pixels)
    pixels[..., 3] = 0
    assert_opaque(shown(bmp(pixels, header)), pixels[..., :3])


def icon(pixels: np.ndarray, mask: np.ndarray | None, depth: int = 32, header: int = 40) -> bytes:
    """An ICO with one 32-bit bitmap. The mask is 1 for transparent pixels; `depth` is the value in its directory."""
    height, width, _ = pixels.shape
    body = struct.pack("<IiiHHIIiiII", header, width, 2 * height, 1, 32, 0, 0, 0, 0, 0, 0)
    body += pixels[::-1, :, (2, 1, 0, 3)].tobytes()
    if mask is not None:
        rows = np.packbits(np.pad(mask[::-1], ((0, 0), (0, -width % 32))), axis=1)
        body += rows.tobytes()
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, width, height, 0, 0, 1, depth, len(body), 22) + body


@pytest.mark.parametrize("size", [(16, 16), (33, 17), (48, 64)])
@pytest.mark.parametrize("depth", [0, 32])
def test_an_icon_whose_alpha_is_0_everywhere_uses_its_mask(size, depth):
    pixels = photo(*size, channels=4)
    mask = np.random.default_rng(0).integers(0, 2, size, np.uint8)
    np.testing.assert_array_equal(shown(icon(pixels, mask, depth)), pixels)  # alpha takes precedence over the mask
    pixels[..., 3] = 0
    found = shown(icon(pixels, mask, depth))
    np.testing.assert_array_equal(found[..., :3], pixels[..., :3])
    np.testing.assert_array_equal(found[..., 3], 255 * (1 - mask))


def test_an_icon_with_neither_alpha_nor_mask_is_opaque():
    pixels = photo(16, 16, channels=4)
    pixels[..., 3] = 0
    assert_opaque(shown(icon(pixels, None)), pixels[..., :3])


@pytest.mark.parametrize("format", ["png", "webp", "tiff", "tga", "ppm", "gif"])
def test_a_picture_that_is_fully_transparent_on_purpose_stays_so(format):
    stream = io.BytesIO()
    write_picture(picture(np.zeros((9, 8, 4), np.uint8)), stream, format, EncodeOptions(lossless=True))
    assert (shown(stream.getvalue())[..., 3] == 0).all()


# --- alpha that is data ----------------------------------------------------------------------------------------------


def texture(dtype: type = np.uint8, channels: int = 4) -> np.ndarray:
    """Colour everywhere, and unrelated alpha: 0 in the left half."""
    pixels = photo(40, 50, channels=channels, dtype=dtype)
    pixels[:, :25, -1] = 0
    return pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("size", [Size(2), Size(1.5)])
def test_separate_alpha_keeps_all_channels_independent(dtype, channels, size):
    pixels = texture(dtype, channels)
    large = enlarge_pixels(pixels, Overshooting, size, alpha="separate")
    color = enlarge_pixels(pixels[..., :-1].copy(), Overshooting, size)
    alone = enlarge_pixels(pixels[..., -1:].copy(), Overshooting, size)
    np.testing.assert_array_equal(large, np.concatenate([color, alone], axis=2))
    blended = enlarge_pixels(pixels, Overshooting, size)
    assert not np.array_equal(blended[..., :-1], color)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_separate_alpha_that_is_the_same_everywhere_stays_so(value):
    pixels = texture()
    pixels[..., 3] = value
    large = enlarge_pixels(pixels, Nearest, Size(2), alpha="separate")
    assert (large[..., 3] == value).all()
    np.testing.assert_array_equal(large[::2, ::2, :3], pixels[..., :3])


def test_an_unknown_meaning_of_alpha_is_refused():
    with pytest.raises(UsageError, match="blend or separate"):
        enlarge_pixels(texture(), Nearest, Size(2), alpha="maybe")


def test_a_resumed_run_notices_that_alpha_means_something_else():
    assert Settings().fingerprint() == Settings(alpha="blend").fingerprint() != Settings(alpha="separate").fingerprint()
    assert Settings.from_dict(Settings(alpha="separate").to_dict()).alpha == "separate"


@pytest.mark.parametrize("format", ["gif", "jpg", "pfm", "jxl"])
def test_a_format_that_would_lose_data_in_alpha_is_refused_before_the_work(tmp_path, format, capsys):
    source, target = tmp_path / "texture.png", tmp_path / f"large.{format}"
    Image.fromarray(texture()).save(source)
    arguments = ["upscale", str(source), "-s", "2", "-o", str(target), "--alpha", "separate", "--background", "red"]
    assert run([*arguments, "-q"]) == 1
    said = capsys.readouterr().err
    assert "alpha" in said and "-f png" in said
    assert not target.exists()
    if format == "jxl":
        assert run([*arguments, "--lossless", "-q"]) == 0
        back = shown(target.read_bytes())[::2, ::2, :3].astype(int)
        assert np.abs(back - texture()[..., :3]).mean() < 20  # the colour is there


@pytest.mark.parametrize("format", ["png", "webp", "tiff", "tga"])
def test_a_data_texture_keeps_its_colour_on_the_command_line_and_in_python(tmp_path, format):
    source, target = tmp_path / "texture.png", tmp_path / f"large.{format}"
    Image.fromarray(texture()).save(source)
    arguments = ["upscale", str(source), "-s", "2", "-o", str(target), "--alpha", "separate", "--lossless"]
    assert run([*arguments, "-w", "clean", "-q"]) == 0
    found = shown(target.read_bytes())
    with Image.open(source) as image:
        np.testing.assert_array_equal(found, np.asarray(hasn_cli.upscale(image, 2, alpha="separate", weights="clean")))
    back = np.asarray(Image.fromarray(found[..., :3]).resize((50, 40), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(back - texture()[..., :3]).mean() < 4
