"""Decides, before anything is computed, how a picture of a given size is evaluated within a memory budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hasn_cli.errors import BudgetError
from hasn_cli.inference import streaming
from hasn_cli.inference.tiling import LARGE_TILE, cut
from hasn_cli.network import ESA_CHANNELS, EXPANSION, NUM_FEATURES

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


@dataclass(frozen=True)
class Plan:
    """How a picture is evaluated.

    Attributes:
        strip: rows in a strip.
        keep: whether normalised features are held too, which saves time.
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

    def __str__(self) -> str:
        cut = "whole" if self.tile is None else f"{self.tiles} tiles of up to {self.tile} px, {self.overlap} px shared"
        budget = "" if self.budget is None else f" of {self.budget / 2**20:.0f}"
        return f"{self.text}, {cut}, strips of {self.strip} rows, {self.bytes / 2**20:.0f}{budget} MiB"


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
    held = (height + 2 * streaming.GUARD) * width * NUM_FEATURES * task.held
    wide = 0 if task.on_host else (strip + 10) * width * WIDE * task.computing  # on a CPU this is part of PER_THREAD
    rows = 5 * (strip + 10) + 3 * streaming.REACH  # windows, rows between them, and a seam
    return held * (1 + keep) + low + wide + task.threads * (rows * width * NUM_FEATURES * task.computing + PER_THREAD)


def fixed_bytes(task: Task) -> int:
    """Memory for the picture and its result."""
    if not task.on_host:
        return 0
    lr = task.height * task.width * task.channels
    sr = lr * task.scale**2
    return lr * task.itemsize + sr * task.itemsize + (sr * 4 if task.turns else 0)


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
    return max(1, round((streaming.STRIP if task.on_host else streaming.STRIP_ELSEWHERE) / width))


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
        for strip, keep in ((best, True), (best, False), (max(1, best // 4), False)):
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
        chosen = tiled(tile) if max(task.height, task.width) > tile else whole()
    else:
        chosen = whole()
        if tile is None and budget is not None and chosen.bytes > budget:
            chosen = _largest(tiled, max(task.height, task.width), budget)
    if budget is not None and chosen.bytes > budget:
        needed = f"needs {chosen.bytes / 2**20:.0f} MiB and may use {budget / 2**20:.0f} MiB"
        hint = "raise --memory" if tile is None else "raise --memory, or leave --tile to the program"
        raise BudgetError(f"a picture of {task.width}×{task.height} px {needed}", hint)
    return chosen


def _largest(tiled: Callable[[int], Plan], longest: int, budget: int) -> Plan:
    """The plan with the largest tiles that fit into the budget, or else with the smallest tiles."""
    low, high = LARGE_TILE, max(LARGE_TILE, longest)
    while high - low > 8:
        middle = (low + high) // 2
        low, high = (middle, high) if tiled(middle).bytes <= budget else (low, middle)
    return tiled(low)
