"""Devices: which are available, which precisions they use, and how much memory they have."""

from __future__ import annotations

import torch

from hasn_cli import machine
from hasn_cli.errors import DeviceError
from hasn_cli.inference.planning import SHARE_OF_FREE

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # words in PyTorch's RuntimeErrors
FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def resolve_device(name: str) -> torch.device:
    """The device that `name` means here: `auto` is CUDA, else MPS, else the CPU.

    Raises:
        DeviceError: the device does not exist here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, colon, index = name.partition(":")
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if kind not in present or (colon and not index.isdecimal()):
        raise DeviceError(f"unknown device '{name}'", "use auto, cpu, cuda, cuda:1 or mps")
    if int(index or 0) >= present[kind]:
        raise DeviceError(f"there is no {name} device here", "use --device auto or --device cpu")
    return torch.device(name)


def precisions(name: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """The types for computing and for holding feature maps.

    `auto` is float16 on CUDA and float32 elsewhere. On a CPU, fp16 halves the memory: features are held in float16, and
    computations use float32.

    Raises:
        DeviceError: there is no such precision.
    """
    if name == "auto":
        name = "fp16" if device.type == "cuda" else "fp32"
    if name not in FLOATS:
        raise DeviceError(f"unknown precision '{name}'", "use auto, fp32, fp16 or bf16")
    if device.type == "cpu" and name == "fp16":
        return torch.float32, torch.float16
    return FLOATS[name], FLOATS[name]


def free_memory(device: torch.device) -> int:
    """Bytes that are still free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return machine.free_memory()


def budget(device: torch.device) -> int:
    """The default memory budget in bytes."""
    return int(SHARE_OF_FREE * free_memory(device))


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished its queue, so that progress is not ahead of the work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that memory ran out. CUDA has a type for it, other allocators only a message."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def release(device: torch.device) -> None:
    """Return cached memory to the device after it ran out."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
