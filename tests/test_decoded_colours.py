"""The colour space of decoded pixels is read from the file and never assumed."""

from __future__ import annotations

import base64
import io
import struct
import subprocess
from shutil import which

import imagecodecs
import numpy as np
import pytest
import tifffile
from pictures import WIDE_GAMUT, encoded, photo, picture
from PIL import Image

from hasn_cli.errors import ImageError
from hasn_cli.images import Metadata, open_picture
from hasn_cli.images.codecs.boxes import box
from hasn_cli.images.codecs.jxl_header import read_header, with_floats
from hasn_cli.images.color import code_points, profile_of, to_dtype, to_srgb

EIGHT = np.dtype(np.uint8)


def in_srgb(data: bytes) -> np.ndarray:
    """A file's pixels as 8-bit sRGB."""
    found = open_picture(data)
    pixels = next(iter(found.frames)).pixels
    profile = profile_of(found.metadata, pixels.shape[2])
    return to_dtype(to_srgb(pixels, profile) if profile else pixels, EIGHT).astype(int)


def needs(tool: str) -> None:
    if which(tool) is None:
        pytest.skip(f"{tool} is not installed")


def jpeg_xl(tmp_path, *arguments: str, profile: bytes | None = None, distance: str = "1") -> bytes:
    """The photo, encoded by cjxl."""
    needs("cjxl")
    source, target = tmp_path / "in.png", tmp_path / "out.jxl"
    Image.fromarray(photo(128, 160)).save(source, icc_profile=profile)
    subprocess.run(["cjxl", source, target, "-d", distance, *arguments], check=True, capture_output=True)
    return target.read_bytes()


# encoded by cjxl 0.7: a flat 24×16 picture in Adobe RGB (40, 120, 200), distance 1: XYB, with a profile
LOSSY_WITH_PROFILE = base64.b64decode(
    "/woDQQpvFQNyYiKAsJJtU7S0Ic3mfD9fIszgAvfys0UMtaUXNOw2YIw0QMw0YHzvtyUsaD8lFYlMDBaZED/3wyfZOACQOWzO5Sd4"
    "i/tSOeYhgos4BujAZ6KhVSEzOQqa+GwGk44/5DtIfApLQcs+LQoKHT6b0CA1KWSWSl6QpwMSfCiwUEBL+tCCAgpx4MOGEANSTCiQ"
    "YaGSD8JJJ5vBY3H4JBaH82WOTtgw4MGCAx8Snncnn4F/zc9jzR2J3z3Si+EthnsA+k0JX4uHi6aBAYvhfCoouwIS9TD+cEBs1wAA"
    "EogCAOgAXeUSAAAVKqOMG7yc6/nyQ4fFtI3rDG21bWFJosg4NkkncEgSSzDYZWPADB4w8z7Ya40cgAyVoUAlCQ=="
)
LOSSLESS_WITH_PROFILE = base64.b64decode(
    "/woDQQhvFQNyYiKAsJJtU7S0Ic3mfD9fIszgAvfys0UMtaUXNOw2YIw0QMw0YHzvtyUsaD8lFYlMDBaZED/3wyfZOACQOWzO5Sd4"
    "i/tSOeYhgos4BujAZ6KhVSEzOQqa+GwGk44/5DtIfApLQcs+LQoKHT6b0CA1KWSWSl6QpwMSfCiwUEBL+tCCAgpx4MOGEANSTCiQ"
    "YaGSD8JJJ5vBY3H4JBaH82WOTtgw4MGCAx8Snncnn4F/zc9jzR2J3z3Si+EthnsA+k0JX4uHi6aBAYvhfCoouwIS9TD+cEBs1wAI"
    "AgEAYABLGIsVAJQXY1DeBSIAKBwLAEighADoQSA="
)
LOSSY_P3 = base64.b64decode(
    "/woDQUImNwIAEogCAOgAXeUSAAAVKqOMG7yc6/nyQ4fFtI3rDG21bWFJosg4NkkncEgSazDYZWMwBg9g5iGw1wbOQYbKUKCSBA=="
)


def test_a_lossy_jpeg_xl_with_a_profile_is_converted_from_linear_light():
    flat = np.full((16, 24, 3), (40, 120, 200), np.uint8)
    wanted = to_srgb(flat, WIDE_GAMUT).astype(int)
    assert np.abs(in_srgb(LOSSY_WITH_PROFILE) - wanted).max() <= 3


def test_a_lossy_jpeg_xl_of_display_p3_keeps_it():
    flat = np.full((16, 24, 3), (40, 120, 200), np.uint8)
    found = open_picture(LOSSY_P3)
    assert found.metadata.cicp == bytes([12, 13, 0, 1])
    assert np.abs(next(iter(found.frames)).pixels.astype(int) - flat).max() <= 3
    written = encoded(found, "tiff")
    assert np.abs(in_srgb(written) - in_srgb(LOSSY_P3)).max() <= 1


def test_a_lossless_jpeg_xl_with_a_profile_is_refused_because_it_cannot_be_read():
    with pytest.raises(ImageError, match="profile") as caught:
        open_picture(LOSSLESS_WITH_PROFILE)
    assert "djxl" in str(caught.value.hint)


@pytest.mark.parametrize("height", [16, 24, 200, 513, 3000, 9000, 70_000, 260_000])
@pytest.mark.parametrize("width", [8, 33, 600, 10_000])
def test_a_header_of_any_size_can_state_floats(height, width):
    bits = _Writer()
    bits.size(height, width)
    bits.put((0, 1), (0, 1), (0, 1), (0, 2))  # not all defaults; no extra fields; 8 bits
    bits.put((1, 1), (0, 2), (1, 1), (0, 1), (1, 1), (0, 2), (0, 2), (1, 1))
    stream = b"\xff\x0a" + bits.bytes() + b"frames"
    floats = read_header(with_floats(stream))
    assert (floats.height, floats.width, floats.floats, floats.bits) == (height, width, True, 32)
    assert floats.xyb and floats.color.by_profile
    assert with_floats(stream).endswith(b"frames")


class _Writer:
    def __init__(self) -> None:
        self.value = self.length = 0

    def put(self, *fields: tuple[int, int]) -> None:
        for number, count in fields:
            self.value |= number << self.length
            self.length += count

    def size(self, height: int, width: int) -> None:
        small = height % 8 == width % 8 == 0 and max(height, width) <= 256
        self.put((int(small), 1))
        for index, side in enumerate((height, width)):
            if index:
                self.put((0, 3))
            if small:
                self.put((side // 8 - 1, 5))
            else:
                choice = next(n for n, bits in enumerate((9, 13, 18, 30)) if side <= 1 << bits)
                self.put((choice, 2), (side - 1, (9, 13, 18, 30)[choice]))

    def bytes(self) -> bytes:
        return self.value.to_bytes(-(-self.length // 8), "little")


@pytest.mark.parametrize(
    "space",
    [
        "RGB_D65_SRG_Rel_SRG",
        "RGB_D65_SRG_Rel_Lin",
        "RGB_D65_DCI_Rel_SRG",
        "RGB_D65_202_Rel_Lin",
        "RGB_D65_202_Rel_g0.5",
    ],
)
@pytest.mark.parametrize("distance", ["0", "0.5"])
def test_jpeg_xl_of_any_named_colour_space_is_decoded_as_by_djxl(tmp_path, space, distance):
    data = jpeg_xl(tmp_path, "-x", f"color_space={space}", distance=distance)
    shown = tmp_path / "shown.png"
    subprocess.run(["djxl", tmp_path / "out.jxl", shown], check=True, capture_output=True)
    difference = np.abs(in_srgb(data) - in_srgb(shown.read_bytes()))
    assert difference.mean() < 1


@pytest.mark.parametrize("distance", ["0.3", "1"])
def test_a_wide_gamut_survives_in_lossy_jpeg_xl(tmp_path, distance):
    data = jpeg_xl(tmp_path, profile=WIDE_GAMUT, distance=distance)
    original = to_srgb(photo(128, 160), WIDE_GAMUT).astype(int)
    assert np.abs(in_srgb(data) - original).mean() < 4


@pytest.mark.parametrize("primaries", [1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 22])
@pytest.mark.parametrize("transfer", [1, 2, 4, 5, 6, 8, 13, 17])
def test_code_points_other_than_srgb_become_a_profile(primaries, transfer):
    named = code_points(primaries, transfer)
    is_srgb = primaries in (1, 2) and transfer in (1, 2, 6, 13)
    assert (named is None) == is_srgb
    assert (profile_of(Metadata(cicp=named)) is None) == is_srgb


@pytest.mark.parametrize("points", [(1, 9), (3, 13), (99, 13), (1, 200)])
def test_unknown_code_points_are_refused(points):
    with pytest.raises(ValueError, match="not supported"):
        code_points(*points)


@pytest.mark.parametrize(("primaries", "transfer"), [(12, 13), (9, 1), (1, 8), (4, 4)])
def test_an_avif_of_any_named_colour_space_gets_a_profile(tmp_path, primaries, transfer):
    data = bytes(imagecodecs.avif_encode(photo(), level=100, primaries=primaries, transfer=transfer))
    found = open_picture(data)
    assert found.metadata.cicp == bytes([primaries, transfer, 0, 1])
    assert np.abs(in_srgb(encoded(found, "tiff")) - in_srgb(data)).max() <= 1
    assert np.abs(in_srgb(encoded(found, "bmp")) - in_srgb(data)).max() <= 1


def ycc(rgb: np.ndarray) -> np.ndarray:
    r, g, b = (rgb[..., index].astype(float) for index in range(3))
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return np.clip(np.rint(np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], axis=2)), 0, 255).astype(
        np.uint8
    )


def test_a_jpeg_2000_of_sycc_becomes_rgb():
    stream = imagecodecs.jpeg2k_encode(ycc(photo()), codecformat="j2k", reversible=True, mct=False)
    header = box(b"ihdr", struct.pack(">IIHBBBB", 48, 64, 3, 7, 7, 0, 0))
    header += box(b"colr", struct.pack(">BBBI", 1, 0, 0, 18))
    data = b"\0\0\0\x0cjP  \r\n\x87\n" + box(b"ftyp", b"jp2 \0\0\0\0jp2 ") + box(b"jp2h", header)
    found = next(iter(open_picture(data + box(b"jp2c", bytes(stream))).frames)).pixels
    assert np.abs(found.astype(int) - photo()).max() <= 2


@pytest.mark.parametrize("enumerated", [14, 20, 21, 1])
def test_a_jpeg_2000_with_an_unknown_colour_space_is_refused(enumerated):
    data = encoded(picture(photo()), "jpeg2000")
    at = data.index(b"colr") + 7
    with pytest.raises(ImageError, match="colour space"):
        open_picture(data[:at] + struct.pack(">I", enumerated) + data[at + 4 :])


def test_a_tiff_in_video_range_becomes_full_range():
    full = ycc(photo())
    video = full.astype(float)
    video[..., 0] = 16 + video[..., 0] * 219 / 255
    video[..., 1:] = 128 + (video[..., 1:] - 128) * 112 / 127
    reference = (532, 5, 6, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1))
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.rint(video).astype(np.uint8), photometric="ycbcr", extratags=[(*reference, True)],
                     metadata=None)  # fmt: skip
    found = next(iter(open_picture(buffer.getvalue()).frames)).pixels
    assert np.abs(found.astype(int) - photo()).max() <= 4


def test_a_tiffs_own_primaries_count_if_it_has_no_profile():
    white = (318, 5, 2, (3127, 10000, 3290, 10000), True)
    corners = (319, 5, 6, (68, 100, 32, 100, 265, 1000, 69, 100, 15, 100, 6, 100), True)
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, photo(), photometric="rgb", extratags=[white, corners], metadata=None)
    p3 = Metadata(cicp=bytes([12, 13, 0, 1]))
    expected = to_srgb(photo(), profile_of(p3) or b"").astype(int)
    assert np.abs(in_srgb(buffer.getvalue()) - expected).mean() < 4
    assert np.abs(in_srgb(buffer.getvalue()) - photo()).mean() > 1


def bmp(space: int, profile: bytes = b"", endpoints: tuple[int, ...] = (0,) * 12) -> bytes:
    """A BMP of version 5 whose header names its colours."""
    pixels = photo()[::-1, :, ::-1].tobytes()
    offset = 124 + len(pixels)
    header = struct.pack(
        "<LllHHLLllLL4LL12l", 124, 64, 48, 1, 24, 0, len(pixels), 0, 0, 0, 0, 0, 0, 0, 0, space, *endpoints
    )
    header += struct.pack("<4L", 4, offset if profile else 0, len(profile), 0)
    return b"BM" + struct.pack("<LHHL", 14 + offset + len(profile), 0, 0, 138) + header + pixels + profile


def test_a_bmps_profile_counts():
    found = open_picture(bmp(int.from_bytes(b"MBED", "big"), WIDE_GAMUT))
    assert found.metadata.icc == WIDE_GAMUT
    np.testing.assert_array_equal(in_srgb(encoded(found, "bmp")), to_srgb(photo(), WIDE_GAMUT))
    assert open_picture(bmp(int.from_bytes(b"sRGB", "big"))).metadata == Metadata()


def test_a_bmps_own_primaries_count():
    corners = []
    for x, y in ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06)):
        weight = {0.64: 0.2126, 0.3: 0.7152, 0.15: 0.0722}[x]
        corners += [weight * x / y, weight, weight * (1 - x - y) / y]
    linear = tuple(round(value * 2**30) for value in corners) + (1 << 16,) * 3
    light = np.where(photo() / 255 <= 0.0031308, photo() / 255 * 12.92, 1.055 * (photo() / 255) ** (1 / 2.4) - 0.055)
    assert np.abs(in_srgb(bmp(0, endpoints=linear)) - light * 255).mean() < 1


def test_a_gifs_profile_counts():
    image = Image.fromarray(photo()).quantize(64)
    buffer = io.BytesIO()
    image.save(buffer, "GIF")
    data = buffer.getvalue()
    at = data.index(b"\x2c", 13 + 3 * 64)
    blocks = b"".join(
        bytes([len(WIDE_GAMUT[n : n + 255])]) + WIDE_GAMUT[n : n + 255] for n in range(0, len(WIDE_GAMUT), 255)
    )
    found = in_srgb(data[:at] + b"\x21\xff\x0bICCRGBG1012" + blocks + b"\0" + data[at:])
    expected = to_srgb(np.asarray(image.convert("RGB")), WIDE_GAMUT)
    np.testing.assert_array_equal(found, expected)
