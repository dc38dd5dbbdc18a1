"""Pictures of other programs are read, and limits and broken files end in errors that say what is wrong."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from pictures import (
    SKIMAGE,
    WIDE_GAMUT,
    animation,
    encoded,
    photo,
    picture,
    pixels_of,
    saved,
)
from PIL import Image

from hasn_cli.errors import ImageError
from hasn_cli.images import FORMATS, EncodeOptions, Frame, Metadata, open_picture, write_picture

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
