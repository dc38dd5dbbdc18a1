"""Colour: profiles, and what transparency does to it."""

from __future__ import annotations

import numpy as np

from hasn_cli.images.picture import Pixels


def top(pixels: Pixels) -> float:
    """The value of full white, or of full opacity: 255, 65535 or 1."""
    return 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)


def is_opaque(pixels: Pixels) -> bool:
    """Whether no pixel of H×W×C pixels is transparent in the least; true where there is no alpha channel."""
    return pixels.shape[2] in (1, 3) or bool((pixels[..., -1] >= top(pixels)).all())


def lay_on(pixels: Pixels, background: tuple[int, int, int]) -> Pixels:
    """H×W×(2 or 4) pixels over an opaque 8-bit RGB background, without their alpha channel.

    Returns:
        H×W×1 where both are gray, else H×W×3, of the same dtype.
    """
    if is_opaque(pixels):
        return pixels[..., :-1]
    full = top(pixels)
    color = np.asarray(background, np.float32) * (full / 255)
    if pixels.shape[2] == 2 and len(set(background)) == 1:
        color = color[:1]
    alpha = pixels[..., -1:].astype(np.float32) / full
    blended: Pixels = pixels[..., :-1] * alpha + color * (1 - alpha)
    return blended.astype(pixels.dtype) if pixels.dtype.kind == "f" else np.rint(blended).astype(pixels.dtype)


def bleed(color: Pixels, alpha: Pixels) -> Pixels:
    """Let the visible colour flow out under the wholly transparent pixels, whose own colour means nothing.

    A pyramid is built of halved pictures, each pixel the mean of its four weighted by their opacity; what has no
    colour takes that of the finest level that has one (push-pull; Gortler et al., The Lumigraph, 1996).

    Args:
        color: H×W×(1 or 3).
        alpha: H×W×1 of the same dtype.

    Returns:
        As `color`; pixels that are visible at all are unchanged.
    """
    weight = alpha.astype(np.float32) / top(alpha)
    filled = _fill(color * weight, weight)
    if color.dtype.kind != "f":
        filled = np.rint(filled)
    return np.where(alpha > 0, color, filled.astype(color.dtype))


def _fill(weighted: Pixels, weight: Pixels) -> Pixels:
    """H×W×C sums and H×W×1 weights to a colour for each pixel."""
    present = weight > 0
    if present.all() or weight.size == 1:
        return weighted / np.maximum(weight, np.finfo(np.float32).tiny)
    coarse = _fill(_halve(weighted), _halve(weight))
    spread = coarse.repeat(2, axis=0).repeat(2, axis=1)[: weight.shape[0], : weight.shape[1]]
    return np.where(present, weighted / np.where(present, weight, 1), spread)


def _halve(values: Pixels) -> Pixels:
    """Sums of 2×2 pixels; a lone last row or column stays alone."""
    padded = np.pad(values, ((0, values.shape[0] % 2), (0, values.shape[1] % 2), (0, 0)))
    rows = padded[0::2] + padded[1::2]
    result: Pixels = rows[:, 0::2] + rows[:, 1::2]
    return result
