"""Read the header of a safetensors file of HASN weights, without PyTorch and without the tensors."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from hasn_cli.errors import WeightsError

MOST_BYTES = 256 << 20  # of a file of weights; HASN's own take 1.8 MB
SCALES = {3 * scale**2: scale for scale in (2, 3, 4)}  # channels of the last convolution → scale

Shapes = dict[str, tuple[int, ...]]


@contextmanager
def open_weights(path: Path) -> Iterator[BufferedReader]:
    """A file of weights, open for reading: never one that does not end, or that is too large for what it should hold.

    Raises:
        WeightsError: it is a pipe, a device or a folder, or larger than `MOST_BYTES`.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:  # a pipe would have waited for its other end without O_NONBLOCK
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{path} is not a regular file", "check the path given to -w")
        if status.st_size > MOST_BYTES:
            size, most = (f"{count / 1e6:.0f} MB" for count in (status.st_size, MOST_BYTES))
            message = f"{path} has {size}; the limit is {most}, and HASN's weights take 2"
            raise WeightsError(message, "check the path given to -w")
        yield file


def read_shapes(path: Path) -> Shapes | None:
    """Name → shape of every tensor in a safetensors file.

    Returns:
        None if it is another kind of file, is damaged, or names its tensors differently. Then only loading it with
        `hasn_cli.weights.checkpoint` can tell what it is.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open_weights(path):
            pass
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (WeightsError, SafetensorError, OSError, UnicodeEncodeError):
        return None
    return shapes if _names_hasn(shapes) else None


def _names_hasn(shapes: Shapes) -> bool:
    weights = [shapes.get(f"{name}.weight", ()) for name in ("conv_1", "block_6.g.conv", "conv_2", "upsampler.0")]
    return all(len(shape) == 4 for shape in weights) and weights[-1][0] in SCALES


def scale_of(path: Path) -> int | None:
    """The scale that a file's weights are for; None if `read_shapes` returns None."""
    shapes = read_shapes(path)
    return None if shapes is None else SCALES[shapes["upsampler.0.weight"][0]]


def parameters(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of values in all tensors."""
    return sum(map(math.prod, shapes.values()))


def multiply_adds(shapes: Mapping[str, tuple[int, ...]], sr_size: tuple[int, int]) -> int:
    """Multiply-adds of all convolutions for an output of `sr_size` (height, width); equal to `network.complexity`."""
    scale = SCALES[shapes["upsampler.0.weight"][0]]
    lr = tuple(math.ceil(side / scale) for side in sr_size)
    strided = tuple((side - 3) // 2 + 1 for side in lr)  # ESA's 3×3 convolution with stride 2
    pooled = tuple((side - 7) // 3 + 1 for side in strided)  # ESA's 7×7 pool with stride 3
    total = 0
    for name, shape in shapes.items():
        if len(shape) == 4:
            sizes = {".attention.": (1, 1), ".esa.conv2.": strided, ".esa.conv3.": pooled}
            height, width = next((size for part, size in sizes.items() if part in name), lr)
            total += math.prod(shape) * height * width
    return total
