"""A picture cut to what a format can hold: depth, transparency, colour profile, frames, metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from hasn_cli.errors import ImageError
from hasn_cli.images.color import lay_on, profile_of, to_dtype, to_srgb
from hasn_cli.images.formats import FORMATS, Format
from hasn_cli.images.metadata import resized
from hasn_cli.images.picture import Again, EncodeOptions, Frame, Metadata, Picture, Pixels, parse_color


def adapt(picture: Picture, format: str, options: EncodeOptions) -> Picture:
    """The picture as `format` is going to hold it, frames still made one by one.

    Samples are rounded to 8 bits where the format has no more; where it has no profiles, colours are converted to sRGB;
    transparency is laid on the background, and must not be there if none is given.

    Raises:
        ImageError: it holds one frame only, and the first one alone is not what was asked for.
    """
    entry = FORMATS[format]
    alone = not (entry.pages if picture.paged else entry.animation)
    if alone and picture.frame_count > 1 and not options.first_frame:
        raise ImageError(f"{picture.name}: {entry.title} holds only one frame", "use --first-frame")
    background = parse_color(options.background) if options.background else None
    metadata = metadata_for(picture, format, options)
    profile = None if entry.icc else profile_of(picture.metadata)

    def frames() -> Iterator[Frame]:
        for frame in picture.frames:
            yield replace(frame, pixels=_fit(frame.pixels, entry, profile, background))
            if alone:
                return

    return replace(
        picture,
        channels=picture.channels - (picture.has_alpha and not entry.alpha),
        dtype=_dtype(picture.dtype, entry),
        frames=Again(frames),
        frame_count=1 if alone else picture.frame_count,
        metadata=metadata,
    )


def _dtype(dtype: np.dtype[Any], entry: Format) -> np.dtype[Any]:
    if dtype.kind == "f" and entry.floats:
        return dtype
    if entry.floats and not entry.deep:
        return np.dtype(np.float32)
    return np.dtype(np.uint16 if entry.deep and dtype.itemsize > 1 else np.uint8)


def _fit(pixels: Pixels, entry: Format, profile: bytes | None, background: tuple[int, int, int] | None) -> Pixels:
    """Colours go to sRGB before they lose depth, and before they are laid on a background, which is of sRGB."""
    dtype = _dtype(pixels.dtype, entry)
    if pixels.dtype.kind == "f" != dtype.kind and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError("its samples are not between 0 and 1")
    if profile is not None:
        pixels = to_srgb(pixels, profile)
    if not entry.alpha:
        pixels = lay_on(pixels, background)
    return to_dtype(pixels, dtype)


def metadata_for(picture: Picture, format: str, options: EncodeOptions) -> Metadata:
    """The picture's metadata as `format` is going to get it."""
    old = picture.metadata
    if options.strip:
        shown = ("icc", "gamma", "chromaticities", "srgb_intent", "cicp")
        old = Metadata(**{name: getattr(old, name) for name in shown})
    if format != "png":  # no other format has gamma and chromaticities
        old = replace(old, icc=profile_of(old))
    return resized(old, picture.size)
