"""Examines this machine: what is installed and available, and how hasn would use it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hasn_cli.errors import BudgetError, HasnError, MissingExtraError
from hasn_cli.machine import count_cores, free_memory, total_memory

if TYPE_CHECKING:
    from hasn_cli.inference import Upscaler

SCALES = (2, 3, 4)
SHAPE = (3, 4)  # height to width of the pictures that plans are made for
NOT_LISTED = ("all", "test", "bench", "peers")  # groups of other groups, and tools for development

PROBE = (192, 256)  # LR pixels; the picture of the speed test
LITTLE = 1 << 30  # less free memory than this, in bytes, is a concern


@dataclass(frozen=True)
class Device:
    """A device that the network can run on.

    Attributes:
        name: as for `--device`.
        title: the maker's name for it.
        memory, free: in bytes.
        precision: what `auto` means on it.
        chosen: whether `--device auto` chooses it.
    """

    name: str
    title: str
    memory: int
    free: int
    precision: str
    chosen: bool


@dataclass(frozen=True)
class FormatState:
    """Whether a format can be read and written here, found by trying it; `extra` names the extra for writing it.

    `read_only`: it is never written. `package`: what to install to read it, if that is missing.
    """

    name: str
    title: str
    read: bool
    write: bool
    extra: str | None
    read_only: bool = False
    package: str | None = None


@dataclass(frozen=True)
class Reach:
    """The largest picture that fits into memory at one scale.

    Attributes:
        size: (height, width) in LR pixels of the largest 4:3 picture that is computed whole, and therefore exactly.
        budget: bytes that the network may use.
    """

    scale: int
    size: tuple[int, int]
    budget: int | None


@dataclass(frozen=True)
class Speed:
    """The result of the speed test.

    Attributes:
        scale: of the network.
        seconds_per_megapixel: per megapixel of the LR picture, median.
        output_megapixels_per_second: megapixels of the SR picture.
        rounds: how many times it was measured.
    """

    scale: int
    seconds_per_megapixel: float
    output_megapixels_per_second: float
    rounds: int


@dataclass(frozen=True)
class Concern:
    """A problem and what to do about it; `fatal` if pictures cannot be upscaled because of it."""

    what: str
    hint: str
    fatal: bool = False


@dataclass(frozen=True)
class Findings:
    """Everything that was found.

    Attributes:
        packages: name → version, or None if it is missing.
        machine_code: the CPU's instructions that the network's steps are compiled for; None if PyTorch's operators
            are used instead.
        memory, free: in bytes.
    """

    version: str
    python: str
    executable: str
    system: str
    packages: dict[str, str | None]
    extras: dict[str, bool]
    torch_build: str
    machine_code: str | None
    threads: int
    cores: int
    devices: tuple[Device, ...]
    weights: dict[int, str | None]
    cache: str
    formats: tuple[FormatState, ...]
    memory: int
    free: int
    reach: tuple[Reach, ...]
    speed: Speed | None
    concerns: tuple[Concern, ...]

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return asdict(self)


def examine(*, seconds: float = 5.0, progress: Callable[[str], None] | None = None) -> Findings:
    """Examine everything.

    Args:
        seconds: how long to measure the speed; 0 for no measurement.
        progress: called with the name of what is examined next.
    """
    import torch

    from hasn_cli import __version__

    tell = progress or (lambda _: None)
    tell("devices")
    devices = find_devices()
    weights = {scale: bundled_weights(scale) for scale in SCALES}
    tell("formats")
    formats = probe_formats()
    tell("memory")
    upscalers, damaged = _load([scale for scale in SCALES if weights[scale]])
    reach = tuple(largest_exact(upscaler) for upscaler in upscalers.values())
    speed = None
    if seconds > 0 and upscalers:
        tell("speed")
        speed = measure_speed(upscalers[max(upscalers)], seconds)
    free = free_memory()
    needed, extras = requirements()
    cache = cache_folder()
    return Findings(
        version=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        packages={name: _version(name) for name in needed},
        extras={extra: all(map(_version, packages)) for extra, packages in extras.items()},
        torch_build=torch_build(),
        machine_code=machine_code(),
        threads=torch.get_num_threads(),
        cores=_cores(),
        devices=devices,
        weights=weights,
        cache=str(cache),
        formats=formats,
        memory=total_memory(),
        free=free,
        reach=reach,
        speed=speed,
        concerns=(*damaged, *find_concerns(weights, formats, cache, free)),
    )


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """The packages that hasn-cli needs, and those of each extra; both empty if it is not installed as a package."""
    needed: list[str] = []
    extras: dict[str, list[str]] = {}
    try:
        lines = requires("hasn-cli") or []
    except PackageNotFoundError:
        lines = []
    for line in lines:
        if "platform_machine" in line and platform.machine() not in line:
            continue  # it is for other processors
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"]([\w-]+)", line)
        if name and extra is None:
            needed.append(name[0])
        elif name and extra and extra[1] not in NOT_LISTED:
            extras.setdefault(extra[1], []).append(name[0])
    return needed, extras


def find_devices() -> tuple[Device, ...]:
    """The CPU, each CUDA device and Apple's GPU, if PyTorch can use them."""
    import torch

    devices = [_device("cpu", _processor(), total_memory())]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        total = torch.cuda.mem_get_info(index)[1]
        devices.append(_device(f"cuda:{index}", torch.cuda.get_device_name(index), total))
    if torch.backends.mps.is_available():
        devices.append(_device("mps", "Apple GPU", torch.mps.recommended_max_memory()))
    return tuple(devices)


def _device(name: str, title: str, memory: int) -> Device:
    import torch

    from hasn_cli.inference.devices import FLOATS, free_memory, precisions, resolve_device

    device, auto = torch.device(name), resolve_device("auto")
    _, held = precisions("auto", device)
    precision = next(name for name, dtype in FLOATS.items() if dtype is held)
    chosen = device.type == auto.type and (device.index or 0) == (auto.index or 0)
    return Device(name, title, memory, free_memory(device), precision, chosen)


def torch_build() -> str:
    """What PyTorch was built for: CUDA or ROCm with its version, and the CPU instructions that it uses."""
    import torch

    instructions = f"CPU with {torch.backends.cpu.get_cpu_capability()}"
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}, {instructions}"
    if torch.version.hip:
        return f"ROCm {torch.version.hip}, {instructions}"
    return instructions


def machine_code() -> str | None:
    """The instructions that the network's steps are compiled for on the CPU, AVX2 or AVX-512, or None."""
    from hasn_cli.inference.blocks import find_native

    native = find_native()
    return None if native is None else {8: "AVX2", 16: "AVX-512"}[native.tiling.lanes]


def bundled_weights(scale: int) -> str | None:
    """Path of the weights in the package, or None if they are missing."""
    from hasn_cli.weights import bundled_path

    try:
        return str(bundled_path(scale))
    except HasnError:
        return None


def cache_folder() -> Path:
    """Where downloaded weights are kept: the home folder of the Hugging Face Hub client."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME)


def probe_formats() -> tuple[FormatState, ...]:
    """Try to write and read a tiny picture in every format. Those that are only read are tried without a file."""
    from hasn_cli.images.codecs import loads
    from hasn_cli.images.codecs.plugins import PACKAGES, is_available
    from hasn_cli.images.formats import FORMATS, READ_ONLY

    states = []
    for name, entry in FORMATS.items():
        read, write = _probe(name)
        states.append(FormatState(name, entry.title, read, write, entry.extra))
    for name, only in READ_ONLY.items():
        missing = None if is_available(name) else PACKAGES[name][1]
        readable = missing is None and loads(name)
        states.append(FormatState(name, only.title, readable, False, None, read_only=True, package=missing))
    return tuple(states)


def _probe(name: str) -> tuple[bool, bool]:
    from hasn_cli.images import EncodeOptions, Frame, Picture, open_picture, write_picture
    from hasn_cli.images.codecs import loads

    pixels: NDArray[Any] = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    if name == "pfm":  # floats only
        pixels = pixels.astype(np.float32) / np.float32(255)
    buffer = BytesIO()
    try:
        picture = Picture("probe", name, (16, 16), 3, pixels.dtype, [Frame(pixels)])
        write_picture(picture, buffer, name, EncodeOptions())
    except MissingExtraError:  # needed for writing only
        return loads(name), False
    except (HasnError, ImportError):
        return False, False
    try:
        return open_picture(buffer.getvalue()).load().size == (16, 16), True
    except (HasnError, ImportError):
        return False, True


def largest_exact(upscaler: Upscaler) -> Reach:
    """The largest 4:3 picture that `upscaler` would compute whole, according to its plans."""

    def fits(unit: int) -> bool:
        try:
            return upscaler.plan((SHAPE[0] * unit, SHAPE[1] * unit)).tile is None
        except BudgetError:
            return False

    low, high = 0, 1
    while fits(high) and high < 1 << 16:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    budget = upscaler.plan((SHAPE[0], SHAPE[1])).budget if low else None
    return Reach(upscaler.scale, (SHAPE[0] * low, SHAPE[1] * low), budget)


def measure_speed(upscaler: Upscaler, seconds: float) -> Speed:
    """Upscale the same noise repeatedly for this many seconds. The first time, which warms up, does not count."""
    probe = np.random.default_rng(0).integers(0, 256, (*PROBE, 3), np.uint8)
    end = time.perf_counter() + seconds
    upscaler.upscale(probe)
    times: list[float] = []
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        upscaler.upscale(probe)
        times.append(time.perf_counter() - began)
    megapixels = PROBE[0] * PROBE[1] / 1e6
    median = statistics.median(times)
    return Speed(upscaler.scale, median / megapixels, megapixels * upscaler.scale**2 / median, len(times))


def _is_broken(state: FormatState) -> bool:
    if state.read_only:
        return not state.read and state.package is None
    return state.extra is None and not (state.read and state.write)


def find_concerns(
    weights: dict[int, str | None], formats: tuple[FormatState, ...], cache: Path, free: int
) -> list[Concern]:
    """All problems, the most serious first."""
    import torch

    concerns = []
    missing = [f"x{scale}" for scale, path in weights.items() if path is None]
    if missing:
        concerns.append(Concern(f"the weights for {', '.join(missing)} are missing", "install hasn-cli again", True))
    broken = [state.title for state in formats if _is_broken(state)]
    if broken:
        what = f"{', '.join(broken)} cannot be read and written"
        concerns.append(Concern(what, "install pillow, imagecodecs, tifffile, imageio and rawpy again", True))
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        what = "there is an NVIDIA driver, but PyTorch cannot use the GPU"
        concerns.append(Concern(what, "install PyTorch's CUDA build: https://pytorch.org/get-started/locally"))
    if torch.get_num_threads() < _cores() // 2:
        what = f"PyTorch uses {torch.get_num_threads()} of {_cores()} cores"
        concerns.append(Concern(what, "unset OMP_NUM_THREADS, unless that is meant"))
    if free < LITTLE:
        concerns.append(
            Concern(
                f"only {free / 2**20:.0f} MiB of memory are free",
                "close other programs, or large pictures are cut in tiles",
            )
        )
    if not os.access(_existing(cache), os.W_OK):
        concerns.append(Concern(f"{cache} cannot be written", "set HF_HOME to a folder that can"))
    return concerns


def _existing(path: Path) -> Path:
    return path if path.exists() or path.parent == path else _existing(path.parent)


def _load(scales: Sequence[int]) -> tuple[dict[int, Upscaler], list[Concern]]:
    """An upscaler for each scale whose weights can be loaded, and a concern for each of the others."""
    from hasn_cli.inference import Upscaler
    from hasn_cli.weights import CLEAN, PHOTO, load_network

    upscalers, concerns = {}, []
    for scale in scales:
        try:
            clean, _ = (load_network(name, scale) for name in (CLEAN, PHOTO))  # blends of both are used
            upscalers[scale] = Upscaler(clean)
        except HasnError as error:
            concerns.append(Concern(error.message, "install hasn-cli again", fatal=True))
    return upscalers, concerns


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    """Physical cores that this process may use, as far as the system reveals it."""
    import psutil

    usable = count_cores()
    return min(usable, psutil.cpu_count(logical=False) or usable)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
