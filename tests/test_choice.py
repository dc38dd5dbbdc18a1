"""`-w hasn` takes the weights that fit a picture, by what its file says about how it was compressed."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from pictures import saved
from PIL import Image, ImageDraw

import hasn_cli
from hasn_cli.choice import EIGHTHS, FINE_COLOUR, GRAPHIC_SHARE, JPEG_SHARES, choose, is_graphic, photo_share
from hasn_cli.images import open_picture
from hasn_cli.images.compression import Compression
from hasn_cli.training import degrade

SAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


def photograph(height: int = 48, width: int = 64) -> Image.Image:
    """A picture with gradients and noise, as a camera makes it."""
    random = np.random.default_rng(1)
    y, x = np.mgrid[:height, :width]
    smooth = np.stack([x * 3, y * 4, x + y * 2], -1) % 256
    return Image.fromarray(np.clip(smooth + random.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8))


def drawing() -> Image.Image:
    image = Image.new("RGB", (64, 48), "white")
    ImageDraw.Draw(image).rectangle((8, 8, 40, 30), fill=(200, 30, 60), outline="black")
    return image


def choice_for(data: bytes, weights: str = "hasn"):
    return choose(open_picture(data), weights)


@pytest.mark.parametrize(
    ("quality", "sampling", "share"),
    [(97, "4:2:0", 1), (90, "4:2:0", 4), (75, "4:2:0", 6), (40, "4:2:0", 8), (99, "4:4:4", 0), (90, "4:4:4", 4)],
)
def test_the_stronger_the_compression_the_more_of_the_photo_weights(quality, sampling, share):
    data = saved(photograph(), "JPEG", quality=quality, subsampling=SAMPLINGS[sampling])
    choice = choice_for(data)
    assert choice.photo == share
    assert choice.why == f"JPEG, quality about {quality}, {sampling}"
    assert choice.limit == "none"  # what lies flat between block edges need not stay so


@pytest.mark.parametrize("sampling", ["4:2:0", "4:4:4"])
def test_shares_fall_with_the_quality_and_stay_near_those_that_were_trained(sampling):
    shares = [photo_share(Compression("JPEG", quality, sampling)) for quality in range(1, 101)]
    assert shares == sorted(shares, reverse=True) and shares[0] == EIGHTHS
    trained = [degrade.photo_share(quality) * EIGHTHS for quality in range(1, 101)]
    assert max(abs(one - other) for one, other in zip(shares, trained, strict=True)) <= 2
    assert [table[-1] for table in (JPEG_SHARES, FINE_COLOUR)] == [(0, EIGHTHS)] * 2


def test_other_lossy_files_get_a_blend_and_say_their_format(tmp_path):
    kinds = {"WebP": saved(photograph(), "WEBP", quality=80), "AVIF": saved(photograph(), "AVIF", quality=70)}
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(photograph()).save(file, quality=60)
    kinds["HEIC"] = file.getvalue()
    for kind, data in kinds.items():
        choice = choice_for(data)
        assert choice.photo == 4 and choice.why == kind


@pytest.mark.parametrize("kind", ["AVIF", "JPEG XL", "HEIC", "JPEG 2000"])
def test_formats_with_and_without_loss_are_told_apart_by_their_headers(kind):
    import imagecodecs

    pixels = np.asarray(photograph())
    if kind == "AVIF":
        lossy, exact = saved(photograph(), kind, quality=80), imagecodecs.avif_encode(pixels, level=100)
    elif kind == "JPEG XL":
        lossy, exact = imagecodecs.jpegxl_encode(pixels, level=85), imagecodecs.jpegxl_encode(pixels, lossless=True)
    elif kind == "JPEG 2000":
        lossy = imagecodecs.jpeg2k_encode(pixels, level=40, codecformat="jp2", reversible=False)
        exact = imagecodecs.jpeg2k_encode(pixels, codecformat="jp2", reversible=True)
    else:
        pillow_heif = pytest.importorskip("pillow_heif")
        files = io.BytesIO(), io.BytesIO()
        pillow_heif.from_pillow(photograph()).save(files[0], quality=60)
        pillow_heif.from_pillow(photograph()).save(files[1], quality=-1, chroma=444, matrix_coefficients=0)
        lossy, exact = (file.getvalue() for file in files)
    assert choice_for(bytes(lossy)).why == kind
    assert choice_for(bytes(exact)).why == "lossless"


@pytest.mark.parametrize(
    ("format", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("TGA", {})],
)
def test_lossless_photographs_get_mostly_the_clean_weights(format, options):
    choice = choice_for(saved(photograph(), format, **options))
    assert (choice.photo, choice.limit, choice.why) == (1, "loose", "lossless")


def test_a_tiff_that_holds_a_jpeg_counts_as_compressed():
    choice = choice_for(saved(photograph(), "TIFF", compression="jpeg", quality=75))
    assert choice.photo == photo_share(Compression("JPEG", 75)) and choice.why.startswith("JPEG")


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "TIFF"])
def test_lossless_graphics_get_a_blend_and_a_tight_limit(format):
    choice = choice_for(saved(drawing(), format, **({"lossless": True} if format == "WEBP" else {})))
    assert (choice.photo, choice.limit, choice.why) == (GRAPHIC_SHARE, "tight", "a lossless graphic")


def test_pnm_gets_the_clean_weights():
    assert choice_for(saved(drawing(), "PPM")).photo == 0


@pytest.mark.parametrize("weights", ["clean", "photo", "released", "some/file.pth"])
def test_named_weights_leave_nothing_to_choose(weights):
    choice = choice_for(saved(photograph(), "JPEG", quality=50), weights)
    assert (choice.photo, choice.limit, choice.text) == (0, "none", "")


def test_photographs_on_a_white_background_are_no_graphics():
    product = np.full((200, 200, 3), 255, np.uint8)
    product[30:170, 30:170] = np.asarray(photograph(140, 140))
    assert not is_graphic(product)
    assert is_graphic(np.asarray(drawing()))
    assert not is_graphic(np.zeros((1, 1, 3), np.uint8))


def test_graphics_are_told_apart_without_false_alarms_on_photographs(shared):
    from hasn_cli.evaluation.pictures import read_rgb
    from hasn_cli.training.degrade import box_average

    pictures = [read_rgb(path) for path in sorted((shared / "bench/Set5/x4/HR").glob("*.png"))]
    assert pictures
    for picture in pictures:
        cut = picture[: picture.shape[0] // 4 * 4, : picture.shape[1] // 4 * 4]
        assert not is_graphic(picture) and not is_graphic(box_average(cut, 4))


def test_the_choice_is_said_and_changes_the_result(hasn, tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved(photograph(), "JPEG", quality=60))
    done = hasn("a.jpg", "-s", "2", "-o", "out.png", "-v")
    assert "weights 7/8 photo, 1/8 clean: JPEG, quality about 60, 4:2:0" in done.err
    assert "quality about 60" in hasn("a.jpg", "-s", "2", "-o", "other.png", "--dry-run").err
    events = [json.loads(line) for line in hasn("a.jpg", "-s", "2", "-o", "b.png", "--json").out.splitlines()]
    assert [event["weights"] for event in events if event["event"] == "start"] == [
        "weights 7/8 photo, 1/8 clean: JPEG, quality about 60, 4:2:0"
    ]
    results = {}
    for weights in ("clean", "photo"):
        assert hasn("a.jpg", "-s", "2", "-o", f"{weights}.png", "-w", weights).code == 0
        results[weights] = np.asarray(Image.open(tmp_path / f"{weights}.png"), np.int16)
    chosen = np.asarray(Image.open(tmp_path / "out.png"), np.int16)
    between = np.abs(chosen - results["photo"]).mean(), np.abs(chosen - results["clean"]).mean()
    assert 0 < between[0] < between[1]


def test_the_python_function_chooses_for_files_but_not_for_arrays(tmp_path):
    data = saved(photograph(), "JPEG", quality=40)
    by_name = {w: np.asarray(hasn_cli.upscale(data, 2, weights=w)) for w in ("hasn", "clean", "photo")}
    assert np.array_equal(by_name["hasn"], by_name["photo"])
    opened = Image.open(io.BytesIO(data))
    assert np.array_equal(np.asarray(hasn_cli.upscale(opened, 2)), by_name["photo"])
    assert np.array_equal(hasn_cli.upscale(np.asarray(opened), 2), by_name["clean"])


def test_resume_knows_whether_the_weights_were_chosen(hasn, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"in/{name}.jpg").write_bytes(saved(photograph(24, 24), "JPEG", quality=50))
    assert hasn("in", "-s", "2", "-o", "out").code == 0
    assert "2 skipped" in hasn("in", "-s", "2", "-o", "out", "--resume").err
    assert "2 done" in hasn("in", "-s", "2", "-o", "out", "--resume", "-w", "photo").err
