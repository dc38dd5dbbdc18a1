"""Pictures made to take too much memory or time: each is refused in one line, or read within limits.

Each read runs in a process of its own under a limit of memory and time (`bounded.py`).
"""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from types import SimpleNamespace

import imagecodecs
import numpy as np
import pytest
from bounded import Outcome, Reader, reader
from pictures import SKIMAGE, WIDE_GAMUT, Nearest, animation, full_metadata, photo, picture
from PIL import Image

from hasn_cli.enlarge import Size, enlarge
from hasn_cli.errors import ImageError
from hasn_cli.images import EncodeOptions, Frame, Metadata, open_picture, write_picture
from hasn_cli.images.codecs.boxes import box
from hasn_cli.images.formats import HEAD
from hasn_cli.images.limits import MAX_METADATA, MAX_TOTAL_PIXELS
from hasn_cli.images.stream import read_stream

MIB = 2**20
SMALL = 150 * MIB  # more than any refusal takes in addition to the file itself
SOON = 10.0  # seconds of processor time; a refusal takes a fraction of a second


@pytest.fixture(scope="module")
def bounded() -> Iterator[Reader]:
    with reader() as started:
        yield started


def refused(outcome: Outcome, *words: str, size: int = 0) -> None:
    """Check that it was refused quickly, in one line with these words, with little memory besides the file's bytes."""
    assert outcome.crash is None, outcome
    assert outcome.error is not None and "\n" not in outcome.error, outcome
    assert all(word in outcome.error for word in words), outcome.error
    assert outcome.peak < SMALL + 4 * size, outcome
    assert outcome.seconds < SOON, outcome


def read_well(outcome: Outcome, *sizes: tuple[int, int], peak: int = SMALL) -> None:
    """Check that it was read quickly, in limited memory."""
    assert outcome.crash is None and outcome.error is None, outcome
    assert not sizes or outcome.sizes == sizes
    assert outcome.peak < peak, outcome
    assert outcome.seconds < SOON, outcome


def written(shown, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, EncodeOptions(lossless=True, **options))
    return buffer.getvalue()


def saved(format: str, size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, format, **options)
    return buffer.getvalue()


# ---- JPEG 2000 ----


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">HH", marker, len(body) + 2) + body


def codestream(
    width: int,
    height: int,
    components: int = 1,
    tile: int | None = None,
    levels: int = 0,
    block: int = 6,
    precinct: int | None = None,
    layers: int = 1,
    in_tile: bool = False,
) -> bytes:
    """A JPEG 2000 codestream with a header but no pixels. `block` and `precinct` are exponents of sides."""
    side = tile or max(width, height)
    sizes = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, side, side, 0, 0, components)
    style = struct.pack(">BBHBBBBBB", precinct is not None, 0, layers, 0, levels, block - 2, block - 2, 0, 1)
    style += bytes([(precinct or 0) * 17]) * (levels + 1 if precinct is not None else 0)
    usual = struct.pack(">BBHBBBBBB", 0, 0, 1, 0, levels, 4, 4, 0, 1)
    head = b"\xff\x4f" + segment(0xFF51, sizes + b"\7\1\1" * components)
    head += segment(0xFF52, usual if in_tile else style)
    head += segment(0xFF5C, b"\x40" + b"\x40" * (3 * levels + 1))
    own = segment(0xFF52, style) if in_tile else b""
    part = segment(0xFF90, struct.pack(">HIBB", 0, 14 + len(own), 0, 1)) + own + b"\xff\x93"
    return head + part + b"\xff\xd9"


def jp2(stream: bytes, *header: bytes) -> bytes:
    start = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    colour = box(b"colr", struct.pack(">BBBI", 1, 0, 0, 16))
    return start + box(b"jp2h", colour, *header) + box(b"jp2c", stream)


@pytest.mark.parametrize(
    "options",
    [
        {"precinct": 0},
        {"precinct": 0, "in_tile": True},
        {"precinct": 1, "levels": 2},
        {"block": 2},
        {"tile": 16},
        {"layers": 65_535, "precinct": 7},
        {"layers": 65_535, "precinct": 7, "components": 3},
    ],
    ids=str,
)
def test_a_jpeg_2000_divided_into_a_piece_for_each_pixel_is_refused(bounded, options):
    refused(bounded.read(codestream(4000, 4000, **options)), "divided into")


@pytest.mark.parametrize("components", [500, 16_384])
def test_jpeg_2000_components_are_counted_before_decoding(bounded, components):
    shown = struct.pack(">H9H", 3, 0, 0, 1, 1, 0, 2, 2, 0, 3)
    refused(bounded.read(jp2(codestream(1000, 1000, components), box(b"cdef", shown))), f"{components} components")


def test_a_jpeg_2000_palette_does_not_multiply_memory(bounded):
    entries = struct.pack(">HB", 2, 255) + b"\7" * 255 + bytes(2 * 255)
    mapping = b"".join(struct.pack(">HBB", 0, 1, column) for column in range(255))
    data = jp2(codestream(4000, 4000), box(b"pclr", entries), box(b"cmap", mapping))
    refused(bounded.read(data), "255 components")


@pytest.mark.parametrize(
    "options",
    [
        {"tile_size": (64, 64), "codeblock_size": (32, 32)},
        {"precinct_size": (64, 64), "codeblock_size": (32, 32), "num_resolutions": 6},
        {"quality_layers": [60, 50, 40, 30, 20, 15, 10, 7, 5, 3, 2, 1], "progression": "RPCL"},
    ],
    ids=str,
)
def test_jpeg_2000_divided_as_by_archives_and_viewers_is_read(bounded, options):
    buffer = io.BytesIO()
    Image.fromarray(photo(600, 800)).save(buffer, "JPEG2000", **options)
    read_well(bounded.read(buffer.getvalue()), (600, 800))


# ---- EXIF ----


def multiplying_exif(pointers: int, below: int, entries: int) -> bytes:
    """Directories that point to each other many times over."""
    first, second = 8, 8 + 6 + 12 * pointers
    third = second + 6 + 12 * below
    tables = [
        [(0x8769, 4, 1, second)] * pointers,
        [(0xA005, 4, 1, third)] * below,
        [(0x1000 + number, 4, 1, number) for number in range(entries)],
    ]
    block = b"II*\0" + struct.pack("<L", first)
    for table in tables:
        block += struct.pack("<H", len(table)) + b"".join(struct.pack("<HHLL", *entry) for entry in table) + bytes(4)
    return block


@pytest.mark.parametrize("counts", [(1000, 1000, 1000), (60_000, 1, 1), (1, 60_000, 5000)])
@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
def test_exif_with_multiplying_pointers_takes_no_resources(bounded, format, counts):
    block = multiplying_exif(*counts)
    if format == "jpeg" and len(block) > 65_000:
        pytest.skip("a JPEG cannot hold it")
    data = written(picture(photo(), metadata=Metadata(exif=block)), format)
    outcome = bounded.read(data, write="tiff")
    read_well(outcome, (48, 64))


def test_a_tiff_with_multiplying_pointers_takes_no_resources(bounded):
    plain = written(picture(photo()), "tiff")
    at = len(plain) + len(plain) % 2
    (first,) = struct.unpack_from("<L", plain, 4)
    (count,) = struct.unpack_from("<H", plain, first)
    entries = plain[first + 2 : first + 2 + 12 * count]
    below = at + 6 + 12 * (count + 1000)
    inner = below + 6 + 12 * 2000
    data = bytearray(plain.ljust(at, b"\0"))
    data += struct.pack("<H", count + 1000) + entries + struct.pack("<HHLL", 0x8769, 4, 1, below) * 1000 + bytes(4)
    data += struct.pack("<H", 2000) + struct.pack("<HHLL", 0xA005, 4, 1, inner) * 2000 + bytes(4)
    data += struct.pack("<H", 1000) + struct.pack("<HHLL", 0x1000, 4, 1, 7) * 1000 + bytes(4)
    struct.pack_into("<L", data, 4, at)
    read_well(bounded.read(bytes(data), write="tiff"), (48, 64))


@pytest.mark.filterwarnings("ignore:Tag data larger than file")  # thousands, from Pillow
def test_exif_values_that_share_their_bytes_take_no_resources(bounded):
    entries = b"".join(struct.pack("<HHLL", 0x1000 + number, 7, 900_000, 60_000) for number in range(4000))
    block = b"II*\0" + struct.pack("<LH", 8, 4000) + entries + bytes(4)
    block = block.ljust(960_000, b"\7")
    data = saved("AVIF", exif=b"Exif\0\0" + block)
    refused(bounded.read(data), "overlap", size=len(data))
    jpeg = jpeg_with(segment(0xFFE1, b"Exif\0\0" + block.replace(struct.pack("<L", 900_000), bytes(4))[:65_000]))
    read_well(bounded.read(jpeg), (48, 64))


# ---- metadata ----


@cache
def zeros(count: int) -> bytes:
    """`count` zeros, packed by zlib."""
    worker = zlib.compressobj(1)
    packed = [worker.compress(bytes(MIB)) for _ in range(count // MIB)]
    return b"".join([*packed, worker.compress(bytes(count % MIB)), worker.flush()])


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_with(*chunks: bytes) -> bytes:
    data = saved("PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def jpeg_with(*segments: bytes) -> bytes:
    data = saved("JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def webp_with(*chunks: tuple[bytes, bytes]) -> bytes:
    inner = saved("WEBP")[12:]
    extended = struct.pack("<I", 0x2C) + struct.pack("<II", 63, 47)[:3] + struct.pack("<I", 47)[:3]
    parts = [(b"VP8X", extended), *chunks]
    body = b"".join(kind + struct.pack("<I", len(value)) + value + bytes(len(value) % 2) for kind, value in parts[:1])
    more = b"".join(kind + struct.pack("<I", len(value)) + value + bytes(len(value) % 2) for kind, value in parts[1:])
    body = b"WEBP" + body + inner + more
    return b"RIFF" + struct.pack("<I", len(body)) + body


def gif_with(*blocks: bytes) -> bytes:
    data = saved("GIF")
    return data[:-1] + b"".join(blocks) + b"\x3b"


def jxl_with(*boxes: bytes) -> bytes:
    return written(picture(photo()), "jpegxl") + b"".join(boxes)


def packed_box(kind: bytes, length: int) -> bytes:
    return box(b"brob", kind, bytes(imagecodecs.brotli_encode(bytes(length))))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("count", [1, 50])
def test_png_metadata_that_unpacks_to_gigabytes_is_refused_or_left_out(bounded, kind, count):
    head = {b"zTXt": b"key\0\0", b"iTXt": b"key\0\1\0\0\0", b"iCCP": b"name\0\0"}[kind]
    outcome = bounded.read(png_with(*[png_chunk(kind, head + zeros(66_000_000))] * count), write="png")
    refused(outcome, "metadata")


@pytest.mark.parametrize("kind", [b"Exif", b"xml "])
def test_packed_boxes_of_a_jpeg_xl_share_one_limit(bounded, kind):
    read_well(bounded.read(jxl_with(*[packed_box(kind, 40_000_000)] * 60)), (48, 64))


def big(length: int) -> bytes:
    return b"<x:xmpmeta>" + b" " * length


METADATA_BOMBS = {
    "png iTXt": lambda: png_with(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + big(40_000_000))),
    "png tEXt": lambda: png_with(*[png_chunk(b"tEXt", b"key\0" + bytes(1_000_000))] * 40),
    "png eXIf": lambda: png_with(png_chunk(b"eXIf", b"II*\0\x08\0\0\0" + bytes(40_000_000))),
    "jpeg extended XMP": lambda: jpeg_with(
        *[segment(0xFFE1, b"http://ns.adobe.com/xmp/extension/\0" + big(65_000))] * 600
    ),
    "jpeg comments": lambda: jpeg_with(*[segment(0xFFFE, b"a" * 65_000)] * 600),
    "webp XMP": lambda: webp_with((b"XMP ", big(40_000_000))),
    "webp ICC": lambda: webp_with((b"ICCP", WIDE_GAMUT + bytes(50_000_000))),
    "gif comment": lambda: gif_with(b"\x21\xfe" + (b"\xff" + b"a" * 255) * 140_000 + b"\0"),
    "jxl xml": lambda: jxl_with(box(b"xml ", big(40_000_000))),
    "jp2 uuid": lambda: (
        jp2(codestream(64, 48)) + box(b"uuid", bytes.fromhex("be7acfcb97a942e89c71999491e3afac"), big(40_000_000))
    ),
    "jp2 ICC": lambda: jp2(codestream(64, 48), box(b"colr", b"\2\0\0" + WIDE_GAMUT + bytes(50_000_000))),
    "tiff XMP": lambda: tiff(8, 8, bytes(192), extra=[(700, 1, big(100_000_000))]),
    "tiff ICC": lambda: tiff(8, 8, bytes(192), extra=[(34675, 7, WIDE_GAMUT + bytes(50_000_000))]),
}


@pytest.mark.parametrize("name", METADATA_BOMBS)
def test_metadata_over_the_limit_is_refused(bounded, name):
    data = METADATA_BOMBS[name]()
    refused(bounded.read(data, memory=2 << 30), "metadata", size=len(data))


def profile_of_elements(count: int) -> bytes:
    """A CMYK profile whose processing elements all share the same bytes."""
    table = struct.pack(">II", 148 + 8 * count, 60_000) * count
    elements = b"mpet" + bytes(4) + struct.pack(">HHI", 4, 3, count) + table + bytes(60_000)
    icc = bytearray(128) + struct.pack(">I4sII", 1, b"D2B1", 144, len(elements)) + elements
    icc[12:24] = b"prtrCMYKLab "
    icc[36:40] = b"acsp"
    struct.pack_into(">I", icc, 0, len(icc))
    return bytes(icc)


@pytest.mark.parametrize("count", [3, 12_000])
def test_a_profile_whose_elements_share_their_bytes_is_left_out(bounded, count: int):
    buffer = io.BytesIO()
    Image.new("CMYK", (64, 48)).save(buffer, "JPEG", icc_profile=profile_of_elements(count))
    outcome = bounded.read(buffer.getvalue())
    assert outcome.sizes == ((48, 64),) and outcome.peak < SMALL and outcome.seconds < SOON, outcome
    assert open_picture(buffer.getvalue()).metadata.notices == ("its broken colour profile is left out",)


def test_the_largest_metadata_of_real_files_is_kept():
    xmp = b"<x:xmpmeta>" + b" " * 8_000_000 + b"</x:xmpmeta>"
    icc = WIDE_GAMUT + bytes(4_000_000)
    assert len(xmp) + len(icc) < MAX_METADATA
    for format in ("webp", "tiff", "jpeg2000"):
        found = open_picture(written(picture(photo(), metadata=Metadata(xmp=xmp, icc=icc)), format)).metadata
        assert (found.xmp, found.icc) == (xmp, icc), format


def test_a_profile_with_only_newlines_is_ignored(bounded):
    body = b"Raw profile type exif\0\0" + zlib.compress(b"\n" * (MAX_METADATA - 1000))
    read_well(bounded.read(png_with(png_chunk(b"zTXt", body))), (48, 64))


PARTS = {
    "png": lambda count: png_with(png_chunk(b"teXt", b"") * count),
    "png, of image data": lambda count: png_with(png_chunk(b"IDAT", b"") * count),
    "jpeg": lambda count: jpeg_with(segment(0xFFE5, b"") * count),
    "jpeg, after the first scan": lambda count: saved("JPEG")[:-2] + segment(0xFFE5, b"") * count + b"\xff\xd9",
    "webp": lambda count: webp_with(*[(b"none", b"")] * count),
    "gif": lambda count: gif_with(b"\x21\xfe\0" * count),
    "gif, of one comment": lambda count: gif_with(b"\x21\xfe" + b"\1a" * count + b"\0"),
    "jxl": lambda count: jxl_with(box(b"none") * count),
    "jp2": lambda count: jp2(codestream(64, 48)) + box(b"none") * count,
    "avif": lambda count: saved("AVIF") + box(b"none") * count,
}


@pytest.mark.parametrize("name", PARTS)
def test_millions_of_empty_parts_are_refused(bounded, name):
    data = PARTS[name](400_000)
    refused(bounded.read(data), "more than", size=len(data))


# ---- TIFF ----


def tiff(
    width: int,
    height: int,
    *strips: bytes,
    compression: int = 1,
    extra: Sequence[tuple[int, int, bytes]] = (),
    **tags: int,
) -> bytes:
    """A TIFF of 8-bit RGB (or as `tags` say) with these bytes in its strips. `extra` are tags, types and values."""
    channels = tags.pop("channels", 3)
    rows = tags.pop("rows", height)
    data = b"II*\0" + bytes(4)
    offsets = []
    for strip in strips:
        offsets.append(len(data))
        data += strip + bytes(len(strip) % 2)
    values = {
        256: (4, struct.pack("<L", width)),
        257: (4, struct.pack("<L", height)),
        258: (3, struct.pack("<H", 8) * channels),
        259: (3, struct.pack("<H", compression)),
        262: (3, struct.pack("<H", tags.pop("photometric", 2 if channels == 3 else 1))),
        273: (4, struct.pack(f"<{len(strips)}L", *offsets)),
        277: (3, struct.pack("<H", channels)),
        278: (4, struct.pack("<L", rows)),
        279: (4, struct.pack(f"<{len(strips)}L", *map(len, strips))),
    }
    values |= {tag: (type, value) for tag, type, value in extra}
    sizes = {1: 1, 3: 2, 4: 4, 7: 1}
    table = b""
    end = len(data) + 2 + 12 * len(values) + 4
    tail = b""
    for tag, (type, value) in sorted(values.items()):
        stored = value.ljust(4, b"\0")
        if len(value) > 4:
            stored = struct.pack("<L", end + len(tail))
            tail += value + bytes(len(value) % 2)
        table += struct.pack("<HHL", tag, type, len(value) // sizes[type]) + stored
    (start,) = (len(data),)
    data = data[:4] + struct.pack("<L", start) + data[8:]
    return data + struct.pack("<H", len(values)) + table + bytes(4) + tail


def inner(kind: str, side: int) -> bytes:
    """A picture of one colour, to put into a strip."""
    pixels = np.full((side, side), 77, np.uint8)
    if kind == "jpeg":
        return bytes(imagecodecs.jpeg8_encode(pixels))
    if kind == "png":
        return bytes(imagecodecs.png_encode(pixels))
    if kind == "jpeg2000":
        return codestream(side, side) if side > 100 else bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k"))
    if kind == "jpegxl":
        return bytes(imagecodecs.jpegxl_encode(pixels, lossless=True, effort=1))
    if kind == "webp":
        return bytes(imagecodecs.webp_encode(np.dstack([pixels] * 3), level=50))
    return bytes(imagecodecs.jpegxr_encode(pixels) if kind == "jpegxr" else imagecodecs.lerc_encode(pixels))


COMPRESSIONS = {"jpeg": 7, "png": 34933, "jpeg2000": 34712, "jpegxl": 50002, "webp": 50001, "lerc": 34887}


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_picture_in_a_strip_is_no_larger_than_the_strip(bounded, kind):
    channels = 3 if kind == "webp" else 1
    strip = inner(kind, 3500)
    for limit in (None, 1000):
        data = tiff(16, 16, strip, compression=COMPRESSIONS[kind], channels=channels)
        refused(bounded.read(data, max_pixels=limit), "3500×3500")
    honest = tiff(16, 16, inner(kind, 16), compression=COMPRESSIONS[kind], channels=channels)
    read_well(bounded.read(honest), (16, 16))


def test_pictures_in_strips_together_are_no_larger_than_the_page(bounded):
    strip = inner("jpeg", 200)
    data = tiff(16, 2000, *[strip] * 2000, rows=1, compression=7, channels=1)
    refused(bounded.read(data), "200×200")


@pytest.mark.parametrize("compression", [22610, 34934])
def test_compressions_whose_size_cannot_be_checked_are_refused(bounded, compression):
    data = tiff(16, 16, inner("jpegxr", 16), compression=compression, channels=1)
    refused(bounded.read(data), "not supported")


def test_a_jpeg_with_thousands_of_scans_in_a_strip_is_refused(bounded):
    data = bytearray(saved("JPEG", (16, 16), progressive=True))
    scan = data.rindex(b"\xff\xda")
    strip = bytes(data[:-2]) + bytes(data[scan:-2]) * 5000 + b"\xff\xd9"
    refused(bounded.read(tiff(16, 16, strip, compression=7, photometric=6)), "scans")


@pytest.mark.parametrize("compression", [5, 8, 50000, 34925, 32773])
def test_a_strip_unpacks_to_no_more_than_it_has_pixels(bounded, compression):
    raw = bytes(100_000_000)
    packed = {
        5: lambda: imagecodecs.lzw_encode(raw[:10_000_000]),
        8: lambda: zeros(200_000_000),
        50000: lambda: imagecodecs.zstd_encode(raw),
        34925: lambda: imagecodecs.lzma_encode(raw[:10_000_000]),
        32773: lambda: b"\x81\0" * 2_000_000,
    }[compression]()
    outcome = bounded.read(tiff(16, 16, bytes(packed), compression=compression))
    assert outcome.crash is None and outcome.peak < SMALL, outcome
    assert outcome.seconds < SOON


def test_a_million_strips_of_a_small_picture_are_refused(bounded):
    offsets = struct.pack("<L", 8) * 3_000_000
    data = tiff(16, 16, bytes(768), extra=[(273, 4, offsets), (279, 4, offsets)])
    refused(bounded.read(data), "strips", size=len(data))


def test_pages_that_share_a_long_list_are_refused(bounded):
    count, shared = 2000, 8
    offsets = 400_000
    data = b"II*\0" + bytes(4) + struct.pack("<L", 8) * offsets
    first = len(data)
    for index in range(count):
        entries = [
            (256, 4, 1, 16_000), (257, 4, 1, 16_000), (259, 3, 1, 1), (262, 3, 1, 1),
            (273, 4, offsets, shared), (279, 4, offsets, shared),
        ]  # fmt: skip
        following = len(data) + 2 + 12 * len(entries) + 4 if index + 1 < count else 0
        data += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHLL", *entry) for entry in entries)
        data += struct.pack("<L", following)
    refused(
        bounded.read(data[:4] + struct.pack("<L", first) + data[8:]), "more data than the file contains", size=len(data)
    )


def test_strips_that_share_a_long_piece_of_the_file_are_refused(bounded):
    data = bytes(12_000_000)
    counts, offsets = struct.pack("<L", 12_000_000) * 4000, struct.pack("<L", 8) * 4000
    file = tiff(16, 4000, data, rows=1, compression=8, extra=[(273, 4, offsets), (279, 4, counts)])
    refused(bounded.read(file), "strips", size=len(file))


def test_long_tables_that_are_read_for_each_strip_are_refused(bounded):
    tables = b"\xff\xd8" + segment(0xFFE5, bytes(65_000)) * 100 + b"\xff\xd9"
    strips = [inner("jpeg", 16)] * 4000
    file = tiff(16, 64_000, *strips, rows=16, compression=7, channels=1, extra=[(347, 7, tables)])
    refused(bounded.read(file), "tables", size=len(file))


def test_a_chain_of_a_million_pages_is_refused(bounded):
    page = [(256, 4, 1, 1), (257, 4, 1, 1), (273, 4, 1, 8), (279, 4, 1, 1)]
    size = 2 + 12 * len(page) + 4
    table = struct.pack("<H", len(page)) + b"".join(struct.pack("<HHLL", *entry) for entry in page)
    data = b"II*\0" + struct.pack("<L", 8)
    data += b"".join(table + struct.pack("<L", 8 + size * (index + 1)) for index in range(60_000))
    refused(bounded.read(data), "pages", size=len(data))


def test_overlapping_directories_are_refused(bounded):
    # 16,000 directories of 4,000 entries each, four bytes apart
    step = struct.pack("<HH", 4000, 4000)
    data = bytearray(b"II*\0" + struct.pack("<L", 8) + step * 60_000)
    for index in range(16_000):
        at = 8 + 4 * index
        struct.pack_into("<L", data, at + 2 + 12 * 4000, at + 4)
    refused(bounded.read(bytes(data)), size=len(data))


def test_a_long_document_is_read(bounded):
    pages = [Frame(photo(8, 8, channels=1))] * 1000
    data = written(picture(pages[0].pixels, frames=pages, frame_count=1000, paged=True), "tiff")
    outcome = bounded.read(data)
    assert outcome.error is None and len(outcome.sizes) == 1000, outcome
    assert outcome.peak < SMALL


# ---- frames ----


def gif(width: int, height: int, frames: int) -> bytes:
    """Frames of one pixel on a large canvas."""
    one = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3 + one * frames + b"\x3b"
    )


def apng(width: int, height: int, frames: int) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0\0")
    chunks = [png_chunk(b"IHDR", head), png_chunk(b"acTL", struct.pack(">II", frames, 0))]
    control = struct.pack(">IIIIHHBB", 1, 1, 0, 0, 1, 10, 0, 0)
    for index in range(frames):
        chunks.append(png_chunk(b"fcTL", struct.pack(">I", max(0, 2 * index - 1)) + control))
        if index:
            chunks.append(png_chunk(b"fdAT", struct.pack(">I", 2 * index) + data))
        else:
            chunks.append(png_chunk(b"IDAT", zlib.compress(bytes((1 + width) * height)) if frames == 0 else data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + png_chunk(b"IEND", b"")


def webp(width: int, height: int, frames: int) -> bytes:
    still = saved("WEBP", (1, 1))[12:]
    side = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    frame = bytes(6) + bytes(6) + b"\x64\0\0\2" + still
    parts = [(b"VP8X", struct.pack("<I", 2) + side), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * frames]
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(value)) + value for kind, value in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("make", [gif, apng, webp])
def test_the_limit_applies_to_the_sum_of_all_frames(bounded, make):
    refused(bounded.read(make(1000, 1000, 20), max_pixels=1_000_000), "20 megapixels", "limit of 1")
    read_well(bounded.read(make(100, 100, 20), max_pixels=1_000_000), *[(100, 100)] * 20)


@pytest.mark.parametrize("make", [gif, apng, webp])
def test_thousands_of_large_frames_are_refused(bounded, make):
    refused(bounded.read(make(15_000, 15_000, 3000)), "675000 megapixels")


@pytest.mark.parametrize("make", [gif, apng, webp])
def test_a_hundred_thousand_frames_are_refused(bounded, make):
    data = make(2, 2, 60_000)
    refused(bounded.read(data), "frames", size=len(data))


def test_all_pages_together_have_a_limit_above_that_of_real_scans():
    assert MAX_TOTAL_PIXELS > 300 * 25_000_000
    pages = [Frame(photo(10, 10)), Frame(photo(20, 30))]
    data = written(picture(pages[0].pixels, frames=pages, frame_count=2, paged=True), "tiff")
    assert open_picture(data, max_pixels=700).frame_count == 2
    with pytest.raises(ImageError, match=r"0\.0007 megapixels, over the limit"):
        open_picture(data, max_pixels=699)


def test_equal_frames_in_a_row_are_computed_once():
    one, other = photo(8, 9), photo(8, 9)[::-1].copy()
    shown = [one, one.copy(), other, other, one]
    moving = picture(one, frames=[Frame(pixels, 10.0 * index) for index, pixels in enumerate(shown)], frame_count=5)
    network = Nearest(2)
    told: list[float] = []
    frames = list(enlarge(moving, lambda scale: network, Size(2), progress=told.append).frames)
    assert len(network.calls) == 3
    assert [frame.duration for frame in frames] == [0.0, 10.0, 20.0, 30.0, 40.0]
    for pixels, frame in zip(shown, frames, strict=True):
        np.testing.assert_array_equal(frame.pixels, pixels.repeat(2, axis=0).repeat(2, axis=1))
    assert told == sorted(told) and told[-1] == 1.0


# ---- pixels ----


def test_a_long_token_of_a_plain_ppm_is_refused(bounded):
    for length in (115_000, 1_100_000):
        token = b"0" * length
        refused(bounded.read(b"P3 200 200 255\n" + b"1 2 3 " * 20_000 + token + b" 5" * 120_000), "digits")
    refused(bounded.read(b"P2 1000 1000 255\n" + b"1 " * 100), "truncated")


def test_plain_text_after_the_last_sample_is_not_read(bounded):
    read_well(bounded.read(b"P2 2 1 255\n7 9\n" + b"0 " * 30_000_000, memory=300 * MIB), (1, 2))


def rle_bmp(width: int, height: int, data: bytes, bits: int = 8) -> bytes:
    colors = 1 << bits
    start = 14 + 40 + 4 * colors
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 1 if bits == 8 else 2, len(data), 0, 0, colors, 0)
    palette = bytes(value for index in range(colors) for value in (index, 255 - index, index // 2, 0))
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


@pytest.mark.parametrize("data", [b"\1\0\0\0" * 500, b"\0\0" * 1000, b"\0\2\0\xff" * 30, b"\xff\7" * 500, b"\0\1"])
def test_a_run_length_encoded_bmp_without_pixels_is_refused_at_once(bounded, data):
    refused(bounded.read(rle_bmp(10_000, 10_000, data)), "truncated")


def test_short_lines_of_a_run_length_encoded_bmp_are_unpacked_quickly(bounded):
    """Each of these lines of 200,000 pixels ends after the first."""
    refused(bounded.read(rle_bmp(200_000, 500, b"\1\7\0\0" * 400)), "truncated")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [61, 64])
def test_a_run_length_encoded_bmp_is_read_as_pillow_reads_it(bits, width):
    dice = np.random.default_rng(bits)
    data = b""
    for _ in range(40):
        x = 0
        while x < width:
            count = int(min(dice.integers(3, 20), width - x))
            if dice.random() < 0.5 or count < 3:
                data += bytes([count, int(dice.integers(256))])
            else:
                length = count if bits == 8 else (count + 1) // 2
                data += bytes([0, count]) + dice.bytes(length) + bytes(length % 2)
            x += count
        data += b"\0\0"
    file = rle_bmp(width, 40, data + b"\0\1", bits)
    with Image.open(io.BytesIO(file)) as image:
        expected = np.asarray(image.convert("RGB"))
    (frame,) = open_picture(file).frames
    np.testing.assert_array_equal(frame.pixels, expected)


def test_png_image_data_that_unpacks_to_more_than_its_pixels_is_refused(bounded):
    body = png_chunk(b"IDAT", zeros(200_000_000))
    for interlaced in (0, 1):
        head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, interlaced))
        refused(bounded.read(b"\x89PNG\r\n\x1a\n" + head + body + png_chunk(b"IEND", b"")), "more image data")


def test_a_jpeg_of_thousands_of_scans_is_refused(bounded):
    data = saved("JPEG", (4000, 4000), progressive=True)
    scan = data.rindex(b"\xff\xda")
    refused(bounded.read(data[:-2] + data[scan:-2] * 3000 + b"\xff\xd9"), "scans")


# ---- boxes ----


@pytest.mark.parametrize("format", ["AVIF", "HEIF"])
def test_a_coded_picture_is_no_larger_than_its_boxes_declare(bounded, format):
    import pillow_heif

    pillow_heif.register_heif_opener()
    data = saved(format, (1600, 1200))
    assert data.count(struct.pack(">II", 1600, 1200)) == 1
    read_well(bounded.read(data), (1200, 1600))
    lying = data.replace(struct.pack(">II", 1600, 1200), struct.pack(">II", 16, 16))
    for limit in (None, 1000):
        refused(bounded.read(lying, max_pixels=limit), "1600×120")


def test_the_frames_of_an_avif_are_counted_before_a_library_does(bounded):
    data = written(animation(), "avif")
    at = data.index(b"stsz") + 12
    refused(bounded.read(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]), "frames")


def test_items_that_share_their_bytes_do_not_multiply_memory(bounded):
    data = saved("AVIF", exif=b"Exif\0\0" + multiplying_exif(1, 1, 1))
    places = data.index(b"iloc")
    (count,) = struct.unpack_from(">H", data, places + 10)
    assert count == 2
    # the second item, EXIF, gets many pieces, which are all the same 30 MB
    grown = data + bytes(30_000_000)
    at = places + 12 + 14 + 6
    (length,) = struct.unpack_from(">I", data, at + 4)
    lying = grown[: at + 4] + struct.pack(">I", 40_000_000) + grown[at + 8 :]
    assert length < 1000
    refused(bounded.read(lying, memory=2 << 30), "metadata", size=len(lying))


def test_a_jpeg_xl_of_thousands_of_channels_is_refused(bounded):
    data = written(picture(photo(channels=4)), "jpegxl")
    assert open_picture(data).channels == 4
    start = data.index(b"\xff\x0a")
    bits = int.from_bytes(data[start : start + 64], "little")
    # size header (1 + 5 + 3 + 5 or more bits) is replaced: 8×8 pixels, then a header that is not the default
    fields = [(1, 1), (5, 0), (3, 1), (1, 0), (1, 0), (1, 0), (2, 0), (1, 1), (2, 3), (12, 4000)]
    value, at = 0x0AFF, 16
    for width, number in fields:
        value |= number << at
        at += width
    assert bits
    lying = data[:start] + value.to_bytes((at + 7) // 8, "little") + data[start + (at + 7) // 8 :]
    refused(bounded.read(lying), "4001 extra channels")


def test_the_header_of_a_jpeg_xl_may_be_split_over_boxes(bounded):
    data = written(picture(photo(300, 400)), "jpegxl")
    start = data.index(b"jxlc") - 4
    (length,) = struct.unpack_from(">I", data, start)
    stream = data[start + 8 : start + length] if length else data[start + 8 :]
    pieces = [stream[:2], stream[2:5], stream[5:]]
    last = 0x80000000
    boxes = [box(b"jxlp", struct.pack(">I", n | (last if n == 2 else 0)), piece) for n, piece in enumerate(pieces)]
    split = data[:start] + b"".join(boxes)
    read_well(bounded.read(split), (300, 400))
    refused(bounded.read(split, max_pixels=300 * 400 - 1), "limit")


def test_deeply_nested_boxes_are_handled(bounded):
    nested = b""
    for _ in range(20_000):
        nested = struct.pack(">I4s", len(nested) + 8, b"moov") + nested
    outcome = bounded.read(saved("AVIF") + nested)
    assert outcome.crash is None and outcome.peak < SMALL and outcome.seconds < SOON, outcome


# ---- files and streams ----


class Endless(io.RawIOBase):
    """A stream with a given beginning that never ends, and that counts the bytes that were read from it."""

    def __init__(self, start: bytes, rest: bytes = b"\0") -> None:
        self._start = start
        self._rest = rest
        self.taken = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        assert size >= 0, "would never end"
        piece = self._start[:size]
        self._start = self._start[size:]
        piece += (self._rest * (size // len(self._rest) + 1))[: size - len(piece)]
        self.taken += len(piece)
        return piece


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"P6 40 30 255\n", 3600),
        (b"P5 # a comment\n40 30 65535\n", 2400),
        (b"P4 40 30\n", 150),
        (b"PF 40 30 -1\n", 14_400),
    ],
)
def test_an_endless_stream_is_read_only_as_far_as_its_header_says(head, length):
    stream = Endless(head)
    data = read_stream(stream)
    assert len(data) <= len(head) + length + HEAD
    (frame,) = open_picture(data).frames
    assert frame.pixels.shape[:2] == (30, 40)


def test_an_endless_stream_that_declares_too_much_is_refused_before_it_is_read():
    stream = Endless(b"P6 100000 100000 255\n")
    with pytest.raises(ImageError, match="limit"):
        read_stream(stream)
    assert stream.taken < 1000


def test_an_endless_stream_of_pictures_is_refused():
    stream = Endless(b"", b"P6 40 30 255\n" + bytes(3600))
    with pytest.raises(ImageError, match="limit"):
        read_stream(stream, max_pixels=20_000)
    assert stream.taken < 200_000


def test_an_endless_stream_in_another_format_is_refused(monkeypatch):
    monkeypatch.setattr("hasn_cli.images.stream.MAX_FILE_BYTES", 10 * MIB)
    stream = Endless(saved("PNG"))
    with pytest.raises(ImageError, match="stream"):
        read_stream(stream)
    assert stream.taken < 12 * MIB
    assert len(read_stream(Endless(b"no picture"))) == HEAD


def test_the_command_reads_stdin_only_as_far_as_the_header_says(monkeypatch):
    from hasn_cli.batch.process import open_source
    from hasn_cli.batch.settings import Settings

    stream = Endless(b"P6 40 30 255\n")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
    shown, _ = open_source("-", Settings(), "stdin")
    assert shown.size == (30, 40)
    assert stream.taken < 4000


def test_a_named_pipe_that_never_ends_is_read_as_far_as_its_header_says(tmp_path):
    from hasn_cli.batch.process import open_source
    from hasn_cli.batch.settings import Settings

    path = tmp_path / "pipe"
    os.mkfifo(path)

    def feed() -> None:
        with suppress(OSError), path.open("wb") as pipe:
            pipe.write(b"P6 40 30 255\n")
            while True:
                pipe.write(bytes(1 << 16))

    writer = threading.Thread(target=feed, daemon=True)
    writer.start()
    shown, _ = open_source(path, Settings(), "pipe")
    assert shown.size == (30, 40)
    writer.join(300)
    assert not writer.is_alive()
    writer = threading.Thread(target=feed, daemon=True)
    writer.start()
    assert open_picture(path).size == (30, 40)
    writer.join(300)
    assert not writer.is_alive()


BEGINNINGS = {
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\0\0\0\x10" * 2,
    "gif": b"GIF89a\1\0\1\0",
}


@pytest.mark.parametrize("start", BEGINNINGS.values(), ids=BEGINNINGS)
def test_a_sparse_file_of_many_gigabytes_is_not_read(bounded, tmp_path, start):
    path = tmp_path / "sparse"
    path.write_bytes(start)
    os.truncate(path, 25 * 2**30)
    refused(bounded.read(path), "GiB")


def test_raw_samples_beyond_those_declared_are_not_read(bounded, tmp_path):
    path = tmp_path / "sparse"
    path.write_bytes(b"P6 40 30 255\n")
    os.truncate(path, 25 * 2**30)
    read_well(bounded.read(path), (30, 40))
    path.write_bytes(b"P6 9000 9000 255\n1234")
    refused(bounded.read(path, memory=100 * MIB), "truncated")


def test_real_photographs_are_read(bounded):
    for name in ("rocket.jpg", "color.png", "multipage_rgb.tif"):
        if (SKIMAGE / name).exists():
            read_well(bounded.read((SKIMAGE / name).read_bytes()))


def test_a_damaged_type_of_an_item_in_heic_does_not_crash_the_library(bounded):
    data = written(picture(photo(), metadata=full_metadata()), "heic")
    assert data.count(b"application/rdf+xml") == 1
    read_well(bounded.read(data), (48, 64))
    refused(bounded.read(data.replace(b"application/rdf+xml", b"appl\xff\xff\xffion/rdf+xml")), "damaged")
