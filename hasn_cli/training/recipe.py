"""What a run is told, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hasn_cli.training.patches import PatchPlan


@dataclass(frozen=True)
class Recipe:
    """How to train. Give either `iterations` or `minutes`: the learning rate falls until then, and the run ends."""

    scales: tuple[int, ...] = (2,)
    iterations: int | None = None
    minutes: float | None = None
    rate: float = 1e-3
    end_rate: float = 0.0  # the learning rate at the end
    warm_up: int = 100  # steps over which the learning rate rises at the start
    clip: float = 1.0  # longest gradient
    ema: float = 0.999  # decay of the averaged weights
    patches: PatchPlan = field(default_factory=PatchPlan)
    device: str = "cpu"
    half: bool = False  # run the blocks in bfloat16
    piece: int = 4  # patches whose gradient is computed at once
    lanes: int = 1  # threads, with one core each, that share a batch's pieces and the optimizers
    workers: int = 0  # processes that cut patches
    compile: bool = False  # compile the blocks with torch.compile
    channels_last: bool = True  # memory layout of the features
    captured: bool = False  # record each scale's step as a CUDA graph
    own_depthwise: bool = True  # see `forward.block_function`
    report_every: int = 50  # steps
    validate_every: int = 500  # steps; a checkpoint is written as often
    kernels: bool = True  # SOAP for the kernels, or Adam for all weights
    loss: Literal["l1", "rmse"] = "l1"
    initial: str | None = None  # weights to start from, as `hasn_cli.weights.resolve` accepts them
    blend_with: str | None = None  # weights that stay as they are, whose blends with the trained ones learn


@dataclass(frozen=True)
class LogRow:
    """The state of a run: one row of its log."""

    step: int
    fraction: float  # of the run, 0 to 1
    seconds: float  # spent on training, without interruptions
    pixels: int  # LR pixels seen
    rate: float
    loss: float  # mean L1 since the last report in grey levels, whichever loss is trained with
    speed: float  # steps per second
    deviations: tuple[float, ...]  # spatial, before the first block and after each block
    psnr: Mapping[int, float]  # validation PSNR-Y of the averaged weights by scale; empty if not measured
    shut: tuple[int, ...] = ()  # dead channels of each block's gated product

    @property
    def seconds_left(self) -> float:
        """At the speed so far."""
        return self.seconds * (1 / self.fraction - 1) if self.fraction else math.inf


def schedule(recipe: Recipe, fraction: float, step: int) -> float:
    """The learning rate: a linear warm-up, then a cosine down to `end_rate` (Loshchilov and Hutter, 2017)."""
    warm = min(1.0, (step + 1) / (recipe.warm_up + 1))
    return warm * (recipe.end_rate + (recipe.rate - recipe.end_rate) * 0.5 * (1 + math.cos(math.pi * fraction)))
