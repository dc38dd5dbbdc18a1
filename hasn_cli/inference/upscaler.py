"""`Upscaler`: one network on one device, applied to pictures as arrays, within a memory budget."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hasn_cli.errors import BudgetError
from hasn_cli.inference import devices, planning
from hasn_cli.inference.devices import resolve_device
from hasn_cli.inference.fusion import FusedNetwork
from hasn_cli.inference.kernels import keep_freed_memory
from hasn_cli.inference.planning import Plan, Task
from hasn_cli.inference.progress import Part, Progress, Whole
from hasn_cli.inference.streaming import Evaluation, NonFinite, Sink
from hasn_cli.inference.tiling import LARGE_TILE, Canvas, Image, Output, check_tile, cut, quantised
from hasn_cli.inference.workers import CPU_THREADS, Workers, alone
from hasn_cli.network import HASN, MIN_SIDE, pad_to_min_side

__all__ = ["Plan", "Progress", "Upscaler", "resolve_device"]

TURNS = tuple((turns, flip) for flip in (False, True) for turns in range(4))


class Upscaler:
    """The network, evaluated on H×W×C arrays. Use it from one thread at a time.

    Args:
        network: in float32; it is not changed.
        device: auto, cpu, cuda, cuda:1 or mps.
        precision: auto, fp32, fp16 or bf16; see `devices.precisions`. If a picture's features exceed a half precision,
            that picture is computed in float32.
        tile: None for the whole picture, cut only if it exceeds the budget; 0 to never cut it; N for tiles of N LR px.
        overlap: LR pixels that two tiles share; by default it depends on the tile's size.
        memory: bytes for feature maps, strips and, on a CPU, the picture and its result; by default a share of the free
            memory.
        tta: the mean over the eight flips and turns, which takes eight times as long.
        compile: use torch.compile for the strips' operators (accelerators only).
        threads: on a CPU; by default as many as PyTorch used when this module was imported.
        strip: rows in a strip; by default as many as fit into the cache. For tests and measurements.
        border: LR pixels by which a picture is extended on each side before the network, mirrored, and which are cut
            off afterwards. With 0 the result is that of `network` itself, whose convolutions see zeros around the
            picture.

    Raises:
        DeviceError, UsageError: the device, precision, tile or overlap is impossible.
    """

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
        threads: int | None = None,
        strip: int | None = None,
        border: int = planning.BORDER,
    ) -> None:
        self.device = resolve_device(device)
        self._computing, self._held = devices.precisions(precision, self.device)
        self.precision = next(name for name, dtype in devices.FLOATS.items() if dtype is self._held)
        self.scale, self.network = network.scale, network
        self.tile, self.overlap, self.memory, self.tta = tile, overlap, memory, tta
        check_tile(tile, overlap)
        self._strip, self._compile, self._border = strip, compile, border
        self._threads = (threads or CPU_THREADS) if self.device.type == "cpu" else 0
        self._workers: Workers | None = None
        self._fused: dict[torch.dtype, FusedNetwork] = {}

    def plan(self, size: tuple[int, int], channels: int = 3, itemsize: int = 1) -> Plan:
        """How a picture of `size` (height, width) in LR pixels would be evaluated.

        Raises:
            BudgetError: it does not fit into the memory budget.
        """
        return self._plan(size, channels, itemsize, self._computing, self._held)

    def close(self) -> None:
        """Stop the threads. The next picture starts new ones."""
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    @torch.inference_mode()
    def upscale(self, image: Image, progress: Progress | None = None) -> Image:
        """Enlarge one picture.

        Args:
            image: H×W×C, C = 1 or 3; uint8 or uint16, or float32 taken as [0, 1].
            progress: called in this thread with the fraction done, 0 to 1; may raise to cancel.

        Returns:
            sH×sW×C of the same dtype. Integers are rounded and clipped, floats are not clipped. One channel is
            evaluated as three equal ones, and their mean is returned.

        Raises:
            BudgetError: it does not fit into the memory budget, or memory ran out although it should fit.
        """
        _check_image(image)
        report = Whole(progress)
        with alone() if self.device.type == "cpu" else nullcontext():
            result = self._within_memory(image, extended(image, self._border), report)
        report.tell(1.0)
        return result

    def _within_memory(self, image: Image, wide: Image, report: Whole | Part) -> Image:
        """Follow the plan. If memory runs out, retry with less; if the features exceed the precision, in float32.

        `wide` is the image with its border.
        """
        computing, held = self._computing, self._held
        plan = self._plan_for(image, computing, held)
        size = (image.shape[0] * self.scale, image.shape[1] * self.scale, image.shape[2])
        while True:
            try:
                return self._turned(wide, size, plan, computing, held, report)
            except NonFinite:
                computing = held = torch.float32
                plan = self._plan_for(image, computing, held)
            except (RuntimeError, MemoryError) as error:
                if not devices.is_out_of_memory(error):
                    raise
                plan = self._smaller(plan, image, (computing, held), error)
            devices.release(self.device)

    def _smaller(self, plan: Plan, image: Image, precision: tuple[torch.dtype, torch.dtype], error: Exception) -> Plan:
        """The next plan after one that ran out of memory: fewer maps, then shorter strips, then tiles."""
        if plan.keep:
            return replace(plan, keep=False)
        if plan.strip > 1:
            return replace(plan, strip=plan.strip // 2)
        side = max(image.shape[:2]) if plan.tile is None else plan.tile
        if side // 2 < LARGE_TILE or self.tile == 0:
            hint = "close other programs, or use --device cpu" if self.device.type != "cpu" else "close other programs"
            raise BudgetError(
                f"out of memory on {self.device} for {image.shape[1]}×{image.shape[0]} px", hint
            ) from error
        return self._plan_for(image, *precision, tile=side // 2)

    def _turned(
        self,
        wide: Image,
        size: tuple[int, int, int],
        plan: Plan,
        computing: torch.dtype,
        held: torch.dtype,
        report: Whole | Part,
    ) -> Image:
        """The part of the result that belongs to the picture, of `size`; `wide` is the picture with its border."""
        height, width, channels = wide.shape
        margin = self._border * self.scale
        if not self.tta:
            result = np.empty(size, wide.dtype)
            self._cut(wide, Output(result, margin=margin), plan, computing, held, report)
            return result
        total = np.zeros((height * self.scale, width * self.scale, channels), np.float32)
        for i, (turns, flip) in enumerate(TURNS):
            lr, sr = (np.rot90(array[:, ::-1] if flip else array, turns) for array in (wide, total))
            turned = plan.on_its_side(height, width) if turns % 2 else plan
            part = report.part(i / len(TURNS), 1 / len(TURNS))
            self._cut(lr, Output(sr, 1 / len(TURNS)), turned, computing, held, part)
        return quantised(total[margin : margin + size[0], margin : margin + size[1]], wide.dtype)

    def _cut(
        self, image: Image, output: Output, plan: Plan, computing: torch.dtype, held: torch.dtype, report: Whole | Part
    ) -> None:
        """Evaluate `image` whole or tile by tile, into `output`."""
        height, width, channels = image.shape
        side = plan.tile or max(height, width)
        rows, columns = cut(height, side, plan.overlap), cut(width, side, plan.overlap)
        canvas = Canvas(output, rows, columns, self.scale, channels)
        network = self._network(computing)
        for done, (i, j) in enumerate(canvas.tiles()):
            piece = image[rows[i].start : rows[i].stop, columns[j].start : columns[j].stop]

            def sink(top: int, strip: Tensor, tile: tuple[int, int] = (i, j)) -> None:
                canvas.put(tile, top * self.scale, self._values(strip, held))

            self._evaluate(piece, network, held, plan, sink, report.part(done / plan.tiles, 1 / plan.tiles))

    def _evaluate(
        self, piece: Image, network: FusedNetwork, held: torch.dtype, plan: Plan, sink: Sink, part: Part
    ) -> None:
        """Evaluate one tile, or the whole. Its feature maps are freed when this returns."""
        source, strip = ArraySource(piece, network), self._strip or plan.strip
        Evaluation(network, source, held, self._ready_workers(), strip, plan.keep).run(sink, part.add)

    def _values(self, strip: Tensor, held: torch.dtype) -> NDArray[np.float32]:
        """h×W×(s·s·C) → sh×sW×C floats on the host.

        Raises:
            NonFinite: the result exceeds half precision.
        """
        height, width, cells = strip.shape
        s, channels = self.scale, cells // self.scale**2
        values = strip.view(height, width, s, s * channels).permute(0, 2, 1, 3).reshape(height * s, width * s, channels)
        if held is not torch.float32 and not torch.isfinite(values).all():
            raise NonFinite
        result: NDArray[np.float32] = values.float().cpu().numpy()
        return result

    def _plan_for(self, image: Image, computing: torch.dtype, held: torch.dtype, tile: int | None = None) -> Plan:
        return self._plan(image.shape[:2], image.shape[2], image.dtype.itemsize, computing, held, tile)

    def _plan(
        self,
        size: tuple[int, int],
        channels: int,
        itemsize: int,
        computing: torch.dtype,
        held: torch.dtype,
        tile: int | None = None,
    ) -> Plan:
        (height, width), cpu = planning.bordered(size, self._border), self.device.type == "cpu"
        task = Task(
            height, width, channels, itemsize, self.scale,
            computing=computing.itemsize,
            held=held.itemsize,
            threads=max(1, self._threads),
            on_host=cpu,
            turns=self.tta,
            border=self._border,
        )  # fmt: skip
        budget = devices.budget(self.device) if self.memory is None and self.tile is None else self.memory
        text = f"{self.device}, {self.precision}"
        return planning.plan(task, budget, self.tile if tile is None else tile, self.overlap, text)

    def _network(self, computing: torch.dtype) -> FusedNetwork:
        if computing not in self._fused:
            self._fused[computing] = FusedNetwork(self.network, self.device, computing, compile=self._compile)
        return self._fused[computing]

    def _ready_workers(self) -> Workers:
        if self._workers is None:
            keep_freed_memory()
            self._workers = Workers(self._threads, self.device)
        return self._workers


class ArraySource:
    """An H×W×C array as the strips need it: floats in [0, 1], on the device, surrounded by zeros."""

    def __init__(self, image: Image, network: FusedNetwork) -> None:
        self.image, self.network = image, network
        self.size, self.channels = (image.shape[0], image.shape[1]), image.shape[2]
        self._unit = np.float32(1 if image.dtype.kind == "f" else 1 / np.iinfo(image.dtype).max)

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) with one more column on each side: h×(W+2)×C."""
        height, width = self.size
        padded = np.zeros((bottom - top, width + 2, self.channels), np.float32)
        lo, hi = max(top, 0), min(bottom, height)
        np.multiply(self.image[lo:hi], self._unit, out=padded[lo - top : hi - top, 1:-1])
        return torch.from_numpy(padded).to(self.network.device, self.network.dtype)


def _check_image(image: Image) -> None:
    if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"an image is H×W×1 or H×W×3, not {image.shape}")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise ValueError(f"an image is uint8, uint16 or float32, not {image.dtype}")


def extended(image: Image, border: int) -> Image:
    """H×W×C with `border` mirrored pixels on each side, and at the bottom and right as many as the network needs."""
    if border:
        image = np.pad(image, ((border, border), (border, border), (0, 0)), mode="symmetric")
    if min(image.shape[:2]) >= MIN_SIDE:
        return image
    tensor = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    padded: Image = pad_to_min_side(tensor)[0].permute(1, 2, 0).numpy().astype(image.dtype)
    return padded
