"""Pictures keep their metadata."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    IPTC,
    LOSSLESS,
    MAKER_NOTE,
    WIDE_GAMUT,
    XMP,
    encoded,
    exif,
    full_metadata,
    photo,
    picture,
    pixels_of,
    saved,
)
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IFDRational

from hasn_cli.errors import ImageError
from hasn_cli.images import FORMATS, EncodeOptions, Frame, Metadata, Text, check_can_hold, open_picture, write_picture
from hasn_cli.images.exif import EXIF_IFD, GPS_IFD, Exif
from hasn_cli.images.metadata import apply_orientation, resized, upright


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
