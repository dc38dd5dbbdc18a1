"""Camera RAW files are developed with fixed settings, and what they say about the photo is kept."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from pictures import IPTC, dng, exif, photo, picture, pixels_of
from PIL import Image

from hasn_cli.batch.jobs import find_jobs
from hasn_cli.errors import ImageError, UsageError
from hasn_cli.images import EncodeOptions, open_picture, write_picture
from hasn_cli.images.codecs.boxes import box
from hasn_cli.images.codecs.raw_structure import exif_in, preview_in
from hasn_cli.images.color import srgb_profile
from hasn_cli.images.exif import EXIF_IFD, GPS_IFD, ORIENTATION, Exif
from hasn_cli.images.formats import sniff
from hasn_cli.images.metadata import apply_orientation

COLOR_SPACE, TIME_TAKEN = 0xA001, 0x9003


def written(shown, format: str) -> bytes:
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, EncodeOptions())
    return buffer.getvalue()


def test_a_dng_is_developed_and_not_taken_for_its_preview():
    found = open_picture(dng(photo(96, 128)))
    pixels = next(iter(found.frames)).pixels
    assert (found.format, found.size, found.channels) == ("raw", (96, 128), 3)
    assert pixels.dtype == found.dtype == np.uint16
    assert len(np.unique(pixels)) > 256


def test_colours_and_white_balance_are_those_of_the_scene():
    smooth = np.array(Image.fromarray(photo(6, 8)).resize((128, 96), Image.Resampling.BICUBIC))
    found = pixels_of(dng(smooth)) / 257
    inner = (slice(4, -4), slice(4, -4))
    assert np.abs(found[inner] - smooth[inner]).mean() < 0.7
    gray = pixels_of(dng(np.full((32, 32, 3), 118, np.uint8))) / 257
    assert np.abs(gray - 118).max() < 1


@pytest.mark.parametrize("light", [0.1, 0.5])
def test_a_dark_picture_stays_dark(light):
    bright = np.full((32, 32, 3), 200, np.uint8)
    found = pixels_of(dng(bright, light=light)) / 65535
    linear = light * ((200 / 255 + 0.055) / 1.055) ** 2.4
    assert found.mean() == pytest.approx(1.055 * linear ** (1 / 2.4) - 0.055, abs=0.004)


def test_clipped_highlights_are_white():
    found = pixels_of(dng(np.full((32, 32, 3), 255, np.uint8), light=3))
    assert found.min() > 65_000


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(orientation):
    upright = open_picture(dng(photo()))
    found = open_picture(dng(photo(), orientation, full=True))
    expected = apply_orientation(next(iter(upright.frames)).pixels, orientation)
    pixels = next(iter(found.frames)).pixels
    assert found.size == pixels.shape[:2]
    np.testing.assert_array_equal(pixels, expected)
    with Image.open(io.BytesIO(written(found, "tiff"))) as image:
        assert image.size == found.size[::-1]
        assert image.getexif().get(ORIENTATION, 1) == 1


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_the_edges_that_the_camera_crops_are_left_out(orientation):
    whole = next(iter(open_picture(dng(photo())).frames)).pixels
    found = open_picture(dng(photo(), orientation, edge=4))
    expected = apply_orientation(whole[4:-4, 4:-4], orientation)
    assert found.size == expected.shape[:2]
    np.testing.assert_array_equal(next(iter(found.frames)).pixels, expected)


def test_exif_xmp_and_iptc_are_kept_and_the_profile_is_srgb():
    again = open_picture(written(open_picture(dng(photo(), 6, full=True)), "tiff")).metadata
    block = Exif(again.exif)
    private, gps = block.number(block.first, EXIF_IFD), block.number(block.first, GPS_IFD)
    assert block.value(block.find(private, TIME_TAKEN)).startswith(b"2024:05:06")
    assert block.find(gps, 2).count == 3
    assert block.find(block.first, 50706) is None  # otherwise the result would pass for a DNG
    assert b'Orientation="1"' in again.xmp
    assert again.iptc == IPTC
    assert again.icc == srgb_profile()


def test_exif_states_the_colour_space_of_the_result():
    block = Exif(open_picture(dng(photo(), full=True)).metadata.exif)
    assert block.number(block.number(block.first, EXIF_IFD), COLOR_SPACE) in (None, 1)


def test_an_ordinary_tiff_is_not_taken_for_a_raw_file():
    for data in (written(picture(photo()), "tiff"), tiff_with_subimage()):
        assert open_picture(data).format == "tiff"


def tiff_with_subimage() -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(photo(), photometric="rgb", subifds=1, metadata=None)
        file.write(np.ascontiguousarray(photo()[::2, ::2]), photometric="rgb", subfiletype=1, metadata=None)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "head",
    [
        b"II*\0\x10\0\0\0CR\2\0",
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        b"II\x1a\0\0\0HEAPCCDR",
        b"FUJIFILMCCD-RAW 0201",
        b"IIRO\x08\0\0\0",
        b"IIU\0\x18\0\0\0",
    ],
)
def test_makers_own_signatures_are_known(head):
    assert sniff(head + bytes(64)) == "raw"
    with pytest.raises(ImageError, match=r"RAW file|truncated|damaged"):
        open_picture(head + bytes(500))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_truncated_raw_file_is_refused_with_a_hint(part, capfd):
    data = dng(photo(), full=False)
    with pytest.raises(ImageError, match=r"x\.dng: the file is truncated") as caught:
        open_picture(data[: int(part * len(data))], name="x.dng")
    assert "copy it" in caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_an_unknown_camera_gets_a_hint():
    data = dng(photo()).replace(struct.pack("<HHL", 259, 3, 1) + b"\1\0", struct.pack("<HHL", 259, 3, 1) + b"\x12\x34")
    with pytest.raises(ImageError, match="cannot be developed") as caught:
        list(open_picture(data).frames)
    assert caught.value.hint


def test_a_raw_file_that_declares_too_many_pixels_is_refused():
    with pytest.raises(ImageError, match="over the limit"):
        open_picture(dng(photo()), max_pixels=1000)


def test_the_result_is_a_tiff_and_never_has_a_raw_files_name(tmp_path):
    path = tmp_path / "IMG_1.DNG"
    path.write_bytes(dng(photo()))
    (job,) = find_jobs([path])
    assert job.target == tmp_path / "IMG_1_x4.tif"
    (job,) = find_jobs([tmp_path], format="jpeg")
    assert job.target == tmp_path / "IMG_1_x4.jpg"
    for format in (None, "tiff"):
        with pytest.raises(UsageError, match="camera RAW cannot be written"):
            find_jobs([path], tmp_path / "out.cr2", format=format)


def canon_file() -> bytes:
    """The boxes of a CR3, without its pictures."""
    block = Exif(exif(order="<"))
    first, private, gps = (struct.pack("<L", at) for at in (
        block.first, block.number(block.first, EXIF_IFD), block.number(block.first, GPS_IFD)
    ))  # fmt: skip
    parts = [(b"CMT1", first), (b"CMT2", private), (b"CMT4", gps)]
    inner = b"".join(box(kind, block.data[:4] + at + block.data[8:]) for kind, at in parts)
    return box(b"ftyp", b"crx \0\0\0\1") + box(b"moov", box(b"uuid", bytes(16) + inner))


def test_the_exif_of_a_cr3_is_joined_from_its_boxes():
    block = Exif(exif_in(canon_file()))
    private, gps = block.number(block.first, EXIF_IFD), block.number(block.first, GPS_IFD)
    assert block.value(block.find(private, TIME_TAKEN)).startswith(b"2024:05:06")
    assert block.find(gps, 2).count == 3


def test_the_preview_of_a_raf_is_found():
    jpeg = written(picture(photo()), "jpeg")
    head = b"FUJIFILMCCD-RAW ".ljust(84, b"\0") + struct.pack(">LL", 160, len(jpeg))
    assert preview_in(head.ljust(160, b"\0") + jpeg + bytes(9)) == jpeg


def test_other_formats_do_not_load_the_raw_library(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(written(picture(photo()), "tiff"))
    code = (
        "import sys; from pathlib import Path; from hasn_cli.images import open_picture;"
        f"open_picture(Path({str(path)!r})).load();"
        "print([name for name in ('rawpy', 'pi_heif', 'imageio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
