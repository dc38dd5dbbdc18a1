"""A damaged file gives a picture or an `ImageError`, within limits of time and memory, whatever the damage."""

from __future__ import annotations

import io
import random
import resource
import struct
import time
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from format_table import foreign_file
from pictures import SKIMAGE, animation, full_metadata, interlaced, photo, picture
from PIL import Image

from hasn_cli.errors import HasnError, ImageError
from hasn_cli.images import FORMATS, EncodeOptions, Frame, open_picture, write_picture

MAX_PIXELS = 4_000_000
MAX_SECONDS = 10.0
ROUNDS = {"quick": 60, "long": 1000}


def written(shown, format: str) -> bytes:
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, EncodeOptions(lossless=True))
    return buffer.getvalue()


def seeds(format: str) -> list[bytes]:
    """Files to start from: one with everything that the format can hold, and real ones."""
    entry = FORMATS[format]
    full = {"metadata": full_metadata()}
    files = [written(picture(photo(), **full), format), written(picture(photo(9, 7, channels=1)), format)]
    if entry.alpha:
        files.append(written(picture(photo(channels=4), **full), format))
    if entry.deep:
        files.append(written(picture(photo(dtype=np.uint16)), format))
    if entry.animation:
        files.append(written(animation(), format))
    if entry.pages:
        pages = [Frame(photo()), Frame(photo(5, 6, channels=1))]
        files.append(written(picture(photo(), frames=pages, frame_count=2, paged=True), format))
    real = {
        "jpeg": ["rocket.jpg"],
        "png": ["horse.png", "chessboard_GRAY.png", "phantom.png"],
        "gif": ["no_time_for_that_tiny.gif"],
        "tiff": ["multipage.tif", "multipage_rgb.tif"],
    }
    files += [(SKIMAGE / name).read_bytes() for name in real.get(format, [])]
    return [*files, foreign_file(format), *others(format)]


def others(format: str) -> list[bytes]:
    """Files that this program reads but never writes."""
    image = Image.fromarray(photo())
    kinds: dict[str, list[tuple[Image.Image, dict[str, object]]]] = {
        "jpeg": [(image, {"progressive": True}), (image.convert("CMYK"), {}), (image.convert("L"), {})],
        "png": [(image.quantize(16), {"bits": 4, "transparency": 3}), (image.convert("1"), {})],
        "tiff": [
            (image, {"compression": "tiff_lzw"}),
            (image, {"compression": "jpeg"}),
            (image.convert("1"), {"compression": "group4"}),
            (image.convert("CMYK"), {}),
            (image.quantize(16), {}),
        ],
        "bmp": [(image.quantize(16), {}), (image.convert("1"), {})],
        "gif": [(image.quantize(8), {"transparency": 3})],
        "tga": [(image.quantize(16), {}), (image, {})],
        "jpeg2000": [(image, {"irreversible": True, "quality_layers": [20]}), (image.convert("LA"), {})],
        "webp": [(image, {"quality": 50}), (image.convert("RGBA"), {"quality": 50})],
    }
    files = []
    for shown, options in kinds.get(format, []):
        buffer = io.BytesIO()
        shown.save(buffer, format.upper(), **options)
        files.append(buffer.getvalue())
    if format == "png":
        files += [interlaced(photo(), 8), interlaced(photo(9, 7, dtype=np.uint16), 16)]
    if format == "avif":
        files.append(bytes(imagecodecs.avif_encode(photo(dtype=np.uint16) >> 6, level=90, bitspersample=10)))
    if format == "ppm":
        files += [b"P1\n# one\n3 2\n101\n010\n", b"P4 9 2\n\xff\x80\x55\0", b"P3 2 1 99 1 2 3 4 5 99\n"]
    return files


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A file with damage as it happens by accident or on purpose."""
    broken = bytearray(data)
    kind = dice.randrange(8)
    # half of all damage is in the header, which matters most
    reach = min(len(data), 600) if dice.random() < 0.5 else len(data)
    at = dice.randrange(reach)
    if kind == 0:
        for _ in range(dice.randint(1, 20)):
            broken[dice.randrange(reach)] = dice.randrange(256)
    elif kind == 1:
        broken[at] ^= 1 << dice.randrange(8)
    elif kind == 2:
        del broken[at:]
    elif kind == 3:
        del broken[at : at + dice.randint(1, 64)]
    elif kind == 4:
        broken[at:at] = dice.randbytes(dice.randint(1, 64))
    elif kind == 5:
        broken[at : at + 4] = dice.choice(
            [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\x80\0\0\0"]
        )
    elif kind == 6:
        other = dice.randrange(len(data))
        length = dice.randint(1, 256)
        broken[at : at + length] = data[other : other + length]
    else:
        broken[at : at + 512] = bytes(min(512, len(data) - at))
    return bytes(broken)


def with_true_checksums(data: bytes) -> bytes:
    """A PNG with corrected checksums, so that damage is not found by them."""
    mended = bytearray(data)
    at = 8
    while at + 12 <= len(mended):
        (length,) = struct.unpack_from(">I", mended, at)
        end = at + 12 + length
        if end > len(mended):
            break
        struct.pack_into(">I", mended, end - 4, zlib.crc32(mended[at + 4 : end - 4]))
        at = end
    return bytes(mended)


def attempt(data: bytes, format: str, folder: Path) -> bool:
    """Read a file and write it again. Returns whether it was a picture.

    Raises:
        AssertionError: it took too long.
        Exception: any error that is not meant for users.
    """
    target = folder / "out"
    start = time.perf_counter()
    try:
        shown = open_picture(data, max_pixels=MAX_PIXELS, name="fuzz")
        write_picture(shown, target, "tiff" if shown.paged else "png", EncodeOptions(first_frame=True))
    except HasnError as error:
        assert isinstance(error, ImageError), error
        assert str(error).startswith("fuzz: "), error
        assert "\n" not in str(error)
        assert list(folder.iterdir()) == []
        return False
    finally:
        seconds = time.perf_counter() - start
        target.unlink(missing_ok=True)
        assert seconds < MAX_SECONDS, f"{format}: {seconds:.1f} s"
    return True


def fuzz(format: str, rounds: int, seed: int, folder: Path) -> tuple[int, int]:
    """The number of damaged files that were refused, and of those that were still pictures."""
    dice = random.Random(f"{format} {seed}")
    files = seeds(format)
    for data in files:
        assert attempt(data, format, folder), f"an undamaged {format} is not read"
    pictures = 0
    for _ in range(rounds):
        data = mutated(dice.choice(files), dice)
        if format == "png" and dice.random() < 0.7:
            data = with_true_checksums(data)
        # kept for debugging; written in advance, because a codec may crash the process
        (folder.parent / f"fuzz-{format}.bin").write_bytes(data)
        pictures += attempt(data, format, folder)
    return rounds - pictures, pictures


@pytest.mark.parametrize("format", FORMATS)
def test_broken_files_give_an_error_or_a_picture_and_no_other_output(format, tmp_path, capfd):
    refused, _ = fuzz(format, ROUNDS["quick"], 0, tmp_path)
    assert refused > 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", FORMATS)
def test_thousands_of_broken_files_give_an_error_or_a_picture(format, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, pictures = fuzz(format, ROUNDS["long"], 1, tmp_path)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{format}: {refused} refused, {pictures} read, {grown:.0f} MiB more at the peak")
    assert refused > 0
    assert grown < 600
