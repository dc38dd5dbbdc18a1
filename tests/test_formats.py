"""What each format holds: the published table is what the round trips show, and formats are told apart by content."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from dataclasses import replace

import format_table
import numpy as np
import pytest
from pictures import animation, exif, photo, picture

from hasn_cli.errors import ImageError, MissingExtraError, UsageError
from hasn_cli.images import (
    FORMATS,
    READABLE,
    SUFFIXES,
    WRITABLE,
    EncodeOptions,
    Metadata,
    check_can_hold,
    format_for_name,
    open_picture,
    suffix_for_format,
    write_picture,
)
from hasn_cli.images.formats import sniff


@pytest.fixture(scope="module")
def table() -> str:
    return format_table.table()


@pytest.mark.parametrize("path", format_table.FILES, ids=lambda path: path.name)
def test_the_published_table_is_the_one_that_the_round_trips_give(path, table):
    text = path.read_text("utf-8")
    if format_table.BEGIN not in text:
        pytest.skip(f"{path.name} holds no table of formats")
    assert format_table.update(text, table) == text, "run: python tests/format_table.py"


def test_every_format_is_read_from_other_programs_and_written_for_them(table):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert len(rows) == len(FORMATS)
    for row in rows:
        assert row[1] in ("yes", "with extra `heic`"), row
        assert row[2] == "yes", row


@pytest.mark.parametrize("format", FORMATS)
def test_the_content_decides_and_not_the_name(format, tmp_path):
    path = tmp_path / "misnamed.txt"
    path.write_bytes(format_table.foreign_file(format))
    assert open_picture(path).format == format


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_recognised_by_its_first_bytes(format):
    assert sniff(format_table.written(format)[:64]) == format


@pytest.mark.parametrize("junk", [b"hello, world, this is text" * 9, bytes(4096), b"%PDF-1.7\n" * 20, b"\x7fELF" * 99])
def test_what_is_no_picture_is_refused(junk):
    with pytest.raises(ImageError, match="not a picture"):
        open_picture(junk)


def test_names_stand_for_formats():
    assert format_for_name("Holiday.JPG") == "jpeg"
    assert format_for_name("a/b.tar.webp") == "webp"
    assert format_for_name("png") == format_for_name(".png") == "png"
    assert format_for_name("tif") == "tiff"
    assert format_for_name("jpg") == format_for_name("jpeg") == "jpeg"
    assert format_for_name("notes.txt") is None
    assert format_for_name("noextension") is None


def test_tables_agree_with_each_other():
    assert set(SUFFIXES.values()) == READABLE >= WRITABLE
    for name in FORMATS:
        assert SUFFIXES[suffix_for_format(name)] == name
        assert format_for_name(name) == name


@pytest.mark.parametrize(
    ("format", "size", "advice"),
    [
        ("jpeg", (100, 65_501), "png"),
        ("webp", (16_384, 10), "jpg"),
        ("ico", (257, 9), "png"),
        ("png", (9, 1_000_001), "tiff"),
    ],
)
def test_a_format_too_small_for_the_result_is_refused_before_anything_runs(format, size, advice):
    with pytest.raises(ImageError, match="at most") as caught:
        check_can_hold(picture(photo()), size, format, EncodeOptions())
    assert advice in str(caught.value.hint)
    assert f"-f {format}" not in str(caught.value.hint)


@pytest.mark.parametrize("format", [name for name in FORMATS if FORMATS[name].max_side <= 1_000_000])
def test_the_largest_side_is_really_written_and_read(format):
    pixels = np.zeros((2, FORMATS[format].max_side, 3), np.uint8)
    shown = picture(pixels, format)
    check_can_hold(shown, shown.size, format, EncodeOptions())
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, EncodeOptions())
    assert open_picture(buffer.getvalue()).load().size == shown.size


def test_a_format_of_one_frame_is_refused_for_an_animation_unless_the_first_frame_will_do():
    film = animation()
    with pytest.raises(ImageError, match="3 frames") as caught:
        check_can_hold(film, film.size, "jpeg", EncodeOptions(background="white"))
    assert "--first-frame" in str(caught.value.hint)
    check_can_hold(film, film.size, "jpeg", EncodeOptions(background="white", first_frame=True))
    check_can_hold(film, film.size, "webp", EncodeOptions())


def test_an_animation_without_loss_is_refused_for_avif():
    film = animation()
    with pytest.raises(ImageError, match="without loss") as caught:
        check_can_hold(film, film.size, "avif", EncodeOptions(lossless=True))
    assert "webp" in str(caught.value.hint)
    check_can_hold(film, film.size, "avif", EncodeOptions())


@pytest.mark.parametrize("kind", ["exif", "xmp", "iptc"])
def test_metadata_too_large_for_jpeg_is_refused_before_anything_runs(kind):
    shown = picture(photo(), metadata=Metadata(**{kind: exif(thumbnail=False) + bytes(70_000)}))
    with pytest.raises(ImageError, match="too large for JPEG") as caught:
        check_can_hold(shown, (96, 128), "jpeg", EncodeOptions())
    assert "--strip" in str(caught.value.hint)
    check_can_hold(shown, (96, 128), "jpeg", EncodeOptions(strip=True))
    check_can_hold(shown, (96, 128), "png", EncodeOptions())


def test_a_large_thumbnail_which_is_dropped_anyway_does_no_harm():
    block = bytearray(exif())
    start, end = block.index(b"\xff\xd8"), len(block)
    at = block.index(struct.pack(">HHLL", 0x0202, 4, 1, end - start))
    block[at + 8 : at + 12] = struct.pack(">L", end - start + 70_000)
    shown = picture(photo(), metadata=Metadata(exif=bytes(block) + bytes(70_000)))
    check_can_hold(shown, shown.size, "jpeg", EncodeOptions())


def test_pages_are_no_animation():
    document = replace(animation(), paged=True, loop=None)
    check_can_hold(document, document.size, "tiff", EncodeOptions())
    with pytest.raises(ImageError, match="3 pages"):
        check_can_hold(document, document.size, "gif", EncodeOptions())


def test_transparency_is_refused_where_there_is_none_unless_a_background_is_given():
    clear = picture(photo(channels=4))
    with pytest.raises(ImageError, match="transparency") as caught:
        check_can_hold(clear, clear.size, "jpeg", EncodeOptions())
    assert "--background" in str(caught.value.hint)
    check_can_hold(clear, clear.size, "jpeg", EncodeOptions(background="white"))


def test_an_alpha_channel_that_hides_nothing_does_no_harm():
    pixels = photo(channels=4)
    pixels[..., 3] = 255
    check_can_hold(picture(pixels), (10, 10), "jpeg", EncodeOptions())


def test_floats_beyond_0_to_1_need_a_float_format():
    wild = picture(photo(dtype=np.float32) * 9)
    with pytest.raises(ImageError, match="samples"):
        check_can_hold(wild, wild.size, "png", EncodeOptions())
    check_can_hold(wild, wild.size, "tiff", EncodeOptions())


def test_an_unknown_format_is_refused():
    with pytest.raises(ImageError, match="cannot be written"):
        check_can_hold(picture(photo()), (9, 9), "xcf", EncodeOptions())


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("hasn_cli.images.formats._has_heif", lambda: False)
    with pytest.raises(MissingExtraError) as caught:
        check_can_hold(picture(photo()), (9, 9), "heic", EncodeOptions())
    assert "hasn-cli[heic]" in str(caught.value.hint)
    with pytest.raises(MissingExtraError):
        open_picture(b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(99))


@pytest.mark.parametrize(("field", "value"), [("quality", 0), ("quality", 101), ("background", "no such colour")])
def test_options_that_make_no_sense_are_refused(field, value):
    with pytest.raises(UsageError):
        EncodeOptions(**{field: value})


@pytest.mark.parametrize("format", ["jpeg", "webp", "avif", "jpeg2000", "jpegxl", "heic"])
def test_quality_makes_files_larger_and_better(format):
    sizes, errors = [], []
    for quality in (30, 95):
        buffer = io.BytesIO()
        write_picture(picture(photo(96, 128), "bmp"), buffer, format, EncodeOptions(quality=quality))
        sizes.append(buffer.tell())
        shown = next(iter(open_picture(buffer.getvalue()).frames)).pixels
        errors.append(np.abs(shown.astype(float) - photo(96, 128)).mean())
    assert sizes[0] < sizes[1]
    assert errors[0] > errors[1]


def test_importing_pictures_loads_no_codec():
    code = "import hasn_cli.images, sys; print([m for m in ('PIL', 'imagecodecs', 'torch') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
