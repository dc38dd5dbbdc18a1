"""What each format can hold: the published table matches the round trips, and content decides the format."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from dataclasses import replace

import format_table
import numpy as np
import pytest
import simplejpeg
import tifffile
from pictures import WIDE_GAMUT, XMP, animation, exif, photo, picture
from PIL import Image

from hasn_cli.errors import ImageError, MissingExtraError, UsageError, install_command
from hasn_cli.images import (
    FORMATS,
    READ_ONLY,
    SUFFIXES,
    EncodeOptions,
    Metadata,
    check_can_hold,
    default_output,
    format_for_name,
    open_picture,
    suffix_for_format,
    write_picture,
)
from hasn_cli.images.formats import sniff


@pytest.fixture(scope="module")
def table() -> str:
    return format_table.table()


def test_the_published_table_matches_the_round_trips(table):
    text = format_table.PAGE.read_text("utf-8")
    assert format_table.BEGIN in text
    assert format_table.update(text, table) == text, "run: python tests/format_table.py"
    read_only, markers = format_table.table_of_read_only(), (format_table.BEGIN_READ_ONLY, format_table.END_READ_ONLY)
    assert markers[0] in text
    assert format_table.update(text, read_only, *markers) == text, "run: python tests/format_table.py"


def test_every_format_is_exchanged_with_other_programs(table):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert len(rows) == len(FORMATS)
    for row in rows:
        assert row[1] == "yes", row
        assert row[2] in ("yes", "with extra `heic`"), row


@pytest.mark.parametrize("format", FORMATS)
def test_the_content_decides_the_format_and_not_the_name(format, tmp_path):
    path = tmp_path / "misnamed.txt"
    path.write_bytes(format_table.foreign_file(format))
    assert open_picture(path).format == format


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_is_recognised_by_its_first_bytes(format):
    assert sniff(format_table.written(format)[:64]) == format


@pytest.mark.parametrize("junk", [b"hello, world, this is text" * 9, bytes(4096), b"%PDF-1.7\n" * 20, b"\x7fELF" * 99])
def test_files_that_are_not_pictures_are_refused(junk):
    with pytest.raises(ImageError, match="not a picture"):
        open_picture(junk)


def test_file_endings_are_mapped_to_formats():
    assert format_for_name("Holiday.JPG") == "jpeg"
    assert format_for_name("a/b.tar.webp") == "webp"
    assert format_for_name("png") == format_for_name(".png") == "png"
    assert format_for_name("tif") == "tiff"
    assert format_for_name("jpg") == format_for_name("jpeg") == "jpeg"
    assert format_for_name("notes.txt") is None
    assert format_for_name("noextension") is None


def test_tables_agree_with_each_other():
    assert set(SUFFIXES.values()) == {*FORMATS, *READ_ONLY}
    assert not set(FORMATS) & set(READ_ONLY)
    for name, only in READ_ONLY.items():
        assert default_output(name) == only.output in FORMATS
        assert format_for_name(name) is None and format_for_name("x" + only.suffixes[0]) is None
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
def test_a_result_too_large_for_the_format_is_refused_before_anything_runs(format, size, advice):
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


def test_a_single_frame_format_is_refused_for_an_animation_without_first_frame():
    film = animation()
    with pytest.raises(ImageError, match="3 frames") as caught:
        check_can_hold(film, film.size, "jpeg", EncodeOptions(background="white"))
    assert "--first-frame" in str(caught.value.hint)
    check_can_hold(film, film.size, "jpeg", EncodeOptions(background="white", first_frame=True))
    check_can_hold(film, film.size, "webp", EncodeOptions())


def test_a_lossless_animation_is_refused_for_avif():
    film = animation()
    with pytest.raises(ImageError, match="a lossless animation cannot be written as AVIF") as caught:
        check_can_hold(film, film.size, "avif", EncodeOptions(lossless=True))
    assert "webp" in str(caught.value.hint)
    check_can_hold(film, film.size, "avif", EncodeOptions())


@pytest.mark.parametrize("kind", ["exif", "xmp", "iptc"])
def test_metadata_too_large_for_jpeg_is_refused_before_anything_runs(kind):
    large = XMP + b" " * 70_000 if kind == "xmp" else exif(thumbnail=False) + bytes(70_000)
    shown = picture(photo(), metadata=Metadata(**{kind: large}))
    with pytest.raises(ImageError, match="too large for JPEG") as caught:
        check_can_hold(shown, (96, 128), "jpeg", EncodeOptions())
    assert "--strip" in str(caught.value.hint)
    check_can_hold(shown, (96, 128), "jpeg", EncodeOptions(strip=True))
    check_can_hold(shown, (96, 128), "png", EncodeOptions())


def test_a_large_thumbnail_is_no_problem_because_it_is_dropped():
    block = bytearray(exif())
    start, end = block.index(b"\xff\xd8"), len(block)
    at = block.index(struct.pack(">HHLL", 0x0202, 4, 1, end - start))
    block[at + 8 : at + 12] = struct.pack(">L", end - start + 70_000)
    shown = picture(photo(), metadata=Metadata(exif=bytes(block) + bytes(70_000)))
    check_can_hold(shown, shown.size, "jpeg", EncodeOptions())


def test_a_profile_with_too_many_segments_for_jpeg_is_refused_before_anything_runs():
    room = 255 * (65_533 - 14)
    shown = picture(photo(), metadata=Metadata(icc=WIDE_GAMUT.ljust(room + 1, b"\0")))
    for options in (EncodeOptions(), EncodeOptions(strip=True)):
        with pytest.raises(ImageError, match="too large for JPEG") as caught:
            check_can_hold(shown, shown.size, "jpeg", options)
        assert "-f png" in str(caught.value.hint)
    check_can_hold(shown, shown.size, "png", EncodeOptions())
    largest = replace(shown, metadata=Metadata(icc=WIDE_GAMUT.ljust(room, b"\0")))
    check_can_hold(largest, largest.size, "jpeg", EncodeOptions())
    buffer = io.BytesIO()
    write_picture(largest, buffer, "jpeg", EncodeOptions())
    assert open_picture(buffer.getvalue()).metadata.icc == largest.metadata.icc


@pytest.mark.parametrize("format", ["jpeg", "png", "bmp"])
def test_an_absurd_resolution_in_a_tiff_does_not_prevent_writing_other_formats(format):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, photo(), photometric="rgb", resolution=(4294967295, 4294967295), resolutionunit="inch")
    before = open_picture(buffer.getvalue())
    assert before.metadata.dpi == (4294967295, 4294967295)
    written = io.BytesIO()
    write_picture(before, written, format, EncodeOptions())
    after = open_picture(written.getvalue())
    assert after.size == before.size
    assert after.metadata.dpi is None


@pytest.mark.parametrize("format", ["jpeg", "png", "bmp"])
def test_a_resolution_that_differs_by_direction_is_kept(format):
    buffer = io.BytesIO()
    write_picture(picture(photo(), metadata=Metadata(dpi=(204.0, 98.0))), buffer, format, EncodeOptions())
    assert open_picture(buffer.getvalue()).metadata.dpi == pytest.approx((204, 98), rel=1e-3)


def decoded_filled_up(filling: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray | None, int]:
    """Pixels of a JPEG with extra bytes before its end, or None if refused, and the number of decoding attempts."""
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "JPEG", quality=95)
    attempts = []
    decode = simplejpeg.decode_jpeg

    def counted(*given: object, **named: object) -> np.ndarray:
        attempts.append(given)
        return decode(*given, **named)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    data = buffer.getvalue()
    try:
        return next(iter(open_picture(data[:-2] + filling + data[-2:]).frames)).pixels, len(attempts)
    except ImageError:
        return None, len(attempts)


@pytest.mark.parametrize(
    "filling",
    [b"\0" + b"\xff" * 20_000, b"\xff\0" * 40, b"\1\2\3\xff\xff\xff\0"],
    ids=["0xff", "zeros after 0xff", "mixed"],
)
def test_a_jpeg_padded_before_its_end_is_read_in_a_few_attempts(filling, monkeypatch):
    whole, _ = decoded_filled_up(b"", monkeypatch)
    found, attempts = decoded_filled_up(filling, monkeypatch)
    assert found is not None
    np.testing.assert_array_equal(found, whole)
    assert attempts <= 4


def test_a_jpeg_padded_to_keep_a_decoder_busy_is_refused_quickly(monkeypatch):
    found, attempts = decoded_filled_up((b"\xff" * 200 + b"\0") * 40, monkeypatch)
    assert found is None
    assert attempts <= 8


@pytest.mark.parametrize("inside", ["bmp", "png"])
@pytest.mark.parametrize("stated", [(1, 1), (0, 0), (48, 64), (64, 48)])
def test_an_icon_has_the_size_of_its_picture_and_not_of_its_directory(inside, stated):
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "ICO", sizes=[(64, 48)], bitmap_format=inside)
    data = bytearray(buffer.getvalue())
    data[6:8] = bytes(stated)
    found = open_picture(bytes(data), max_pixels=64 * 48)
    assert found.size == (48, 64)
    np.testing.assert_array_equal(next(iter(found.frames)).pixels[..., :3], photo())
    with pytest.raises(ImageError, match=r"declares 64×48 pixels, .* over the limit"):
        open_picture(bytes(data), max_pixels=64 * 48 - 1)


@pytest.mark.parametrize("kind", ["core", "info", "first row on top", "beyond the directory"])
def test_the_size_of_an_icons_bitmap_is_read_from_every_kind_of_header(kind):
    height, width = (40, 320) if kind == "beyond the directory" else (40, 64)
    if kind == "core":
        header = struct.pack("<LHHHH", 12, width, 2 * height, 1, 24)
    else:
        rows = -2 * height if kind == "first row on top" else 2 * height
        header = struct.pack("<LllHHLLllLL", 40, width, rows, 1, 24, 0, 0, 0, 0, 0, 0)
    pixels = photo(height, width)
    rows = pixels if kind == "first row on top" else pixels[::-1]
    bitmap = header + rows[..., ::-1].tobytes() + bytes(height * width // 8)
    data = struct.pack("<HHHBBBBHHLL", 0, 1, 1, 16, 16, 0, 0, 1, 24, len(bitmap), 22) + bitmap
    found = open_picture(data)
    assert found.size == (height, width)
    np.testing.assert_array_equal(next(iter(found.frames)).pixels[..., :3], pixels)


@pytest.mark.parametrize("size", [0, 3, 8])
def test_an_icon_whose_bitmap_ends_in_its_header_is_refused(size):
    data = struct.pack("<HHHBBBBHHLL", 0, 1, 1, 16, 16, 0, 0, 1, 24, size, 22) + struct.pack("<LL", 40, 16)[:size]
    with pytest.raises(ImageError, match="broken"):
        open_picture(data)


def test_pages_cannot_be_written_as_an_animation():
    document = replace(animation(), paged=True, loop=None)
    check_can_hold(document, document.size, "tiff", EncodeOptions())
    with pytest.raises(ImageError, match="3 pages"):
        check_can_hold(document, document.size, "gif", EncodeOptions())


def test_transparency_needs_a_background_in_formats_without_it():
    clear = picture(photo(channels=4))
    with pytest.raises(ImageError, match="transparency") as caught:
        check_can_hold(clear, clear.size, "jpeg", EncodeOptions())
    assert "--background" in str(caught.value.hint)
    check_can_hold(clear, clear.size, "jpeg", EncodeOptions(background="white"))


def test_an_opaque_alpha_channel_is_accepted_for_jpeg():
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


def test_the_hint_names_the_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("hasn_cli.images.adapt.has_heif", lambda: False)
    with pytest.raises(MissingExtraError) as caught:
        check_can_hold(picture(photo()), (9, 9), "heic", EncodeOptions())
    assert install_command("heic") in str(caught.value.hint)


def test_without_the_extra_heic_is_read_and_becomes_png(monkeypatch):
    data = format_table.foreign_file("heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("hasn_cli.images.adapt.has_heif", lambda: False)
    found = open_picture(data).load()
    assert format_table.close(next(iter(found.frames)).pixels, photo())
    assert default_output("heic") == "png"


@pytest.mark.parametrize(("field", "value"), [("quality", 0), ("quality", 101), ("background", "no such colour")])
def test_meaningless_options_are_refused(field, value):
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
