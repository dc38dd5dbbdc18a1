"""Several pictures in one file or pipe: all are read if the format allows it; otherwise an error counts them."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import MAKER_NOTE, exif, photo, picture
from PIL import Image

from hasn_cli.cli.main import run
from hasn_cli.errors import ImageError
from hasn_cli.images import EncodeOptions, Frame, Metadata, check_can_hold, open_picture, write_picture
from hasn_cli.images.sequence import pictures_in


def encoded(shown, format: str, options: EncodeOptions | None = None) -> bytes:
    stream = io.BytesIO()
    write_picture(shown, stream, format, options or EncodeOptions())
    return stream.getvalue()


def pnm(pixels: np.ndarray) -> bytes:
    return encoded(picture(pixels), "ppm")


PAGES = [
    photo(20, 30),
    photo(11, 7, channels=1),
    photo(9, 10, channels=4),
    photo(8, 8, channels=2, dtype=np.uint16),
    photo(5, 6, dtype=np.uint16),
]


@pytest.mark.parametrize("between", [b"", b"\n", b" \r\n"])
def test_all_pictures_of_a_pnm_stream_are_read_and_written(between):
    found = open_picture(between.join(pnm(pixels) for pixels in PAGES))
    assert (found.frame_count, found.paged) == (5, True)
    assert [shape.size for shape in found.shapes] == [pixels.shape[:2] for pixels in PAGES]
    again = open_picture(encoded(found, "ppm"))
    for shown in (found, again):
        for frame, wanted in zip(shown.frames, PAGES, strict=True):
            np.testing.assert_array_equal(frame.pixels, wanted)


def test_netpbm_formats_may_be_mixed():
    bits = b"P4\n# a comment\n10 3\n" + bytes([0b10101010, 0b11000000] * 3)
    plain = b"P2\n2 2\n9\n0 3\n6 9\n"
    found = open_picture(bits + pnm(PAGES[0]) + bits + plain + b"what follows plain text means nothing")
    assert [shape.size for shape in found.shapes] == [(3, 10), (20, 30), (3, 10), (2, 2)]
    frames = [frame.pixels for frame in found.frames]
    np.testing.assert_array_equal(frames[0], frames[2])
    np.testing.assert_array_equal(frames[3][..., 0], [[0, 85], [170, 255]])


@pytest.mark.parametrize("junk", [b"\0" * 100, b"\n", b"junk", b"P", b"P6", b"P6 of something", b"P9 3 3 255 "])
def test_other_data_after_a_netpbm_picture_is_ignored(junk):
    found = open_picture(pnm(PAGES[0]) + junk)
    assert (found.frame_count, found.paged) == (1, False)


def test_a_truncated_stream_names_the_picture():
    whole = pnm(PAGES[0])
    cut = open_picture(whole + whole + whole[:-1])
    assert cut.frame_count == 3
    with pytest.raises(ImageError, match="picture 3 is truncated"):
        list(cut.frames)
    np.testing.assert_array_equal(next(iter(cut.first().frames)).pixels, PAGES[0])
    with pytest.raises(ImageError, match="the file is truncated"):
        list(open_picture(whole[:-1]).frames)


def test_a_stream_of_pfm_becomes_a_tiff():
    pages = [photo(6, 7, dtype=np.float32), photo(5, 3, channels=1, dtype=np.float32)]
    found = open_picture(b"".join(encoded(picture(pixels), "pfm") for pixels in pages))
    with pytest.raises(ImageError, match="cannot hold its 2 pages"):
        check_can_hold(found, found.size, "pfm", EncodeOptions())
    for frame, wanted in zip(open_picture(encoded(found, "tiff")).frames, pages, strict=True):
        np.testing.assert_array_equal(frame.pixels, wanted)


def test_a_pnm_pipe_in_gives_a_pnm_pipe_out(hasn):
    stream = b"".join(pnm(np.roll(photo(16, 20), 3 * index, axis=1)) for index in range(3))
    result = hasn("upscale", "-", "-s", 2, "-o", "-", stdin=stream)
    found = open_picture(result.out)
    assert (found.format, found.frame_count, found.size) == ("ppm", 3, (32, 40))
    for frame, index in zip(found.frames, range(3), strict=True):
        back = np.asarray(Image.fromarray(frame.pixels).resize((20, 16), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(back - np.roll(photo(16, 20), 3 * index, axis=1)).mean() < 6


@pytest.mark.parametrize("depth", [8, 16])
def test_pam_channels_are_alpha_only_if_they_are_named_so(depth):
    dtype = np.uint8 if depth == 8 else np.uint16
    inks = np.zeros((3, 4, 4), dtype)
    inks[..., 0] = np.iinfo(dtype).max
    head = f"P7\nWIDTH 4\nHEIGHT 3\nDEPTH 4\nMAXVAL {np.iinfo(dtype).max}\nTUPLTYPE %s\nENDHDR\n"
    body = inks.astype(inks.dtype.newbyteorder(">")).tobytes()
    cyan, unnamed, alpha = (open_picture((head % kind).encode() + body) for kind in ("CMYK", "RGB", "RGB_ALPHA"))
    assert (cyan.channels, unnamed.channels, alpha.channels) == (3, 3, 4)
    assert (next(iter(cyan.frames)).pixels == np.array([0, 1, 1], dtype) * np.iinfo(dtype).max).all()
    assert (next(iter(unnamed.frames)).pixels == inks[..., :3]).all()
    assert (next(iter(alpha.frames)).pixels == inks).all()


def start(*options: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hasn_cli", "upscale", "-", "-o", "-", "-s", "2", *options]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("format", ["png", "jpeg", "ppm", "webp", "bmp"])
def test_each_picture_of_a_pipe_is_enlarged_in_turn(format, hasn):
    def enlarged(data: bytes) -> bytes:
        return hasn("upscale", "-", "-o", "-", "-s", 2, stdin=data).out

    small, other = (encoded(picture(photo(*size)), format) for size in ((16, 20), (9, 12)))
    alone = enlarged(small), enlarged(other)
    assert alone[0] and alone[1]
    assert enlarged(small + other + small + b"something else") == alone[0] + alone[1] + alone[0]


def test_the_first_result_of_a_pipe_comes_before_the_pipe_ends():
    one = encoded(picture(photo(16, 20)), "png")
    process = start()
    assert process.stdin and process.stdout
    process.stdin.write(one + one[:200])
    process.stdin.flush()
    assert process.stdout.read(8) == b"\x89PNG\r\n\x1a\n"
    process.stdin.write(one[200:])
    process.stdin.close()
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert rest.count(b"IEND") == 2


def test_a_broken_picture_in_a_pipe_is_named():
    one = encoded(picture(photo(16, 20)), "png")
    process = start()
    out, err = process.communicate(one + one[:-30], timeout=300)
    assert (process.returncode, out.count(b"IEND")) == (1, 1)
    assert b"picture 2" in err


@given(st.lists(st.sampled_from(["png", "jpeg", "ppm", "bmp"]), min_size=1, max_size=4), st.integers(1, 400))
def test_a_pipe_is_split_where_its_pictures_end(formats, piece):
    files = [encoded(picture(photo(5 + i, 7)), format) for i, format in enumerate(formats)]

    class Slow(io.BytesIO):
        def read1(self, size=-1):
            return super().read1(min(size, piece))

    assert list(pictures_in(Slow(b"".join(files)))) == files


STREAMS = ["png", "jpeg", "gif", "webp", "bmp", "avif", "jpegxl", "jpeg2000", "heic"]


@pytest.mark.parametrize("format", STREAMS)
def test_concatenated_files_are_counted_and_refused(format):
    one = encoded(picture(photo()), format)
    other = encoded(picture(photo(20, 30)), "png")
    for data, count in ((one * 3, 3), (one + other, 2), (one + other + one, 3)):
        found = open_picture(data)
        with pytest.raises(ImageError, match=f"contains {count} pictures") as caught:
            check_can_hold(found, found.size, "png", EncodeOptions())
        assert "--first-frame" in caught.value.hint
        check_can_hold(found, found.size, "png", EncodeOptions(first_frame=True))
        np.testing.assert_array_equal(next(iter(found.frames)).pixels, next(iter(open_picture(one).frames)).pixels)


def test_an_animation_after_a_picture_counts_as_one_picture(tmp_path):
    frames = [Frame(np.roll(photo(), index, axis=0), 50.0) for index in range(3)]
    film = encoded(picture(photo(), frames=frames, frame_count=3, loop=0), "gif")
    assert open_picture(film + film).following == 1
    assert open_picture(encoded(picture(photo()), "png") + film).following == 1


MP4 = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 512, b"isom") + struct.pack(">I4s", 108, b"mdat") + bytes(100)


@pytest.mark.parametrize(
    "junk", [b"\0" * 64, b"\xff" * 9, b"junk", MP4, b"\xff\xd8", b"BMX", b"P6 2 2 255 aaaaaaaaaaaa"]
)
@pytest.mark.parametrize("format", STREAMS)
def test_other_data_after_a_file_is_ignored(format, junk):
    if format in ("avif", "heic", "jpegxl", "jpeg2000"):
        junk = MP4[20:]  # anything else would be a broken box
    assert open_picture(encoded(picture(photo()), format) + junk).following == 0


def test_the_pictures_that_belong_to_a_jpeg_are_not_counted():
    multiple = io.BytesIO()
    shown = [Image.fromarray(photo()), Image.fromarray(photo()[::-1])]
    shown[0].save(multiple, "MPO", save_all=True, append_images=shown[1:])
    assert multiple.getvalue().count(b"MPF\0") == 1
    assert open_picture(multiple.getvalue()).following == 0
    notes = encoded(picture(photo(), metadata=Metadata(exif=exif(thumbnail=False))), "jpeg")
    preview = encoded(picture(photo(24, 32)), "jpeg")
    assert MAKER_NOTE in notes
    assert open_picture(notes + preview).following == 0
    assert open_picture(notes + notes).following == 1


def test_the_command_counts_the_pictures_and_takes_the_first_on_request(tmp_path, capsys):
    source, target = tmp_path / "three.png", tmp_path / "out.png"
    source.write_bytes(encoded(picture(photo(16, 20)), "png") * 3)
    command = ["upscale", str(source), "-s", "2", "-o", str(target), "-q"]
    assert run(command) == 1
    said = capsys.readouterr().err
    assert "contains 3 pictures" in said and "--first-frame" in said
    assert not target.exists()
    assert run([*command, "--first-frame"]) == 0
    assert open_picture(target).size == (32, 40)
