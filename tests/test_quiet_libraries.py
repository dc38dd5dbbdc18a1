"""Only our own messages appear on stderr, even if a C library wants to complain about a file."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from pictures import exif, interlaced, photo, picture
from PIL import Image

from hasn_cli.images import EncodeOptions, Metadata, open_picture, write_picture


def encoded(shown, format="png") -> bytes:
    buffer = io.BytesIO()
    write_picture(shown, buffer, format, EncodeOptions())
    return buffer.getvalue()


def png_of(*pieces: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """An 8-bit RGB PNG with its image data in these pieces."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 2, 0, 0, 0)),
        *extra,
        *((b"IDAT", p) for p in pieces),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


PACKED = zlib.compress(b"".join(b"\0" + row.tobytes() for row in photo()))


def odd_tiff() -> bytes:
    buffer = io.BytesIO()
    extra = [(65123, 2, 5, "odd!", True), (33432, 2, 0, "", True)]
    tifffile.imwrite(buffer, photo(), photometric="rgb", extratags=extra, metadata=None)
    return buffer.getvalue()


def sloppy_jpeg() -> bytes:
    """A JPEG with bytes between its segments, extra bytes at its end, and an invalid maker note."""
    data = encoded(picture(photo(), metadata=Metadata(exif=exif(1))), "jpeg")
    return data[:-2] + b"\x12\x34\xff\xd9" + b"trailing bytes that nobody knows"


SLOPPY = {
    "behind.png": png_of(PACKED + b"more"),
    "pieces.png": png_of(PACKED[:100], PACKED[100:] + b"more", b"and more"),
    "chunks.png": png_of(
        PACKED, extra=((b"gAMA", bytes(4)), (b"sRGB", b"\x09"), (b"gAMA", bytes(3)), (b"tEXt", b"\0"))
    ),
    "profile.png": png_of(PACKED, extra=((b"iCCP", b"x\0\0" + zlib.compress(bytes(600))),)),
    "passes.png": interlaced(photo(), 8),
    "odd.tif": odd_tiff(),
    "sloppy.jpg": sloppy_jpeg(),
    "film.webp": encoded(picture(photo()), "webp") + b"more",
    "large.jxl": bytes(imagecodecs.jpegxl_encode(photo(), lossless=True)) + b"more",
    "noise.avif": encoded(picture(photo()), "avif"),
    "picture.jp2": encoded(picture(photo()), "jpeg2000"),
    "picture.heic": encoded(picture(photo()), "heic"),
    "picture.gif": encoded(picture(photo()), "gif") + b"more",
}
HOPELESS = {f"cut.{name.partition('.')[2]}": data[: len(data) * 2 // 3] for name, data in SLOPPY.items() if "." in name}


@pytest.mark.parametrize("name", SLOPPY)
def test_readers_let_no_library_write_to_stderr(name, capfd):
    found = open_picture(SLOPPY[name])
    for frame in found.frames:
        assert frame.pixels.shape[:2] == (48, 64)
    encoded(found, found.format)
    assert capfd.readouterr() == ("", "")


def run(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "hasn_cli",
        "upscale",
        str(folder),
        "-s",
        "2",
        "-o",
        str(folder / "out"),
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_only_our_own_lines_are_on_stderr_for_a_folder_of_sloppy_and_broken_files(tmp_path):
    for name, data in (SLOPPY | HOPELESS).items():
        (tmp_path / name).write_bytes(data)
    done = run(tmp_path, "-q")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines and all(line.startswith(("error: ", "hint: ")) for line in lines), done.stderr
    assert not [name for name in SLOPPY if name in done.stderr]


def test_messages_that_a_library_writes_to_the_descriptor_are_discarded():
    code = (
        "import os, sys; from hasn_cli import __main__;"
        "__main__._keep_stderr_to_ourselves(); os.write(2, b'library'); print('ours', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.stderr == "ours\n"


def test_damaged_data_is_never_accepted_as_complete(capfd):
    broken = bytearray(PACKED)
    broken[len(broken) // 2] ^= 0xFF
    image = np.asarray(Image.fromarray(photo()))
    with pytest.raises(Exception, match="broken"):
        list(open_picture(png_of(bytes(broken))).frames)
    np.testing.assert_array_equal(next(iter(open_picture(SLOPPY["pieces.png"]).frames)).pixels, image)
    assert capfd.readouterr() == ("", "")
