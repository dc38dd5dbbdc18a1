"""`from hasn_cli import …` is quick to import, and `upscale` returns the same kind of object that it was given."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from pictures import ICC_FOLDER, WIDE_GAMUT, exif, picture
from PIL import Image

import hasn_cli
from hasn_cli import HasnError, upscale
from hasn_cli.errors import ImageError
from hasn_cli.images import EncodeOptions, Metadata, write_picture
from hasn_cli.images.color import cmyk_to_srgb, profile_of, srgb_profile
from hasn_cli.inference.planning import BORDER
from hasn_cli.weights import load_network
from hasn_cli.weights.checkpoint import save_network


def noise(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).random(shape)
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)


class Repeater:
    """Replaces the network where only the kind of the result matters: it repeats every pixel."""

    def __init__(self, scale: int) -> None:
        self.scale = scale

    def upscale(self, image: np.ndarray, progress: object = None) -> np.ndarray:
        return image.repeat(self.scale, axis=0).repeat(self.scale, axis=1)


@pytest.fixture
def repeating(monkeypatch):
    """`upscale` without the network."""
    monkeypatch.setattr("hasn_cli.api._upscaler", lambda weights, scale, *_: Repeater(scale))


@pytest.mark.parametrize("shape", [(18, 20), (18, 20, 1), (18, 20, 2), (18, 20, 3), (18, 20, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.usefixtures("repeating")
def test_an_array_gives_an_array_of_the_same_kind(shape: tuple[int, ...], dtype: type):
    image = noise(*shape, dtype=dtype)
    if len(shape) == 3 and shape[2] in (2, 4):
        image[..., -1] = image[..., -1].max()  # constant alpha, so that no colour spreads over an edge
    large = upscale(image, scale=2)
    assert isinstance(large, np.ndarray)
    assert large.shape == (36, 40, *shape[2:])
    assert large.dtype == dtype
    np.testing.assert_allclose(large[::2, ::2], image, rtol=1e-6)


def test_an_array_gives_what_the_network_gives():
    import torch

    image = noise(20, 24, 3)
    wide = np.pad(image, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), mode="symmetric")
    lr = torch.from_numpy(wide).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        expected = load_network("hasn", 4)(lr)[0].permute(1, 2, 0).clamp(0, 1) * 255
    expected = expected[4 * BORDER : -4 * BORDER, 4 * BORDER : -4 * BORDER]
    np.testing.assert_allclose(upscale(image), expected.numpy(), atol=0.51)  # rounded to whole levels


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("RGB", "RGB"),
        ("L", "L"),
        ("LA", "LA"),
        ("RGBA", "RGBA"),
        ("P", "RGB"),
        ("1", "L"),
        ("CMYK", "RGB"),
        ("F", "F"),
    ],
)
@pytest.mark.usefixtures("repeating")
def test_a_pillow_image_gives_a_pillow_image(mode: str, expected: str):
    image = Image.fromarray(noise(16, 20, 3)).convert(mode)
    large = upscale(image, 2)
    assert (large.mode, large.size) == (expected, (40, 32))


@pytest.mark.usefixtures("repeating")
def test_sixteen_bit_gray_stays_sixteen_bit():
    large = upscale(Image.fromarray(noise(16, 20, dtype=np.uint16)), 2)
    assert large.mode == "I;16"
    assert np.asarray(large).max() > 255


@pytest.mark.parametrize("mode", ["I", "I;16", "I;16B", "I;16L"])
@pytest.mark.usefixtures("repeating")
def test_integers_of_more_than_eight_bits_keep_their_values(mode: str):
    image = Image.new(mode, (20, 16), 30000)
    image.putpixel((3, 2), 65535)
    large = upscale(image, 2)
    assert (large.mode, large.size) == ("I;16", (40, 32))
    assert large.getpixel((0, 0)) == 30000
    assert large.getpixel((6, 4)) == 65535


@pytest.mark.parametrize("value", [-1, 65536])
def test_integers_of_more_than_sixteen_bits_are_refused(value: int):
    image = Image.new("I", (20, 16), 30000)
    image.putpixel((3, 2), value)
    with pytest.raises(ImageError, match="mode I has values") as caught:
        upscale(image, 2)
    assert caught.value.hint


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_a_transparent_value_among_deep_samples_is_refused_and_not_lost(mode: str):
    image = Image.new(mode, (20, 16), 300)
    image.info["transparency"] = 300
    with pytest.raises(ImageError, match="transparent value"):
        upscale(image, 2)


@pytest.mark.usefixtures("repeating")
def test_premultiplied_gray_is_divided_out():
    image = Image.new("LA", (20, 16), (200, 128)).convert("La")
    large = upscale(image, 2)
    assert large.mode == "LA"
    assert abs(large.getpixel((0, 0))[0] - 200) <= 1 and large.getpixel((0, 0))[1] == 128


@pytest.mark.usefixtures("repeating")
def test_an_image_that_pillow_cannot_convert_is_refused(monkeypatch):
    def fail(self: Image.Image, mode: str) -> None:
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ImageError, match="mode HSV cannot be converted"):
        upscale(Image.new("HSV", (20, 16)), 2)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(ImageError, match="0×5 pixels"):
        upscale(Image.new("RGB", (0, 5)), 2)


@pytest.mark.skipif(not ICC_FOLDER.exists(), reason="no CMYK profile here")
@pytest.mark.usefixtures("repeating")
def test_inks_become_srgb_by_their_profile():
    cmyk = (ICC_FOLDER / "default_cmyk.icc").read_bytes()
    image = Image.new("CMYK", (20, 16), (255, 0, 0, 0))
    image.info["icc_profile"] = cmyk
    large = upscale(image, 2)
    assert large.mode == "RGB"
    assert large.info["icc_profile"] == srgb_profile()
    expected = cmyk_to_srgb(np.uint8([[[255, 0, 0, 0]]]), cmyk)[0, 0]
    assert large.getpixel((0, 0)) == tuple(expected) != (0, 255, 255)


def test_inks_with_a_broken_profile_are_refused():
    image = Image.new("CMYK", (20, 16))
    image.info["icc_profile"] = bytes(16) + b"CMYK" + bytes(200)
    with pytest.raises(ImageError, match="mode CMYK"):
        upscale(image, 2)


@pytest.mark.parametrize(
    ("mode", "profile", "kept"), [("L", WIDE_GAMUT, False), ("YCbCr", WIDE_GAMUT, True), ("RGB", WIDE_GAMUT, True)]
)
@pytest.mark.usefixtures("repeating")
def test_a_profile_of_another_colour_space_is_left_out(mode: str, profile: bytes, kept: bool):
    image = Image.new(mode, (20, 16))
    image.info["icc_profile"] = profile
    assert upscale(image, 2).info == ({"icc_profile": profile} if kept else {})


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
@pytest.mark.usefixtures("repeating")
def test_exif_tells_the_new_size_and_has_no_old_thumbnail(prefix: bytes):
    image = Image.fromarray(noise(48, 64, 3))
    image.info |= {"exif": prefix + exif(orientation=6), "xmp": b"<r tiff:ImageWidth='64' exif:PixelYDimension='48'/>"}
    large = upscale(image, 2)
    assert large.info["exif"].startswith(prefix + b"MM")
    found = large.getexif()
    assert (found.get_ifd(0x8769)[0xA002], found.get_ifd(0x8769)[0xA003]) == (128, 96)
    assert not found.get_ifd(0x0201) and b"\xff\xd8" not in large.info["exif"]
    assert (found[0x010F], found[0x0112]) == ("Maker", 6)
    assert large.info["xmp"] == b"<r tiff:ImageWidth='128' exif:PixelYDimension='96'/>"


@pytest.mark.parametrize(
    "metadata", [Metadata(cicp=bytes([12, 13, 0, 1])), Metadata(gamma=1.0)], ids=["code points", "gamma"]
)
@pytest.mark.usefixtures("repeating")
def test_colours_stated_without_a_profile_are_kept(tmp_path, metadata: Metadata):
    write_picture(picture(noise(16, 20, 3), metadata=metadata), tmp_path / "colour.png", "png", EncodeOptions())
    assert upscale(tmp_path / "colour.png", 2).info["icc_profile"] == profile_of(metadata)


@pytest.mark.parametrize(("mode", "expected"), [("P", "RGBA"), ("L", "LA"), ("RGB", "RGBA"), ("PA", "RGBA")])
@pytest.mark.usefixtures("repeating")
def test_transparency_of_every_kind_becomes_alpha(mode: str, expected: str):
    image = Image.fromarray(noise(16, 20, 3)).convert(mode)
    if mode != "PA":
        image.info["transparency"] = (0, 0, 0) if mode == "RGB" else 0
    large = upscale(image, 2)
    assert large.mode == expected
    assert "transparency" not in large.info


@pytest.mark.usefixtures("repeating")
def test_a_pillow_image_keeps_profile_and_exif():
    image = Image.fromarray(noise(16, 20, 3))
    image.info |= {"icc_profile": b"profile", "exif": b"Exif\0\0MM"}
    assert upscale(image, 2).info == image.info


@pytest.mark.usefixtures("repeating")
def test_a_path_gives_the_picture_upright(tmp_path):
    image = Image.fromarray(noise(16, 20, 3))
    tags = Image.Exif()
    tags[0x0112] = 6  # shown turned by 90°
    tags[0x010F] = "maker"
    image.save(tmp_path / "turned.png", exif=tags)
    for given in (tmp_path / "turned.png", str(tmp_path / "turned.png")):
        large = upscale(given, 2)
        assert large.size == (32, 40)
        assert large.getexif()[0x010F] == "maker"
        assert large.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize(("scale", "size"), [(2, (40, 32)), (1.5, (30, 24)), (3, (60, 48)), (4, (80, 64))])
@pytest.mark.usefixtures("repeating")
def test_any_scale_from_one_to_four(scale: float, size: tuple[int, int]):
    assert upscale(Image.fromarray(noise(16, 20, 3)), scale).size == size


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 5), np.uint8), r"shape \(4, 4, 5\) is not a picture"),
        (np.zeros(4, np.uint8), r"shape \(4,\) is not a picture"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\) is not a picture"),
        (np.zeros((4, 4), np.int64), "int64 is not a picture"),
        (7, "int is not a kind of picture"),
        ("nowhere.png", "nowhere.png"),
    ],
)
def test_anything_but_a_picture_is_refused(image: object, message: str):
    with pytest.raises(HasnError, match=message):
        upscale(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 17}, "from 1 to 16"),
        ({"scale": "2"}, "must be a number"),
        ({"scale": True}, "must be a number"),
        ({"weights": "nothing"}, "no weights called"),
        ({"device": "warp"}, "device"),
    ],
)
def test_impossible_arguments_are_refused(options: dict, message: str):
    with pytest.raises(HasnError, match=message):
        upscale(np.zeros((16, 16), np.uint8), **options)


def test_weights_are_read_again_if_their_file_has_changed(tmp_path):
    path, image = tmp_path / "w.safetensors", noise(20, 20, 3)
    network = load_network("hasn", 2)
    save_network(network, path)
    before = upscale(image, 2, weights=str(path))
    with torch.no_grad():
        network.upsampler[0].bias += 0.1
    save_network(network, path)
    assert (upscale(image, 2, weights=str(path)) != before).any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_can_upscale_even_if_forked_during_an_enlargement():
    script = """
import multiprocessing, numpy as np
from hasn_cli import upscale

image = np.zeros((24, 24, 3), np.uint8)
children = []

def fork(fraction):
    if len(children) < 2:
        child = multiprocessing.get_context("fork").Process(target=upscale, args=(image, 2))
        child.start()
        children.append(child)

upscale(image, 2)
upscale(image, 2, progress=fork)
for child in children:
    child.join(300)
    if child.exitcode is None:
        child.kill()
        raise SystemExit("the child hangs")
raise SystemExit(max(child.exitcode for child in children))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_progress_is_reported_and_may_cancel():
    seen: list[float] = []
    upscale(noise(16, 16, 3), 2, progress=seen.append)
    assert seen[-1] == 1.0
    assert seen == sorted(seen)

    def cancel(fraction: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        upscale(noise(16, 16, 3), 2, progress=cancel)


def test_the_python_in_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("examples", "weights"):
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "weights.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    scope: dict = {}
    for block in blocks:
        exec(block, scope)
    assert scope["sr"].shape == (1, 3, 96, 128)
    assert load_network("saved", 2).scale == 2


def test_importing_the_package_imports_nothing_heavy():
    script = (
        "import sys, hasn_cli; print([m for m in ('torch', 'numpy', 'PIL', 'huggingface_hub') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


def test_all_public_names_exist():
    for name in hasn_cli.__all__:
        assert getattr(hasn_cli, name) is not None
    assert dir(hasn_cli) == hasn_cli.__all__
    with pytest.raises(AttributeError, match="no attribute 'upscael'"):
        _ = hasn_cli.upscael
