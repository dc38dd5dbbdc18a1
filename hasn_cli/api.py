"""`hasn_cli.upscale`: enlarge one picture, in memory or on disk, in one call.

For many pictures or large ones, `hasn_cli.Upscaler` keeps the network loaded and shows its plan. The command line also
keeps animations, pages and all metadata.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict, TypeVar, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from hasn_cli.choice import EIGHTHS, Choice, choose, photo_share
from hasn_cli.enlarge import Progress, Size, enlarge_pixels
from hasn_cli.errors import ImageError, UsageError
from hasn_cli.images import Metadata
from hasn_cli.images.color import cmyk_to_srgb, profile_of, srgb_profile
from hasn_cli.images.compression import jpeg_compression_of
from hasn_cli.images.metadata import resized
from hasn_cli.images.picture import Frame
from hasn_cli.weights import AUTOMATIC

if TYPE_CHECKING:
    from PIL import Image

    from hasn_cli.inference import Upscaler

Sample = TypeVar("Sample", bound=np.generic)

# Pillow's modes that are enlarged as they are. I and the other kinds of I;16 become I;16, and all others the nearest of
# the first four.
KEPT_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "F")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_EXIF = b"Exif\0\0"

_one_at_a_time = threading.Lock()  # an Upscaler serves one caller at a time


class Options(TypedDict, total=False):
    """The keyword arguments of `upscale`."""

    width: int | None
    height: int | None
    fit: tuple[int, int] | None
    stretch: bool
    weights: str
    device: str
    precision: str
    memory: int | None
    tta: bool
    consistent: bool
    alpha: str
    progress: Progress | None


@overload
def upscale(
    image: str | os.PathLike[str] | bytes | BinaryIO | Image.Image,
    scale: float | None = None,
    **options: Unpack[Options],
) -> Image.Image:
    """A path, a file, a file's bytes or a Pillow image gives a Pillow image."""


@overload
def upscale(image: NDArray[Sample], scale: float | None = None, **options: Unpack[Options]) -> NDArray[Sample]:
    """An array gives an array."""


def upscale(
    image: Any,
    scale: float | None = None,
    *,
    width: int | None = None,
    height: int | None = None,
    fit: tuple[int, int] | None = None,
    stretch: bool = False,
    weights: str = "hasn",
    device: str = "auto",
    precision: str = "auto",
    memory: int | None = None,
    tta: bool = False,
    consistent: bool = False,
    alpha: str = "blend",
    progress: Progress | None = None,
) -> Any:
    """Enlarge one picture. An array gives an array, everything else a Pillow image.

    Args:
        image: an array, H×W or H×W×C with C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGBA, of uint8, uint16 or any float
            ([0, 1], or a range of its own); a Pillow image; or a picture's path, its bytes, or a file opened in binary
            mode, of which the first frame is taken, upright.
        scale: how many times larger, from 1 to 16; 4 if no other size is given. Other values than 2, 3 and 4 are
            reached by the next larger one, above 4 in two passes, and then reduced.
        width, height: of the result in pixels, instead of `scale`; one alone keeps the proportions.
        fit: (width, height) of a box, instead of `scale`: as large as fits into it, at most 16 times larger.
        stretch: let `width` and `height` together change the proportions.
        weights: as the command line's `-w`: `hasn`, `clean`, `photo`, `released`, a path, or OWNER/REPO on the Hugging
            Face Hub. `hasn` takes what fits the file; for an array, and a Pillow image that is not as it was opened
            from a JPEG, it takes the clean weights.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        precision: number format to compute in: `auto`, `fp32`, `fp16`, `bf16`.
        memory: memory to use, in bytes; None: 60 % of what is free.
        tta: average over the eight flips and rotations.
        consistent: adjust the result so that reducing it by bicubic interpolation gives the input again.
        alpha: `blend`: alpha says how much of the colour shows; `separate`: alpha and the colour under it are data,
            like any other channel.
        progress: called with the fraction done, 0 to 1; may raise to cancel.

    Returns:
        An array of the same dtype and axes; or a Pillow image that keeps the profile and the EXIF data, its size in
        them corrected. Its mode is the given one's where that is L, LA, RGB, RGBA, I;16 or F, I;16 for I and the other
        kinds of I;16, else the nearest of the first four; CMYK becomes sRGB by its profile.

    Raises:
        HasnError: the picture, the size, the weights or the device cannot be used; the message and its hint say why.

    The networks of the last few combinations of weights and device stay loaded.
    """
    size = _size(scale, width, height, fit, stretch)

    opened, choice = (image, Choice()) if isinstance(image, np.ndarray) else _opened(image, weights)

    def upscaler_for(network_scale: int) -> Upscaler:
        return _upscaler(weights, network_scale, device, precision, memory, tta, _state_of(weights), choice.photo)

    def enlarged(pixels: NDArray[Any]) -> NDArray[Any]:
        with _one_at_a_time:
            return enlarge_pixels(pixels, upscaler_for, size, consistent, progress, alpha=alpha, limit=choice.limit)

    if isinstance(opened, np.ndarray):
        return _upscale_array(opened, enlarged)
    return _upscale_pillow(opened, enlarged)


def _size(
    scale: float | None, width: int | None, height: int | None, fit: tuple[int, int] | None, stretch: bool
) -> Size:
    if fit is not None and not (isinstance(fit, tuple | list) and len(fit) == 2):
        raise UsageError(f"{fit!r} is not a box to fit into", "give (width, height), for example fit=(3840, 2160)")
    if width is None and height is None and fit is None:
        return Size(factor=4 if scale is None else scale, stretch=stretch)
    if scale is not None:
        raise UsageError("scale excludes width, height and fit", "give one of them")
    return Size(width=width, height=height, fit=None if fit is None else (fit[1], fit[0]), stretch=stretch)


def _opened(image: Any, weights: str) -> tuple[Any, Choice]:
    """A Pillow image of a path, bytes or a file, or anything else as it is; and the weights for it."""
    if isinstance(image, (str, os.PathLike)):
        if "\0" in str(image):
            raise ImageError(f"{str(image)!r}: a path cannot contain NUL")
        return _open(Path(image), Path(image).name, weights)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _open(bytes(image), "the picture", weights)
    if hasattr(image, "read"):
        return _open(_content(image), str(getattr(image, "name", "the picture")), weights)
    tables = getattr(image, "quantization", None)
    if weights != AUTOMATIC or getattr(image, "format", None) not in ("JPEG", "MPO") or not tables:
        return image, Choice()
    return image, Choice(photo_share(jpeg_compression_of(image)))


def _content(file: Any) -> bytes:
    data = file.read()
    if not isinstance(data, bytes):
        raise ImageError("a file opened as text is not a picture", 'open it in binary mode: open(path, "rb")')
    return data


def _state_of(weights: str) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change in nanoseconds and size of a file or of those in a folder; nothing of what is neither."""
    path = Path(weights)
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


@lru_cache(maxsize=4)
def _upscaler(
    weights: str,
    scale: int,
    device: str,
    precision: str,
    memory: int | None,
    tta: bool,
    state: tuple[tuple[str, int, int], ...],  # only here so that a file that has changed is loaded again
    photo: int,
) -> Upscaler:
    from hasn_cli.inference import Upscaler
    from hasn_cli.weights import load_blend, load_network

    network = load_blend(scale, photo / EIGHTHS) if photo else load_network(weights, scale)
    return Upscaler(network, device=device, precision=precision, memory=memory, tta=tta)


def _start_over() -> None:
    """In a forked child, which has neither the upscalers' threads nor the thread that may hold the lock."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()
    _upscaler.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_over)


def _upscale_array(image: NDArray[Any], enlarged: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[Any]:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4)) or image.size == 0:
        raise ImageError(f"an array of shape {image.shape} is not a picture", _shape_hint(image.shape))
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise ImageError(f"an array of {image.dtype} is not a picture", "convert it to uint8, uint16 or a float type")
    pixels = image if image.ndim == 3 else image[..., None]
    if image.dtype.kind == "f":
        pixels = pixels.astype(np.float32)
    large = enlarged(np.ascontiguousarray(pixels)).astype(image.dtype)
    return large if image.ndim == 3 else large[..., 0]


def _shape_hint(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[0] in (1, 2, 3, 4):
        return "it looks like C×H×W; H×W×C is needed: np.moveaxis(array, 0, -1)"
    if len(shape) == 4:
        return "give one picture at a time, H×W×C"
    return "give H×W, or H×W×C with C from 1 to 4"


def _upscale_pillow(image: Image.Image, enlarged: Callable[[NDArray[Any]], NDArray[Any]]) -> Image.Image:
    from PIL import Image as Pillow

    if not isinstance(image, Pillow.Image):
        hint = "give a path, bytes, a file, a Pillow image, or a NumPy array (np.asarray converts to one)"
        raise ImageError(f"{type(image).__name__} is not a kind of picture", hint)
    if not all(image.size):
        raise ImageError(f"an image of {image.width}×{image.height} pixels is not a picture")
    pixels = _pixels_of(image)
    large = enlarged(pixels.reshape(*pixels.shape[:2], -1))
    result = Pillow.fromarray(large if pixels.ndim == 3 else large[..., 0])
    result.info = _info_of(image, result)
    return result


def _pixels_of(image: Image.Image) -> NDArray[Any]:
    """H×W or H×W×C samples, as one of `KEPT_MODES` holds them."""
    mode = image.mode
    if mode in _DEEP_MODES:
        return _deep_pixels_of(image)
    try:
        if mode == "CMYK":
            return cmyk_to_srgb(np.asarray(image), image.info.get("icc_profile"))
        if image.has_transparency_data and mode not in ("LA", "RGBA"):
            image = image.convert("LA" if mode in ("1", "L", "La") else "RGBA")
        elif mode not in KEPT_MODES:
            image = image.convert("L" if mode == "1" else "RGB")
    except (ValueError, RuntimeError) as error:  # the latter from Little CMS
        raise ImageError(f"an image of mode {mode} cannot be converted ({error})", "convert it to RGB first") from error
    return np.asarray(image)


def _deep_pixels_of(image: Image.Image) -> NDArray[Any]:
    """H×W samples of float32 or uint16."""
    if "transparency" in image.info:
        message = f"an image of mode {image.mode} has a transparent value, which Pillow cannot keep for the result"
        raise ImageError(message, "give its pixels as an array, or use the command line")
    samples = np.asarray(image)
    if image.mode == "F":
        return samples
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > np.iinfo(np.uint16).max:
        message = f"an image of mode I has values from {low} to {high}; only 0 to 65535 are supported"
        raise ImageError(message, "scale them to that range, or convert it to mode F")
    return samples.astype(np.uint16)


def _info_of(image: Image.Image, result: Image.Image) -> dict[str | tuple[int, int], Any]:
    """What Pillow keeps of an image's metadata, as it is true of the result."""
    info = {key: value for key, value in image.info.items() if key != "transparency"}
    space = (info.get("icc_profile") or b"")[16:20]
    if image.mode == "CMYK" and space == b"CMYK":
        info["icc_profile"] = srgb_profile()
    elif space not in (b"", b"RGB " if result.mode.startswith("RGB") else b"GRAY"):
        del info["icc_profile"]
    old = {key: value for key in ("exif", "xmp") if isinstance(value := info.get(key), bytes)}
    prefix = _EXIF if old.get("exif", b"").startswith(_EXIF) else b""
    exif = old["exif"].removeprefix(prefix) if "exif" in old else None
    size, before = (result.height, result.width), (image.height, image.width)
    new = resized(Metadata(exif=exif, xmp=old.get("xmp")), size, before)
    changed = {"exif": new.exif and prefix + new.exif, "xmp": new.xmp}
    return info | {key: value for key, value in changed.items() if value}


def _open(source: Path | bytes, name: str, weights: str) -> tuple[Image.Image, Choice]:
    """A file's first frame as a Pillow image, upright, with what Pillow keeps of the metadata in `info`."""
    from PIL import Image as Pillow

    from hasn_cli.images import open_picture

    picture = open_picture(source, name=name)
    pixels = next(iter(picture.frames)).pixels
    if pixels.dtype != np.uint8 and pixels.shape[2] > 1:
        raise ImageError(
            f"{name} has {8 * pixels.itemsize} bits a sample in colour, which no Pillow image can hold",
            "give its pixels as an array, or use the command line",
        )
    image = Pillow.fromarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])
    metadata = picture.metadata
    exif = _EXIF + metadata.exif if metadata.exif else None
    info = {"icc_profile": profile_of(metadata, pixels.shape[2]), "exif": exif, "dpi": metadata.dpi}
    image.info = {key: value for key, value in info.items() if value is not None}
    return image, choose(replace(picture, frames=[Frame(pixels)]), weights)
