"""Decides, before anything is computed, how a picture of a given size is evaluated within a memory budget."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil

from hasn_cli import machine
from hasn_cli.errors import BudgetError
from hasn_cli.inference.tiling import LARGE_TILE, cut

# as in `network`, which would bring PyTorch with it
NUM_FEATURES, EXPANSION, ESA_CHANNELS, MIN_SIDE = 52, 3, 16, 15
BORDER = 4  # mirrored pixels around a picture: the convolutions see zeros beyond them, and flat colours would drift
REACH = 8  # rows that the second sweep reads beyond those it writes: 3 + 3 for the depthwise, 1 + 1 for CAB
GUARD = 3  # rows of zeros above and below a map: the first depthwise convolution's padding
STRIP = 16384  # pixels, about, in a strip: short enough for the cache, long enough that starting operators costs little
STRIP_ELSEWHERE = 1 << 18  # pixels in a strip on an accelerator, which wants them by the hundred thousand
SHARE_OF_FREE = 0.6  # of the memory that is free: the budget where none is given
CPU_BYTES = {"auto": (4, 4), "fp32": (4, 4), "fp16": (4, 2), "bf16": (2, 2)}  # precision → to compute, to hold features
AUTO_OVERLAP = 32  # LR pixels shared by two large tiles
PER_THREAD = 24 << 20  # bytes that do not depend on the picture's size: values of 156 channels, oneDNN's scratch memory
WIDE = 5 * EXPANSION * NUM_FEATURES  # values per pixel that the gated product holds at once


@dataclass(frozen=True)
class Task:
    """What a plan is made for: sizes in LR pixels, value sizes in bytes."""

    height: int
    width: int
    channels: int
    itemsize: int  # of input and output values
    scale: int
    computing: int  # bytes of a value in strips
    held: int  # bytes of a value in the feature map
    threads: int
    on_host: bool  # input and output share the memory of the feature maps
    turns: bool = False  # it is also evaluated turned by 90°, and the output is summed in float32
    border: int = 0  # mirrored pixels on each side, included in height and width


@dataclass(frozen=True)
class Plan:
    """How a picture is evaluated.

    Attributes:
        strip: rows in a strip.
        keep: whether normalised features are held too, which saves time on accelerators.
        tile: side of the largest tile in LR pixels, or None for the whole picture, exactly.
        overlap: LR pixels that two tiles share.
        tiles: the number of tiles.
        bytes: memory planned for feature maps, strips, input and output.
        budget: the limit for `bytes`, or None.
        text: device and precision, for people.
    """

    strip: int
    keep: bool
    tile: int | None
    overlap: int
    tiles: int
    bytes: int
    budget: int | None
    text: str

    def on_its_side(self, height: int, width: int) -> Plan:
        """The plan for a picture of height×width LR pixels when it is turned by 90°."""
        height, width = (min(side, self.tile or side) for side in (height, width))
        return replace(self, strip=turned_strip(self.strip, width, height))

    @property
    def summary(self) -> str:
        """What a user wants to know: `whole picture, 132 MB of 12.2 GB`."""
        cut = "whole picture" if self.tile is None else f"{self.tiles} tiles of up to {self.tile} px"
        budget = "" if self.budget is None else f" of {memory_size(self.budget)}"
        return f"{cut}, {memory_size(self.bytes)}{budget}"

    @property
    def details(self) -> str:
        """Device and precision, strips, and what tiles share: `cpu fp32, strips of 24 rows`."""
        shared = "" if self.tile is None else f", tiles share {self.overlap} px"
        return f"{self.text}, strips of {self.strip} rows{shared}"

    def __str__(self) -> str:
        return f"{self.summary} ({self.details})"


def memory_size(amount: int) -> str:
    """`132 MB`, `12.2 GB`: powers of 1024, as `--memory` takes them."""
    return f"{amount / 2**30:.1f} GB" if amount >= 2**30 else f"{amount / 2**20:.0f} MB"


def turned_strip(strip: int, width: int, turned_width: int) -> int:
    """Rows of a strip in a picture of another width, with as many pixels as `strip` rows of `width`."""
    return max(1, strip * width // turned_width)


def map_bytes(task: Task, height: int, width: int, strip: int, keep: bool) -> int:
    """Memory for the feature maps and strips of height×width LR pixels; if it turns, for the larger of both ways."""
    need = _map_bytes(task, height, width, strip, keep)
    if not task.turns:
        return need
    return max(need, _map_bytes(task, width, height, turned_strip(strip, width, height), keep))


def _map_bytes(task: Task, height: int, width: int, strip: int, keep: bool) -> int:
    low = height * width // 4 * ESA_CHANNELS * task.computing * 5 // 4  # the strided map and the small maps after it
    held = (height + 2 * GUARD) * width * NUM_FEATURES * task.held
    wide = 0 if task.on_host else (strip + 10) * width * WIDE * task.computing  # on a CPU this is part of PER_THREAD
    rows = 5 * (strip + 10) + 3 * REACH  # windows, rows between them, and a seam
    return held * (1 + keep) + low + wide + task.threads * (rows * width * NUM_FEATURES * task.computing + PER_THREAD)


def fixed_bytes(task: Task) -> int:
    """Memory for the picture, its copy with a border, and its result."""
    if not task.on_host:
        return 0
    lr = task.height * task.width * task.channels
    sr = lr * task.scale**2
    return lr * task.itemsize * (2 if task.border else 1) + sr * task.itemsize + (sr * 4 if task.turns else 0)


def tile_bytes(task: Task, tile: int, overlap: int, strip: int) -> int:
    """Memory for one tile, and for the parts that are blended."""
    height, width = min(tile, task.height), min(tile, task.width)
    shared = 2 * task.width + height
    if task.turns:
        shared = max(shared, 2 * task.height + width)
    blended = shared * overlap * task.scale**2 * task.channels * 4 if task.on_host else 0
    return map_bytes(task, height, width, strip, False) + 2 * blended


def strip_rows(task: Task, width: int) -> int:
    """Rows in a strip of the size that is fastest on the device."""
    return max(1, round((STRIP if task.on_host else STRIP_ELSEWHERE) / width))


def plan(task: Task, budget: int | None, tile: int | None, overlap: int | None, text: str) -> Plan:
    """The best plan that fits into the budget.

    Args:
        budget: bytes, or None for no limit.
        tile: None for the whole picture if it fits, else the largest tiles that fit; 0 for the whole picture always; or
            the side of a tile in LR pixels.
        overlap: LR pixels, at most a third of the tile; None for AUTO_OVERLAP, or a quarter of a small tile.

    Raises:
        BudgetError: no allowed plan fits.
    """
    fixed = fixed_bytes(task)

    def whole() -> Plan:
        best = strip_rows(task, task.width)
        for strip, keep in ((best, not task.on_host), (best, False), (max(1, best // 4), False)):
            need = fixed + map_bytes(task, task.height, task.width, strip, keep)
            if budget is None or need <= budget:
                break
        return Plan(strip, keep, None, 0, 1, need, budget, text)

    def tiled(side: int) -> Plan:
        shared = min(AUTO_OVERLAP, side // 4) if overlap is None else min(overlap, side // 3)
        strip = max(1, strip_rows(task, min(side, task.width)) // 4)
        count = len(cut(task.height, side, shared)) * len(cut(task.width, side, shared))
        return Plan(strip, False, side, shared, count, fixed + tile_bytes(task, side, shared, strip), budget, text)

    if tile:
        chosen = tiled(tile) if max(task.height, task.width) - 2 * task.border > tile else whole()
    else:
        chosen = whole()
        if tile is None and budget is not None and chosen.bytes > budget:
            chosen = _largest(tiled, max(task.height, task.width), budget)
    if budget is not None and chosen.bytes > budget:
        least = math.ceil(chosen.bytes / 2**20)
        needed = f"needs {least} MiB and may use {budget / 2**20:.0f} MiB"
        more = f"--memory {least}M is enough, if the machine has it"
        hint = more if tile is None else f"{more}, or leave out --tile"
        width, height = task.width - 2 * task.border, task.height - 2 * task.border
        raise BudgetError(f"a picture of {width}×{height} px {needed}", hint)
    return chosen


def bordered(size: tuple[int, int], border: int) -> tuple[int, int]:
    """The (height, width) that is evaluated for a picture of `size`: with its border, and as the network needs it."""
    height, width = (max(side + 2 * border, MIN_SIDE) for side in size)
    return height, width


def plan_on_cpu(
    size: tuple[int, int],
    channels: int,
    itemsize: int,
    scale: int,
    *,
    precision: str = "auto",
    tile: int | None = None,
    overlap: int | None = None,
    memory: int | None = None,
    tta: bool = False,
    threads: int | None = None,
) -> Plan:
    """What `Upscaler.plan` gives on a CPU for the same options, without loading PyTorch.

    Args:
        size: (height, width) of the picture.
        threads: None: as many as PyTorch is expected to use.

    Raises:
        BudgetError: nothing allowed fits.
    """
    computing, held = CPU_BYTES[precision]
    height, width = bordered(size, BORDER)
    task = Task(
        height,
        width,
        channels,
        itemsize,
        scale,
        computing,
        held,
        threads or expected_threads(),
        on_host=True,
        turns=tta,
        border=BORDER,
    )
    free = memory is None and tile is None
    budget = int(SHARE_OF_FREE * machine.free_memory()) if free else memory
    return plan(task, budget, tile, overlap, f"cpu, {'fp32' if precision == 'auto' else precision}")


def expected_threads() -> int:
    """As many threads as PyTorch will use on this CPU: one for each physical core, or as OMP_NUM_THREADS says."""
    stated = os.environ.get("OMP_NUM_THREADS", "")
    count = int(stated) if stated.isdecimal() else psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(count, machine.count_cores()))


def _largest(tiled: Callable[[int], Plan], longest: int, budget: int) -> Plan:
    """The plan with the largest tiles that fit into the budget, or else with the smallest tiles."""
    low, high = LARGE_TILE, max(LARGE_TILE, longest)
    while high - low > 8:
        middle = (low + high) // 2
        low, high = (middle, high) if tiled(middle).bytes <= budget else (low, middle)
    return tiled(low)
