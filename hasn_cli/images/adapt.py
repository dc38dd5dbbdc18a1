"""Checks that a format can hold a picture, and adapts it: depth, transparency, colours, frames and metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from hasn_cli.errors import ImageError, MissingExtraError
from hasn_cli.images.color import flatten, is_hdr, is_opaque, profile_of, to_dtype, to_srgb
from hasn_cli.images.formats import FORMATS, Format, has_heif
from hasn_cli.images.metadata import resized, without_extension
from hasn_cli.images.picture import (
    EncodeOptions,
    Frame,
    Metadata,
    Picture,
    Pixels,
    ReplayableFrames,
    Shape,
    parse_color,
)


def check_can_hold(picture: Picture, size: tuple[int, int], format: str, options: EncodeOptions) -> None:
    """Check that `format` can hold the picture enlarged to `size`, before anything is computed.

    Args:
        picture: as read. If the answer depends on its samples or its transparency, its first frame is decoded.
        size: (height, width) of the enlarged picture.
        format: name of the requested format.
        options: how it will be written.

    Raises:
        ImageError: the format cannot hold the picture or its metadata; the hint says what to do.
        MissingExtraError: the format needs an optional package.
    """
    entry = FORMATS.get(format)
    if entry is None:
        raise ImageError(f"{picture.name}: the format {format!r} cannot be written", "use -f png")
    if max(size) > entry.max_side:
        message = f"{picture.name}: {size[1]}×{size[0]} pixels are too many for {entry.title}"
        raise ImageError(f"{message} (at most {entry.max_side} per side)", f"use -f {_roomier(size)}")
    if entry.extra == "heic" and not has_heif():
        raise MissingExtraError(f"{picture.name}: writing {entry.title}", entry.extra)
    if options.first_frame:
        picture = picture.first()
    if picture.following:
        message = f"{picture.name}: contains {picture.following + 1} pictures, one after the other"
        raise ImageError(message, "use --first-frame to take only the first one, or split it into separate files")
    if picture.broken:
        raise ImageError(f"{picture.name}: {picture.broken}", "use --first-frame to take only the first one")
    if picture.frame_count > 1:
        _check_frames(picture, entry)
    if format != "png" and is_hdr(picture.metadata):
        raise ImageError(f"{picture.name}: {entry.title} cannot hold its HDR colours", "use -f png")
    if format == "avif" and options.lossless and picture.frame_count > 1:
        message = f"{picture.name}: a lossless animation cannot be written as {entry.title}"
        raise ImageError(message, "use -f webp or png, or leave out --lossless")
    if format == "jpeg":
        _check_metadata(replace(picture, size=size), options)
    if picture.dtype.kind == "f" and not entry.floats:
        _check_range(picture, entry)
    if picture.has_alpha and not entry.alpha and options.background is None and not _opaque(picture):
        message = f"{picture.name}: {entry.title} cannot hold its transparency"
        raise ImageError(message, "use --background white or -f png")


def _check_frames(picture: Picture, entry: Format) -> None:
    if picture.paged and not entry.pages:
        message = f"{picture.name}: {entry.title} cannot hold its {picture.frame_count} pages"
        raise ImageError(message, "use -f tiff or ppm, or --first-frame to take only the first one")
    if not picture.paged and not entry.animation:
        message = f"{picture.name}: {entry.title} cannot hold its {picture.frame_count} frames"
        raise ImageError(message, "use -f webp, png or gif, or --first-frame to take only the first one")


def _check_metadata(picture: Picture, options: EncodeOptions) -> None:
    from hasn_cli.images.codecs.jpeg import check_metadata

    check_metadata(picture.name, metadata_for(picture, "jpeg", options))


def _check_range(picture: Picture, entry: Format) -> None:
    pixels = next(iter(picture.frames)).pixels
    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= 1:
        message = f"{picture.name}: {entry.title} cannot hold its samples, which range from {low:.4g} to {high:.4g}"
        raise ImageError(message, "use -f tiff or -f pfm")


def _opaque(picture: Picture) -> bool:
    return is_opaque(next(iter(picture.frames)).pixels)


def _roomier(size: tuple[int, int]) -> str:
    fitting = [name for name in ("jpeg", "png") if max(size) <= FORMATS[name].max_side]
    return {2: "jpg, png or tiff", 1: "png or tiff", 0: "tiff"}[len(fitting)]


def adapt(picture: Picture, format: str, options: EncodeOptions) -> Picture:
    """Return the picture as `format` will store it. Its frames are still computed one by one.

    If the format has only 8 bits, samples are rounded to 8 bits. If it has no profiles, or none of the picture's kind,
    colours are converted to sRGB. If it has no transparency, the first frame is computed at once and laid on the
    background; without a background, the picture must be opaque.

    Raises:
        ImageError: the format holds a single frame and the picture has several, or frames of the picture are missing.
        ValueError: the picture is transparent and there is no background.
    """
    if options.first_frame:
        picture = picture.first()
    entry = FORMATS[format]
    if picture.broken:
        raise ImageError(f"{picture.name}: {picture.broken}", "use --first-frame to take only the first one")
    if picture.frame_count > 1 and not (entry.pages if picture.paged else entry.animation):
        raise ImageError(f"{picture.name}: {entry.title} can hold only one frame", "use --first-frame")
    if picture.has_alpha and not entry.alpha:
        picture = _without_alpha(picture, parse_color(options.background) if options.background else None)
    metadata = metadata_for(picture, format, options)
    profile = _misfit(picture, format)

    def frames() -> Iterator[Frame]:
        for index, frame in enumerate(picture.frames):
            by = None if picture.paged and index else profile  # a later page has its own
            pixels = frame.pixels
            if frame.min_is_white and pixels.dtype.kind == "f" and not entry.pages:  # only TIFF can store this flag
                pixels = np.concatenate([1 - pixels[..., :1], pixels[..., 1:]], axis=2)
            yield replace(frame, pixels=_fit(pixels, entry, by))

    def fitted(shape: Shape) -> Shape:
        return replace(shape, dtype=_dtype(shape.dtype, entry))

    return replace(
        picture,
        dtype=_dtype(picture.dtype, entry),
        page_shapes=tuple(map(fitted, picture.page_shapes)),
        frames=ReplayableFrames(frames),
        metadata=metadata,
    )


def _without_alpha(picture: Picture, background: tuple[int, int, int] | None) -> Picture:
    """The first frame without its alpha channel. If the background shows, a frame with a profile is converted to sRGB.

    The frame is computed now, because only its pixels tell whether the background shows, and so whether gray becomes
    RGB.

    Raises:
        ValueError: a pixel is transparent and there is no background.
    """
    frame = next(iter(picture.frames))
    pixels, metadata = frame.pixels, picture.metadata
    profile = profile_of(metadata, picture.channels)
    if profile is not None and background is not None and not is_opaque(pixels):
        pixels, metadata = to_srgb(pixels, profile), _of_srgb(metadata)
    pixels = flatten(pixels, background)
    frames = [replace(frame, pixels=pixels)]
    return replace(picture, channels=pixels.shape[2], frames=frames, metadata=metadata)


def _dtype(dtype: np.dtype[Any], entry: Format) -> np.dtype[Any]:
    if dtype.kind == "f" and entry.floats:
        return dtype
    if entry.floats and not entry.deep:
        return np.dtype(np.float32)
    return np.dtype(np.uint16 if entry.deep and dtype.itemsize > 1 else np.uint8)


def _fit(pixels: Pixels, entry: Format, profile: bytes | None) -> Pixels:
    """Convert pixels to the format's dtype. `profile`, if given, cannot be stored: convert to sRGB before rounding."""
    dtype = _dtype(pixels.dtype, entry)
    if pixels.dtype.kind == "f" != dtype.kind and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError("its samples are not all between 0 and 1")
    if profile is not None:
        pixels = to_srgb(pixels, profile)
    return to_dtype(pixels, dtype)


def metadata_for(picture: Picture, format: str, options: EncodeOptions) -> Metadata:
    """The picture's metadata as `format` will store it."""
    old = picture.metadata
    if options.strip:
        shown = ("icc", "gamma", "chromaticities", "srgb_intent", "cicp")
        old = Metadata(**{name: getattr(old, name) for name in shown}, notices=old.notices)
    if _misfit(picture, format) is not None:
        old = _of_srgb(old)
    elif format != "png":  # only PNG has gamma and chromaticities
        old = replace(old, icc=profile_of(old, _colors(picture, format)))
    if format != "jpeg":
        old = without_extension(old)
    return resized(old, picture.size)


def notices_of(picture: Picture, format: str, options: EncodeOptions) -> tuple[str, ...]:
    """What the user should know about writing this (enlarged) picture in `format`: a few words for each point."""
    return metadata_for(picture, format, options).notices


def _misfit(picture: Picture, format: str) -> bytes | None:
    """The picture's profile if `format` cannot store it, so that colours must be converted to sRGB; otherwise None."""
    colors = _colors(picture, format)
    profile = profile_of(picture.metadata, colors)
    fits = FORMATS[format].icc and profile is not None and profile[16:20] == (b"GRAY" if colors == 1 else b"RGB ")
    return None if fits else profile


def _colors(picture: Picture, format: str) -> int:
    """The number of colour channels in the file: 3 even for gray, if the format has no gray of that kind."""
    if picture.channels >= 3 or format == "webp":
        return 3
    moves = format == "avif" and picture.frame_count > 1
    return 3 if moves or (format in ("avif", "heic") and picture.channels == 2) else 1


def _of_srgb(metadata: Metadata) -> Metadata:
    return replace(metadata, icc=None, gamma=None, chromaticities=None, srgb_intent=None, cicp=None)
