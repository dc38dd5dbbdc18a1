"""`Upscaler`: one network on one device, applied to pictures as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hasn_cli.errors import DeviceError
from hasn_cli.network import HASN

Progress = Callable[[float], None]
Image = NDArray[np.generic]


@dataclass(frozen=True)
class Plan:
    """How a picture of one size is evaluated."""

    description: str

    def __str__(self) -> str:
        return self.description


def resolve_device(name: str) -> torch.device:
    """The device that `name` means here: `auto` is CUDA, else MPS, else the CPU.

    Raises:
        DeviceError: the device asked for is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind = name.split(":")[0]
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in present:
        raise DeviceError(f"unknown device '{name}'", "use auto, cpu, cuda, cuda:1 or mps")
    if not present[kind]:
        raise DeviceError(f"there is no {kind} device here", "use --device auto or --device cpu")
    return torch.device(name)


class Upscaler:
    """The network, evaluated on H×W×C arrays."""

    def __init__(
        self,
        network: HASN,
        *,
        device: str = "auto",
        precision: str = "auto",
        tile: int | None = None,
        overlap: int | None = None,
        memory: int | None = None,
        tta: bool = False,
        compile: bool = False,
    ) -> None:
        self.device = resolve_device(device)
        self.precision = "fp32"
        self.scale = network.scale
        self.network = network.to(self.device).eval()

    def plan(self, size: tuple[int, int], channels: int = 3, itemsize: int = 1) -> Plan:
        """What `upscale` would do with a picture of `size` (height, width)."""
        return Plan("whole picture")

    def batch_size(self, size: tuple[int, int]) -> int:
        """How many pictures of `size` are best evaluated together."""
        return 1

    def upscale_batch(self, images: Sequence[Image], progress: Progress | None = None) -> list[Image]:
        """`upscale` for several pictures of one size and dtype."""
        return [self.upscale(image, progress) for image in images]

    @torch.inference_mode()
    def upscale(self, image: Image, progress: Progress | None = None) -> Image:
        """H×W×C (C = 1 or 3; uint8, uint16 or float32 in [0, 1]) → sH×sW×C of the same dtype."""
        full = 1.0 if image.dtype == np.float32 else float(np.iinfo(image.dtype).max)
        x = torch.from_numpy(image.astype(np.float32) / full).permute(2, 0, 1)[None]
        sr = self.network(x.expand(-1, 3, -1, -1).to(self.device))[0].float().cpu()
        if image.shape[2] == 1:
            sr = sr.mean(0, keepdim=True)
        out: NDArray[np.float32] = sr.permute(1, 2, 0).numpy()
        if progress:
            progress(1.0)
        if image.dtype == np.float32:
            return out
        return np.rint(np.clip(out, 0, 1) * full).astype(image.dtype)
