"""HR pictures for measuring and training: 8-bit RGB arrays from a folder."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hasn_cli.batch.walk import OnSkip, Walk
from hasn_cli.errors import HasnError, ImageError, UsageError
from hasn_cli.images import SUFFIXES, open_picture


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """The first frame of a picture as H×W×3 uint8 RGB: grey is repeated, alpha dropped, deeper values rounded.

    Raises:
        ImageError: the file is not a picture, or is broken.
    """
    frame = next(iter(open_picture(path).frames), None)
    if frame is None:
        raise ImageError(f"{path}: holds no frame")
    pixels = frame.pixels[..., :1] if frame.pixels.shape[-1] < 3 else frame.pixels[..., :3]
    return np.ascontiguousarray(np.broadcast_to(_to_uint8(pixels), (*pixels.shape[:2], 3)))


def list_pictures(folder: Path, on_skip: OnSkip, *, recursive: bool = True) -> list[Path]:
    """The pictures in a folder, including links, in natural order; `on_skip` gets what is left out, and why.

    Raises:
        UsageError: the folder does not exist or contains no picture.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    walk = Walk(frozenset(SUFFIXES), recursive=recursive, follow_links=True, on_skip=on_skip, on_closed=on_skip)
    paths = walk.files(folder)
    if not paths:
        raise UsageError(f"{folder} holds no pictures")
    return paths


def read_all(paths: list[Path], min_side: int, on_skip: OnSkip) -> Iterator[NDArray[np.uint8]]:
    """`read_rgb` of each path. Pictures that are corrupt or have a side under `min_side` go to `on_skip` instead."""
    for path in paths:
        try:
            image = read_rgb(path)
        except (HasnError, OSError) as error:
            on_skip(str(path), str(error).removeprefix(f"{path}: "))
            continue
        if min(image.shape[:2]) < min_side:
            on_skip(str(path), f"smaller than {min_side} pixels")
            continue
        yield image


def as_jpeg(image: NDArray[np.uint8], quality: int, subsampling: str = "4:2:0") -> NDArray[np.uint8]:
    """H×W×3 saved as JPEG by Pillow and read again."""
    return saved_and_read(image, "JPEG", quality=quality, subsampling=subsampling)


def saved_and_read(image: NDArray[np.uint8], format: str, **options: object) -> NDArray[np.uint8]:
    """H×W×3 saved in one of Pillow's formats, with its options, and read again: the pixels that hasn itself reads."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    with Image.open(buffer) as picture:
        return np.asarray(picture.convert("RGB"))


def _to_uint8(pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    values = pixels.astype(np.float64) * (255 / 65535 if pixels.dtype == np.uint16 else 255)
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
