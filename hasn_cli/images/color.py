"""Colour: sample ranges, transparency and ICC profiles."""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

import numpy as np

from hasn_cli.images.picture import Metadata, Pixels


def top(pixels: Pixels) -> float:
    """The value that means full white or full opacity: 255, 65535 or 1."""
    return 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)


def is_opaque(pixels: Pixels) -> bool:
    """Whether all H×W×C pixels are fully opaque. Without an alpha channel they are."""
    return pixels.shape[2] in (1, 3) or bool((pixels[..., -1] >= top(pixels)).all())


def opaque_if_unused(pixels: Pixels) -> Pixels:
    """H×W×(2 or 4) pixels, made opaque if alpha is 0 in every pixel: then the alpha channel is not used."""
    if pixels[..., -1].any():
        return pixels
    return np.concatenate([pixels[..., :-1], np.full_like(pixels[..., -1:], top(pixels))], axis=2)


def flatten(pixels: Pixels, background: tuple[int, int, int] | None) -> Pixels:
    """Remove the alpha channel: pixels are blended with `background`, an 8-bit RGB colour.

    Returns:
        H×W×1 if pixels and background are gray, otherwise H×W×3, of the same dtype.

    Raises:
        ValueError: a pixel is transparent and there is no background.
    """
    if pixels.shape[2] in (1, 3):
        return pixels
    if is_opaque(pixels):
        return pixels[..., :-1]
    if background is None:
        raise ValueError("it is transparent, and no background is given")
    full = top(pixels)
    color = np.asarray(background, np.float32) * (full / 255)
    if pixels.shape[2] == 2 and len(set(background)) == 1:
        color = color[:1]
    alpha = pixels[..., -1:].astype(np.float32) / full
    return rounded(pixels[..., :-1] * alpha + color * (1 - alpha), pixels.dtype)


def to_dtype(pixels: Pixels, dtype: np.dtype[Any]) -> Pixels:
    """Scale samples from the whole range of one dtype to that of another. The range of floats is [0, 1]."""
    if pixels.dtype == dtype:
        return pixels
    scale = (1.0 if dtype.kind == "f" else float(np.iinfo(dtype).max)) / top(pixels)
    return rounded(pixels * np.float32(scale), dtype)


def rounded(values: Pixels, dtype: np.dtype[Any]) -> Pixels:
    """Convert values to a dtype; for an integer dtype, round and clip them. Values of that dtype are returned as is."""
    if dtype.kind == "f" or values.dtype == dtype:
        return values.astype(dtype, copy=False)
    whole: Pixels = np.rint(values)
    return np.clip(whole, 0, np.iinfo(dtype).max, out=whole).astype(dtype)


def widen(samples: Pixels, bits: int) -> Pixels:
    """Stretch integer or boolean samples of `bits` bits (1 to 16) to the whole range of uint8, or uint16 above 8 bits.

    Raises:
        ValueError: a sample needs more bits than that.
    """
    dtype = np.uint8 if bits <= 8 else np.uint16
    full = np.iinfo(dtype).max
    largest = (1 << bits) - 1
    if largest == full:
        return samples.astype(dtype)
    if samples.max() > largest:
        raise ValueError("a sample is out of range")
    table: Pixels = np.rint(np.arange(largest + 1) * (full / largest)).astype(dtype)
    stretched: Pixels = table[samples.astype(np.uint16)]
    return stretched


def unpremultiply(pixels: Pixels) -> Pixels:
    """Divide the colour of H×W×(2 or 4) pixels by their alpha, with which it was multiplied. The dtype stays the same.

    If alpha is 0 everywhere but the colour is not, the colour was not multiplied by it: the alpha channel is not used.
    """
    full = top(pixels)
    if not pixels[..., -1].any() and pixels.any():
        return opaque_if_unused(pixels)
    alpha = pixels[..., -1:].astype(np.float32)
    color = rounded(pixels[..., :-1] * (full / np.maximum(alpha, full / 65535)), pixels.dtype)
    return np.concatenate([color, pixels[..., -1:]], axis=2)


def over(upper: Pixels, lower: Pixels) -> Pixels:
    """Blend H×W×(2 or 4) pixels over others of the same shape and integer dtype. Neither is premultiplied."""
    full = top(upper)
    above = upper[..., -1:].astype(np.float32) / full
    below = lower[..., -1:].astype(np.float32) / full * (1 - above)
    alpha = above + below
    color = (upper[..., :-1] * above + lower[..., :-1] * below) / np.maximum(alpha, np.finfo(np.float32).tiny)
    return rounded(np.concatenate([color, alpha * full], axis=2), upper.dtype)


def bleed(color: Pixels, alpha: Pixels) -> Pixels:
    """Extend the visible colour into the fully transparent pixels, whose own colour means nothing.

    This builds a pyramid of halved pictures, in which each pixel is the mean of four, weighted by their opacity. A
    pixel without colour takes the colour of the finest level that has one (push-pull; Gortler et al., The Lumigraph,
    1996).

    Args:
        color: H×W×(1 or 3).
        alpha: H×W×1 of the same dtype.

    Returns:
        Pixels of the same shape and dtype as `color`. Pixels that are not fully transparent are unchanged.
    """
    weight = alpha.astype(np.float32) / top(alpha)
    filled = rounded(_fill(color * weight, weight), color.dtype)
    return np.where(alpha > 0, color, filled)


def _fill(weighted: Pixels, weight: Pixels) -> Pixels:
    """Turn H×W×C weighted sums and H×W×1 weights into a colour for each pixel."""
    present = weight > 0
    if present.all() or weight.size == 1:
        return weighted / np.maximum(weight, np.finfo(np.float32).tiny)
    coarse = _fill(_halve(weighted), _halve(weight))
    spread = coarse.repeat(2, axis=0).repeat(2, axis=1)[: weight.shape[0], : weight.shape[1]]
    return np.where(present, weighted / np.where(present, weight, 1), spread)


def _halve(values: Pixels) -> Pixels:
    """Sums of 2×2 pixels. If the number of rows or columns is odd, the last one has no partner."""
    padded = np.pad(values, ((0, values.shape[0] % 2), (0, values.shape[1] % 2), (0, 0)))
    rows = padded[0::2] + padded[1::2]
    result: Pixels = rows[:, 0::2] + rows[:, 1::2]
    return result


_PROFILE_TAGS = 100  # the number of tags that Little CMS reads
_MAX_ELEMENTS = 64  # in one chain of processing elements; profiles have three to five
_MAX_SEGMENTS = 1024  # in all curves of one such chain; a curve has one to three
_RELATIVE_COLORIMETRIC = 1
_BLACK_POINT_COMPENSATION = 0x2000
_NO_SHORTCUT = 0x0100


@cache
def srgb_profile() -> bytes:
    """The ICC profile of sRGB, as Little CMS builds it."""
    import imagecodecs

    profile: bytes = imagecodecs.cms_profile("srgb")
    return profile


@cache
def lab_profile() -> bytes:
    """The ICC profile of CIE L*a*b* under D50."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


def is_profile(icc: bytes) -> bool:
    """Whether Little CMS accepts the bytes as an ICC profile, and needs only a reasonable time for it."""
    import imagecodecs

    if len(icc) < 132 or icc[36:40] != b"acsp" or int.from_bytes(icc[:4], "big") > len(icc):
        return False
    try:
        imagecodecs.cms_profile_validate(icc)
        _check_elements(icc)
    except (imagecodecs.CmsError, ValueError):
        return False
    return True


_SRGB_GAMMA = 0.45455
_D65 = (0.3127, 0.329)
_SRGB_PRIMARIES = (0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_DCI_WHITE, _C, _E = (0.314, 0.351), (0.31, 0.316), (1 / 3, 1 / 3)
_P3_PRIMARIES = (0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
_BT2020_PRIMARIES = (0.708, 0.292, 0.17, 0.797, 0.131, 0.046)
_BT601_PRIMARIES = (0.63, 0.34, 0.31, 0.595, 0.155, 0.07)
# the code points of ITU-T H.273: white point and primaries, and below the transfer curves
H273_PRIMARIES: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: (_D65, _SRGB_PRIMARIES),
    4: (_C, (0.67, 0.33, 0.21, 0.71, 0.14, 0.08)),
    5: (_D65, (0.64, 0.33, 0.29, 0.6, 0.15, 0.06)),
    6: (_D65, _BT601_PRIMARIES),
    7: (_D65, _BT601_PRIMARIES),
    8: (_C, (0.681, 0.319, 0.243, 0.692, 0.145, 0.049)),
    9: (_D65, _BT2020_PRIMARIES),
    10: (_E, (1.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
    11: (_DCI_WHITE, _P3_PRIMARIES),
    12: (_D65, _P3_PRIMARIES),
    22: (_D65, (0.63, 0.34, 0.295, 0.605, 0.155, 0.077)),
}
H273_SRGB_CURVES = (1, 2, 6, 7, 11, 12, 13, 14, 15)  # viewers treat all of them as sRGB; 2 means "not specified"
H273_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0, 17: 2.6}
_UNSPECIFIED = 2


_HDR_CURVES = (16, 18)  # PQ and HLG


def code_points(primaries: int, transfer: int) -> bytes | None:
    """`Metadata.cicp` for full-range RGB with these primaries and this curve; None for sRGB or unspecified colours.

    Raises:
        ValueError: the primaries or the curve are unknown.
    """
    if primaries == _UNSPECIFIED:
        primaries = 1
    if primaries == 1 and transfer in H273_SRGB_CURVES:
        return None
    known = transfer in (*H273_SRGB_CURVES, *H273_GAMMAS, *_HDR_CURVES)
    if primaries not in H273_PRIMARIES or not known:
        raise ValueError(f"its colours, code points {primaries} and {transfer}, are not supported")
    return bytes([primaries, transfer, 0, 1])


def is_hdr(metadata: Metadata) -> bool:
    """Whether the samples follow a curve of high dynamic range, which common ICC profiles cannot express."""
    return metadata.cicp is not None and metadata.cicp[1] in _HDR_CURVES


def profile_of(metadata: Metadata, channels: int = 3) -> bytes | None:
    """The ICC profile, or one made from the code points or from PNG's gAMA and cHRM. None means sRGB.

    Args:
        metadata: the picture's.
        channels: of its pixels; for 1 or 2, a gray profile is made.
    """
    if metadata.icc is not None:
        return metadata.icc
    gray = channels <= 2
    if metadata.cicp is not None:
        return _profile_of_code_points(metadata.cicp[0], metadata.cicp[1], gray)
    if metadata.srgb_intent is not None or not metadata.gamma:
        return None
    chromaticities = metadata.chromaticities or _D65 + _SRGB_PRIMARIES
    usual = gray or np.allclose(chromaticities, _D65 + _SRGB_PRIMARIES, atol=0.002)
    if usual and abs(metadata.gamma - _SRGB_GAMMA) < 0.01:
        return None
    return make_profile(gray, chromaticities[:2], chromaticities[2:], gamma=1 / metadata.gamma)


def _profile_of_code_points(primaries: int, transfer: int, gray: bool) -> bytes | None:
    """A profile for the code points of H.273; None for sRGB and for HDR curves, which such a profile cannot express."""
    if primaries not in H273_PRIMARIES or ((gray or primaries == 1) and transfer in H273_SRGB_CURVES):
        return None
    white, corners = H273_PRIMARIES[primaries]
    if transfer in H273_GAMMAS:
        return make_profile(gray, white, corners, gamma=H273_GAMMAS[transfer])
    if transfer not in H273_SRGB_CURVES:
        return None
    return make_profile(gray, white, corners, transferfunction=srgb_curve())


def srgb_curve() -> Pixels:
    """The curve of sRGB, from signal to light: 1024 steps of 16 bits (IEC 61966-2-1)."""
    signal = np.linspace(0, 1, 1024)
    light = np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)
    curve: Pixels = np.rint(light * 65535).astype(np.uint16)
    return curve


def make_profile(gray: bool, white: tuple[float, ...], primaries: tuple[float, ...], **curve: Any) -> bytes:
    """Make an ICC profile for gray or RGB. `curve` is `gamma` or `transferfunction`, from signal to light."""
    import imagecodecs

    if gray:
        return bytes(imagecodecs.cms_profile("gray", whitepoint=white, **curve))
    return bytes(imagecodecs.cms_profile("rgb", whitepoint=white, primaries=primaries, **curve))


def cmyk_to_srgb(pixels: Pixels, icc: bytes | None) -> Pixels:
    """Convert H×W×4 inks (0 means no ink) to H×W×3 sRGB of the same integer dtype.

    With a CMYK profile, this uses the relative colorimetric intent with black point compensation, which is the default
    of browsers and Photoshop. Without a profile, the inks count as ideal: R = (1 - C)(1 - K), and so on.
    """
    if icc is not None and icc[16:20] == b"CMYK":
        return _transform(pixels, icc, "cmyk", srgb_profile(), "rgb")
    full = top(pixels)
    left = (full - pixels.astype(np.float32)) / full
    return rounded(left[..., :3] * left[..., 3:] * full, pixels.dtype)


def lab_to_srgb(samples: Pixels, signed: bool) -> Pixels:
    """Convert H×W×3 CIE L*a*b* (D50, as in ICC profiles) of 8 or 16 bits to sRGB of the same depth.

    Args:
        samples: L* from 0 to the dtype's maximum for 0 to 100; a* and b* in units of 1 (8 bits) or 1/256 (16 bits).
        signed: a* and b* are two's complement (TIFF's CIELAB); otherwise they are offset by half the range (ICCLAB).
    """
    half = 128 << (samples.itemsize - 1) * 8
    shifted = samples[..., 1:].astype(np.int32)
    shifted = (shifted + half) % (2 * half) - half if signed else shifted - half
    lightness = samples[..., :1] * np.float32(100 / top(samples))
    lab = np.concatenate([lightness, shifted * np.float32(128 / half)], axis=2).astype(np.float32)
    rgb = _transform(lab, lab_profile(), "lab", srgb_profile(), "rgb")
    return rounded(rgb * np.float32(top(samples)), samples.dtype)


def to_srgb(pixels: Pixels, icc: bytes) -> Pixels:
    """Convert H×W×C pixels (C = 1 to 4) from their profile to sRGB, or to gray with sRGB's curve. Alpha is unchanged.

    Gray pixels with an RGB profile count as equal parts of red, green and blue. Any other pixels whose profile belongs
    to another colour space, or is broken, are returned unchanged. Floats above 1 (brighter than white) stay above 1;
    negative values, for colours outside sRGB, become 0.
    """
    import imagecodecs

    colors = 1 if pixels.shape[2] <= 2 else 3
    space = {b"GRAY": "gray", b"RGB ": "rgb"}.get(icc[16:20])
    if space is None or (space == "gray" and colors == 3):
        return pixels
    color = pixels[..., 0] if space == "gray" else np.broadcast_to(pixels[..., :colors], (*pixels.shape[:2], 3))
    try:
        converted = _transform(color, icc, space, srgb_profile(), "rgb")[..., :colors]
    except (imagecodecs.CmsError, ValueError):
        return pixels
    if pixels.dtype.kind == "f":
        converted = np.maximum(converted, 0)
    return np.concatenate([converted, pixels[..., colors:]], axis=2)


def _transform(pixels: Pixels, icc: bytes, space: str, out_icc: bytes, out_space: str) -> Pixels:
    import imagecodecs

    _check_elements(icc)
    result: Pixels = imagecodecs.cms_transform(
        np.ascontiguousarray(pixels),
        icc,
        out_icc,
        colorspace=space,
        outcolorspace=out_space,
        intent=_RELATIVE_COLORIMETRIC,
        # for 16 bits, Little CMS would use a coarse lookup table, which distorts colours near the edge of sRGB
        flags=_BLACK_POINT_COMPENSATION | (_NO_SHORTCUT if pixels.dtype == np.uint16 else 0),
    )
    return result


def _check_elements(icc: bytes) -> None:
    """Check that the processing elements of a profile are few and do not overlap.

    Little CMS builds a table for each element, and its time grows with the square of their number. For a curve, it
    searches all segments for each of the table's thousands of values.

    Raises:
        ValueError: they are too many or overlap, or the profile is broken.
    """
    if len(icc) < 132:
        raise ValueError("its colour profile is broken")
    for index in range(min(struct.unpack_from(">I", icc, 128)[0], _PROFILE_TAGS)):
        if 144 + 12 * index > len(icc):
            raise ValueError("its colour profile is broken")
        _, start, length = struct.unpack_from(">III", icc, 132 + 12 * index)
        if icc[start : start + 4] != b"mpet" or start + 16 > len(icc):
            continue
        (count,) = struct.unpack_from(">I", icc, start + 12)
        if 16 + 8 * count > length or start + 16 + 8 * count > len(icc):
            raise ValueError("its colour profile is broken")
        if count > _MAX_ELEMENTS:
            raise ValueError(f"its colour profile has more than {_MAX_ELEMENTS} elements")
        places = struct.unpack_from(f">{2 * count}I", icc, start + 16)
        if sum(places[1::2]) > length:
            raise ValueError("the elements of its colour profile overlap")
        if sum(_curve_segments(icc, start + place) for place in places[::2]) > _MAX_SEGMENTS:
            raise ValueError(f"the curves of its colour profile have more than {_MAX_SEGMENTS} segments")


def _curve_segments(icc: bytes, element: int) -> int:
    """How many segments the curves of an element have together; 0 if it is no set of curves."""
    if icc[element : element + 4] != b"cvst" or element + 12 > len(icc):
        return 0
    (curves,) = struct.unpack_from(">H", icc, element + 8)
    if element + 12 + 8 * curves > len(icc):
        raise ValueError("its colour profile is broken")
    total = 0
    for place in struct.unpack_from(f">{2 * curves}I", icc, element + 12)[::2]:
        if element + place + 10 > len(icc):
            raise ValueError("its colour profile is broken")
        total += struct.unpack_from(">H", icc, element + place + 8)[0]
    return total
