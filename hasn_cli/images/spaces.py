"""Colour spaces that files name or decoders return: their metadata, and their conversion to RGB."""

from __future__ import annotations

from typing import Any

import numpy as np

from hasn_cli.images.color import (
    H273_GAMMAS,
    H273_PRIMARIES,
    H273_SRGB_CURVES,
    code_points,
    make_profile,
    rounded,
    srgb_curve,
    to_dtype,
    top,
)
from hasn_cli.images.picture import Metadata, Pixels

_OUT_OF_GAMUT = 0.01  # a lossy encoder alone may overshoot by this much


def named_colors(gray: bool, white: tuple[float, ...], primaries: tuple[float, ...], transfer: int) -> Metadata:
    """Describe colours with these chromaticities and this curve of H.273: by code points, or else by a profile.

    Raises:
        ValueError: the curve is unknown, or it is an HDR curve and the chromaticities have no code point.
    """
    for number, (point, corners) in H273_PRIMARIES.items():
        if np.allclose(white, point, atol=1e-3) and (gray or np.allclose(primaries, corners, atol=1e-3)):
            return Metadata(cicp=code_points(number, transfer))
    if transfer in H273_GAMMAS:
        return Metadata(icc=make_profile(gray, white, primaries, gamma=H273_GAMMAS[transfer]))
    if transfer in H273_SRGB_CURVES:
        return Metadata(icc=make_profile(gray, white, primaries, transferfunction=srgb_curve()))
    raise ValueError(f"its colours, with curve {transfer} and custom primaries, are not supported")


def gamma_colors(gray: bool, white: tuple[float, ...], primaries: tuple[float, ...], gamma: float) -> Metadata:
    """Describe colours with these chromaticities and the curve encoded = light ** gamma."""
    return Metadata(icc=make_profile(gray, white, primaries, gamma=1 / gamma))


def from_linear(light: Pixels, dtype: np.dtype[Any]) -> tuple[Pixels, Metadata]:
    """Convert H×W×C floats of linear light with sRGB's primaries to pixels, and describe the pixels' colours.

    Values outside [0, 1] are outside the gamut of sRGB. If there are none, the pixels become sRGB of the given dtype;
    otherwise Display P3 or, if that is too small, BT.2020, with 16 bits. Alpha, the last of 2 or 4 channels, stays.
    """
    colors = 1 if light.shape[2] <= 2 else 3
    color = light[..., :colors].astype(np.float64)
    metadata = Metadata()
    if colors == 3 and (color.min() < -_OUT_OF_GAMUT or color.max() > 1 + _OUT_OF_GAMUT):
        dtype = np.dtype(np.uint16) if dtype.kind == "u" else dtype
        for number in (12, 9):
            wider = color @ (np.linalg.inv(_to_xyz(number)) @ _to_xyz(1)).T
            metadata = Metadata(cicp=bytes([number, 13, 0, 1]))
            if wider.min() >= -_OUT_OF_GAMUT:
                break
        color = wider
    color = np.clip(color, 0, 1)
    encoded = np.where(color <= 0.0031308, 12.92 * color, 1.055 * color ** (1 / 2.4) - 0.055)
    pixels = np.concatenate([encoded, np.clip(light[..., colors:], 0, 1)], axis=2).astype(np.float32)
    return to_dtype(pixels, dtype), metadata


def _to_xyz(number: int) -> Pixels:
    """The matrix from linear RGB with H.273's primaries and white point to CIE XYZ."""
    white, corners = H273_PRIMARIES[number]
    xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in zip(corners[::2], corners[1::2], strict=True)]).T
    point = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    matrix: Pixels = xyz * np.linalg.solve(xyz, point)
    return matrix


def ycc_to_rgb(
    pixels: Pixels,
    luma: tuple[float, float, float] = (0.299, 0.587, 0.114),
    reference: tuple[float, ...] | None = None,
) -> Pixels:
    """Convert H×W×3 integers (Y, Cb and Cr) to RGB of the same dtype.

    Args:
        pixels: in full range; Cb and Cr are centred in it.
        luma: the weights of red, green and blue in Y.
        reference: the black and white levels of Y, Cb and Cr, if they differ (TIFF 6.0, section 20).
    """
    full = top(pixels)
    middle = (full + 1) / 2
    black, white, *chroma = reference or (0, full, middle, full, middle, full)
    red, green, blue = luma
    y = (pixels[..., 0].astype(np.float32) - black) * (full / (white - black))
    cb, cr = (
        (pixels[..., 1 + index].astype(np.float32) - zero) * ((full + 1) / 2 - 1) / (most - zero)
        for index, (zero, most) in enumerate((chroma[:2], chroma[2:]))
    )
    r, b = y + (2 - 2 * red) * cr, y + (2 - 2 * blue) * cb
    return rounded(np.stack([r, (y - red * r - blue * b) / green, b], axis=2), pixels.dtype)
