"""The intact parts of a damaged file are read and the rest is reported. Damaged pixels are an error with the frame."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import imagecodecs
import numpy as np
import pytest
import tifffile
from pictures import WIDE_GAMUT, XMP, photo, picture, pixels_of
from PIL import Image

from hasn_cli.errors import ImageError
from hasn_cli.images import EncodeOptions, Frame, Metadata, Text, check_can_hold, open_picture, write_picture
from hasn_cli.images.codecs.png import chunks
from hasn_cli.images.iptc import is_iptc

NOISE = np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), np.uint8)


def encoded(shown, format="png", **options) -> bytes:
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, EncodeOptions(**options))
    return buffer.getvalue()


def with_wrong_checksum(png: bytes, kind: bytes) -> bytes:
    at = png.index(kind)
    (length,) = struct.unpack_from(">I", png, at - 4)
    end = at + 4 + length
    return png[:end] + bytes([png[end] ^ 1]) + png[end + 1 :]


METADATA = Metadata(icc=WIDE_GAMUT, xmp=XMP, dpi=(300.0, 300.0), gamma=0.5, text=(Text("Title", "a"),))


@pytest.mark.parametrize("kind", [b"tEXt", b"iTXt", b"iCCP", b"pHYs", b"gAMA"])
def test_a_png_is_read_without_a_damaged_chunk_that_pixels_do_not_need(kind):
    whole = encoded(picture(photo(), metadata=METADATA))
    found = open_picture(with_wrong_checksum(whole, kind))
    np.testing.assert_array_equal(next(iter(found.frames)).pixels, photo())
    assert found.metadata.notices == (f"left out, because the checksum is wrong: {kind.decode()}",)
    rest = dict(chunks(encoded(replace(found, metadata=replace(found.metadata, notices=())))))
    assert kind not in rest and len(rest) >= 5  # the other chunks were kept


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"IEND"])
def test_a_damaged_chunk_that_pixels_need_is_an_error(kind):
    image = Image.fromarray(photo(channels=1)[..., 0]).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=3)
    with pytest.raises(ImageError, match=kind.decode()):
        pixels_of(with_wrong_checksum(buffer.getvalue(), kind))


@pytest.mark.parametrize("format", ["jpeg", "png", "webp", "tiff", "avif", "jpeg2000", "jpegxl", "heic"])
@pytest.mark.parametrize(("field", "title"), [("exif", "EXIF"), ("xmp", "XMP"), ("icc", "colour profile")])
def test_broken_metadata_is_left_out_and_reported_in_every_format(format, field, title):
    marks = {"exif": b"II*\0\x08\0\0\0WRONG!!!", "xmp": b"<x:xmpmeta WRONG!!!", "icc": WIDE_GAMUT}
    if field == "icc" and format in ("jpegxl", "heic", "avif"):
        pytest.skip("its decoder or encoder checks profiles itself")
    fine = {"exif": b"II*\0\x08\0\0\0\x01\0" + bytes(16), "xmp": XMP, "icc": WIDE_GAMUT}[field]
    if field == "icc" and format == "png":
        data = encoded(picture(photo()))
        at = data.index(b"IDAT") - 4
        body = b"iCCPx\0\0" + zlib.compress(b"no profile" * 50)
        data = data[:at] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[at:]
    elif field == "icc":
        data = encoded(picture(photo(), metadata=Metadata(icc=fine)), format).replace(b"acsp", b"....")
    else:
        data = _with_broken(format, field, fine, marks[field])
    found = open_picture(data)
    assert next(iter(found.frames)).pixels.shape == (48, 64, 3)
    assert getattr(found.metadata, field) is None
    assert [notice for notice in found.metadata.notices if title in notice], found.metadata.notices


def _with_broken(format: str, field: str, fine: bytes, broken: bytes) -> bytes:
    """A file in which a piece of metadata has been replaced by invalid bytes of the same length."""
    fine = fine.ljust(max(len(fine), len(broken)), b"\0" if field == "exif" else b" ")
    buffer = io.BytesIO()
    write_picture(picture(photo(), metadata=Metadata(**{field: fine})), buffer, format, EncodeOptions())
    data = buffer.getvalue()
    start = {"exif": b"II*\0\x08\0\0\0\x01\0" + bytes(6), "xmp": XMP[:24]}[field]
    if format == "tiff" and field == "exif":  # its directories are those of the file itself
        pytest.skip("EXIF is a part of the file's own structure")
    assert start in data, format
    at = data.rindex(start)
    data = data[:at] + broken[: len(fine)].ljust(len(start), b"W") + data[at + max(len(start), len(broken)) :]
    return _with_true_checksums(data) if format == "png" else data


def _with_true_checksums(png: bytes) -> bytes:
    result, at = png[:8], 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + length]
        result += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return result


def test_incomplete_iptc_records_are_left_out():
    assert is_iptc(b"\x1c\x02\x50\x00\x05Hello") and is_iptc(b"\x1c\x02\x50\x00\x05Hello\0\0")
    assert is_iptc(b"\x1c\x02\x50\x80\x02\x00\x05Hello")
    assert not is_iptc(b"\x1c\x02\x50\x00\x09Hello") and not is_iptc(b"Hello") and not is_iptc(b"\x1c\x02")
    found = open_picture(encoded(picture(photo(), metadata=Metadata(iptc=b"\x1c\x02\x50\x00\x63Hello")), "jpeg"))
    assert found.metadata.iptc is None and "IPTC" in found.metadata.notices[0]


def scanned(strips: int = 1, counts: list[int] | None = None, missing: bool = False) -> bytes:
    """An uncompressed gray TIFF with these StripByteCounts, or with none."""
    pixels = photo(channels=1)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels[..., 0], photometric="minisblack", rowsperstrip=-(-48 // strips), metadata=None)
    data = bytearray(buffer.getvalue())
    (directory,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from("<HHL", data, entry)
        if tag != 279:
            continue
        if missing:
            struct.pack_into("<H", data, entry, 65000)  # a private tag
        for index, value in enumerate(counts or []):
            size = 2 if kind == 3 else 4
            at = entry + 8 if size * number <= 4 else struct.unpack_from("<L", data, entry + 8)[0]
            struct.pack_into("<H" if kind == 3 else "<L", data, at + index * size, value)
    return bytes(data)


@pytest.mark.parametrize(
    "case",
    [
        {"counts": [0]},
        {"counts": [17]},
        {"counts": [60_000]},
        {"missing": True},
        {"strips": 3, "counts": [0, 0, 0]},
        {"strips": 3, "counts": [5, 1024, 0]},
        {"strips": 3, "missing": True},
    ],
)
def test_a_tiff_with_wrong_strip_lengths_is_read(case):
    np.testing.assert_array_equal(pixels_of(scanned(**case)), photo(channels=1))


@pytest.mark.parametrize("compression", ["zlib", "lzw", "packbits"])
def test_a_compressed_strip_without_a_length_extends_to_the_next_one(compression):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, photo(), photometric="rgb", compression=compression, rowsperstrip=48, metadata=None)
    data = bytearray(buffer.getvalue())
    (directory,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from("<H", data, entry)[0] == 279:
            struct.pack_into("<L", data, entry + 8, 0)
    np.testing.assert_array_equal(pixels_of(bytes(data)), photo())


def test_a_tiff_that_ends_within_its_only_strip_is_refused():
    data = scanned(counts=[0])
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, photo(), photometric="rgb", metadata=None)
    for broken in (data[:-200], buffer.getvalue()[:-200]):
        with pytest.raises(ImageError):
            pixels_of(broken)


def film(format: str):
    frames = [Frame(pixels, None if format == "tiff" else 100.0) for pixels in NOISE]
    loop = None if format == "tiff" else 0
    return picture(NOISE[0], frames=frames, frame_count=4, loop=loop, paged=format == "tiff")


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("format", ["png", "webp", "gif", "avif", "tiff"])
def test_a_broken_chain_names_the_frame_and_the_first_one_can_still_be_read(format, share):
    data = encoded(film(format), format, lossless=True if format == "webp" else None)
    whole = pixels_of(data)
    found = open_picture(data[: int(share * len(data))], name="film")
    check_can_hold(found, found.size, format, EncodeOptions(first_frame=True))
    np.testing.assert_array_equal(next(iter(found.first().frames)).pixels, whole)
    number = "[234]"
    with pytest.raises(ImageError, match=f"(page|frame) {number}"):
        check_can_hold(found, found.size, format, EncodeOptions())
        list(found.frames)
    with pytest.raises(ImageError, match=f"(page|frame) {number}"):
        encoded(found, format)


def test_pages_after_a_directory_outside_the_file_are_reported_as_missing():
    data = encoded(film("tiff"), "tiff")
    buffer = io.BytesIO(data)
    with tifffile.TiffFile(buffer) as file:
        second = file.pages[1].offset
    cut = data[: second + 40]
    found = open_picture(cut, name="scan.tif")
    with pytest.raises(ImageError, match=r"scan\.tif: page 2 is missing") as caught:
        check_can_hold(found, found.size, "tiff", EncodeOptions())
    assert "--first-frame" in str(caught.value.hint)


@pytest.mark.parametrize("big", [False, True])
def test_directories_in_a_circle_are_reported_as_a_broken_chain(big):
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=big) as writer:
        for pixels in NOISE[:2]:
            writer.write(pixels, photometric="rgb", metadata=None)
    data = bytearray(buffer.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first, second = (page.offset for page in file.pages)
    size, entry, kind = (8, 20, "<Q") if big else (2, 12, "<L")
    (count,) = struct.unpack_from("<Q" if big else "<H", data, second)
    struct.pack_into(kind, data, second + size + entry * count, first)
    found = open_picture(bytes(data))
    with pytest.raises(ImageError, match="page 3"):
        check_can_hold(found, found.size, "tiff", EncodeOptions())
    check_can_hold(found, found.size, "tiff", EncodeOptions(first_frame=True))


def test_missing_frames_of_an_apng_are_counted():
    data = encoded(film("png"))
    at = data.index(b"acTL") + 4
    body = b"acTL" + struct.pack(">II", 7, 0)
    found = open_picture(data[: at - 4] + body + struct.pack(">I", zlib.crc32(body)) + data[at + 12 :])
    with pytest.raises(ImageError, match="3 of 7 frames are missing"):
        check_can_hold(found, found.size, "png", EncodeOptions())


def test_a_missing_piece_of_a_jpeg_xl_is_named():
    stream = imagecodecs.jpegxl_encode(photo(), lossless=True)
    half = len(stream) // 2
    head = b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl \0\0\0\0jxl "

    def box(number: int, piece: bytes) -> bytes:
        return struct.pack(">I4sI", len(piece) + 12, b"jxlp", number) + piece

    both = head + box(0, stream[:half]) + box(1 << 31 | 1, stream[half:])
    np.testing.assert_array_equal(pixels_of(both), photo())
    with pytest.raises(ImageError, match="piece 2"):
        pixels_of(head + box(0, stream[:half]))


def test_junk_between_the_segments_of_a_jpeg_costs_nothing():
    data = encoded(picture(photo(), metadata=Metadata(icc=WIDE_GAMUT, dpi=(300.0, 300.0))), "jpeg")
    at = data.index(b"\xff\xe2")
    for junk in (b"junk", b"\xff\0\x12", b"\xff\xff\xff", bytes(60)):
        found = open_picture(data[:at] + junk + data[at:])
        np.testing.assert_array_equal(next(iter(found.frames)).pixels, pixels_of(data))
        assert found.metadata.icc == WIDE_GAMUT


def test_a_profile_in_a_jpeg_that_libjpeg_complains_of_is_left_out():
    data = encoded(picture(photo()), "jpeg")
    segment = b"\xff\xe2\0\x17ICC_PROFILE\0\x01\x01profile"
    found = open_picture(data[:2] + segment + data[2:])
    np.testing.assert_array_equal(next(iter(found.frames)).pixels, pixels_of(data))
    assert found.metadata.icc is None and "profile" in found.metadata.notices[0]


def test_bytes_behind_a_jpeg_2000_codestream_are_passed_over():
    stream = bytes(imagecodecs.jpeg2k_encode(photo(), codecformat="j2k", reversible=True))
    np.testing.assert_array_equal(pixels_of(stream + b"\0LOSSY"), photo())
    with pytest.raises(ImageError):
        pixels_of(stream[:-20])


@pytest.mark.parametrize("times", [1, 2])
def test_an_animation_that_is_announced_late_or_twice_is_a_still(times):
    data = encoded(film("png"))
    at = data.index(b"acTL") - 4
    announcement = data[at : at + 20]
    first = data.index(b"IDAT")
    end = first + 8 + struct.unpack_from(">I", data, first - 4)[0]
    if times == 1:
        data = data[:at] + data[at + 20 : end] + announcement + data[end:]
    else:
        data = data[:at] + announcement + data[at:]
    found = open_picture(data)
    assert (found.frame_count, found.loop) == (1, None)
    np.testing.assert_array_equal(next(iter(found.frames)).pixels, NOISE[0])
