"""The training loop: one body, one or more scales, checkpoints that survive a kill."""

from __future__ import annotations

import copy
import hashlib
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hasn_cli.errors import HasnError, OutputError, UsageError
from hasn_cli.evaluation.benchmark import whole_multiple
from hasn_cli.evaluation.bicubic import resize
from hasn_cli.evaluation.metrics import psnr_y
from hasn_cli.inference import Upscaler
from hasn_cli.network import HASN
from hasn_cli.training.forward import forward
from hasn_cli.training.optimizer import build_optimizers, set_rate
from hasn_cli.training.patches import Batch, Patches, PatchPlan
from hasn_cli.training.saved import load_finite, read_checkpoint, understood
from hasn_cli.training.start import adopt, renew, revive, shut_channels, spatial_deviation, start
from hasn_cli.weights.checkpoint import save_network, write_atomically

Image = NDArray[np.uint8]
LOG, CURVE = "log.csv", "curve.png"  # names in a run's folder
SLIGHT = (0.25 / 255) ** 2  # keeps the root's gradient finite
SAMPLE = 2**17  # LR pixels by which to judge what hardly takes part, where so many come in 16 batches
DEAD = 1e-5  # a block that hands on less spatial deviation than this adds nothing, and never will again


@dataclass(frozen=True)
class Recipe:
    """How to train. One of `iterations` and `minutes` says when the rate has come down and the run ends."""

    scales: tuple[int, ...] = (2,)
    iterations: int | None = None
    minutes: float | None = None
    rate: float = 1e-3
    end_rate: float = 0.0  # what the rate comes down to
    warm_up: int = 100  # iterations
    clip: float = 1.0  # norm of the whole gradient
    ema: float = 0.999
    patches: PatchPlan = field(default_factory=PatchPlan)
    device: str = "cpu"
    half: bool = False  # the blocks in bfloat16
    piece: int = 4  # patches whose gradient is worked out at once
    lanes: int = 1  # threads that work on the pieces of a batch, and on the optimizers, each on one core
    workers: int = 0
    report_every: int = 50  # iterations
    validate_every: int = 500  # iterations; a checkpoint is written as often
    kernels: bool = True  # SOAP for the kernels, else Adam for all
    loss: Literal["l1", "rmse"] = "l1"
    initial: str | None = None  # weights that training begins from, as `hasn_cli.weights.resolve` takes them
    renew: bool = False  # begin anew what hardly varies in them


@dataclass(frozen=True)
class Report:
    """How a run stands: one row of its log."""

    step: int
    fraction: float  # of the run done, 0..1
    seconds: float  # trained so far, interruptions left out
    pixels: int  # LR pixels seen
    rate: float
    loss: float  # L1, whatever is trained by: mean since the last report, in grey levels
    speed: float  # iterations a second
    deviations: tuple[float, ...]  # spatial, before the blocks and after each
    psnr: Mapping[int, float]  # validation PSNR-Y of the averaged weights by scale; empty where not measured
    shut: tuple[int, ...] = ()  # channels of each block's gated product that hardly fire; empty where not counted

    @property
    def seconds_left(self) -> float:
        """At the pace so far."""
        return self.seconds * (1 / self.fraction - 1) if self.fraction else math.inf


class Trainer:
    """Trains on pictures in memory into a folder, going on from the checkpoint there if one is.

    Args:
        pictures: H×W×3 uint8 RGB, to train on.
        valid: the same, to choose by; may be empty.
        folder: gets `checkpoint.pt` and `hasn_xS.safetensors` (the averaged weights, best by validation).
        recipe: how.
        initial: gives a state dict, of any scale, for each scale, of which the first one's body is taken; called where
            a run begins. None: from nothing.

    Raises:
        OutputError: the folder holds files by the names of a run's, and no checkpoint of one.
        UsageError, HasnError: its checkpoint is of another run than the recipe's, or damaged.
    """

    def __init__(
        self,
        pictures: Sequence[Image],
        valid: Sequence[Image],
        folder: Path,
        recipe: Recipe,
        initial: Callable[[], Mapping[int, Mapping[str, Tensor]]] | None = None,
    ) -> None:
        if (recipe.iterations is None) == (recipe.minutes is None):
            raise ValueError("give either iterations or minutes")
        self.valid, self.folder, self.recipe = valid, folder, recipe
        self.data = Patches(pictures, recipe.scales, recipe.patches)
        self.networks = _networks_of_one_body(recipe.scales)
        self.renewed: tuple[int, ...] = ()
        self.revived: tuple[int, ...] = ()
        saved = self._saved()
        if saved is None:
            self._initialise(initial and initial())
        for network in self.networks.values():
            network.to(recipe.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.networks)
        self.optimizers = build_optimizers(self.networks.values(), kernels=recipe.kernels)
        folder.mkdir(parents=True, exist_ok=True)
        self._lanes = ThreadPoolExecutor(recipe.lanes)
        self.step, self.seconds = 0, 0.0
        self.best = dict.fromkeys(recipe.scales, -math.inf)
        self.history: list[Report] = []
        if saved is not None:
            with understood(self.checkpoint):
                self._take_up(saved)

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.folder / "checkpoint.pt"

    @property
    def finished(self) -> bool:
        """The run has come to the end that the recipe gave it."""
        return self._fraction() >= 1

    def run(self) -> Iterator[Report]:
        """Train to the end, reporting on the way.

        Raises:
            HasnError: a block has died or the loss is no number: the run is lost.
        """
        losses: list[Tensor] = []
        if not self.step:
            self._save_checkpoint()  # from here on, what the folder holds is this run's
        reported_at = clock = time.monotonic()
        for batch in self._batches():
            fraction = self._fraction()
            if fraction >= 1:
                break
            rate = schedule(self.recipe, fraction, self.step)
            loss, pieces = self._train_on(batch, rate)
            losses.append(loss)
            self.step += 1
            now = time.monotonic()
            self.seconds, clock = self.seconds + now - clock, now
            every = (self.recipe.report_every, self.recipe.validate_every)
            if self._fraction() >= 1 or any(self.step % steps == 0 for steps in every):
                speed = len(losses) / (now - reported_at)
                yield self._report(rate, losses, mean_deviations(pieces), speed)
                losses = []
                reported_at = clock = time.monotonic()

    def _report(self, rate: float, losses: list[Tensor], deviations: tuple[float, ...], speed: float) -> Report:
        last = self._fraction() >= 1
        loss = float(torch.stack(losses).mean()) * 255
        if not math.isfinite(loss):
            raise HasnError(f"training diverged at step {self.step}: the loss is {loss}", "try a lower --rate")
        if deviations[0] >= DEAD > min(deviations[1:]):  # of flat patches nothing can be told
            block = deviations.index(min(deviations[1:]))
            raise HasnError(f"training collapsed at step {self.step}: block {block} is dead", "try a lower --rate")
        psnr: dict[int, float] = {}
        shut: tuple[int, ...] = ()
        validating = last or self.step % self.recipe.validate_every == 0
        if validating:
            psnr = self._validate()
            shut = shut_channels(self.networks[self.recipe.scales[0]], self._first_patches().to(self.recipe.device))
        pixels = self.step * self.recipe.patches.batch * self.recipe.patches.side**2
        report = Report(self.step, self._fraction(), self.seconds, pixels, rate, loss, speed, deviations, psnr, shut)
        self.history.append(report)
        if validating:
            self._save(psnr)
        return report

    def _fraction(self) -> float:
        if self.recipe.iterations is not None:
            return self.step / self.recipe.iterations
        assert self.recipe.minutes is not None
        return min(1.0, self.seconds / (60 * self.recipe.minutes))

    def _batches(self) -> Iterator[Batch]:
        end = self.recipe.iterations if self.recipe.iterations is not None else 2**31
        loader: DataLoader[Batch] = DataLoader(
            self.data,
            batch_size=None,  # an item is a batch already
            sampler=range(self.step, end),
            num_workers=self.recipe.workers,
            pin_memory=self.recipe.device.startswith("cuda"),
            persistent_workers=False,
        )
        return iter(loader)

    def _train_on(self, batch: Batch, rate: float) -> tuple[Tensor, list[list[Tensor]]]:
        """One step; returns the L1 loss and, for each piece, the features before the blocks and after each."""
        network = self.networks[batch.scale]
        parameters = list(network.parameters())
        pieces = list(zip(*(torch.split(side, self.recipe.piece) for side in (batch.lr, batch.hr)), strict=True))

        def gradients(piece: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
            lr, hr = (x.to(self.recipe.device, non_blocking=True).float() / 255 for x in piece)
            sr, features = forward(network, lr.contiguous(memory_format=torch.channels_last), half=self.recipe.half)
            share = len(lr) / len(batch.lr)
            l1 = (sr - hr).abs().mean() * share
            loss = l1 if self.recipe.loss == "l1" else rmse(sr, hr) * share
            return l1.detach(), torch.autograd.grad(loss, parameters), features

        results = list(self._lanes.map(gradients, pieces))
        for parameter, *grads in zip(parameters, *(grads for _, grads, _ in results), strict=True):
            parameter.grad = torch.stack(grads).sum(0)
        nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        set_rate(self.optimizers, rate)
        list(self._lanes.map(lambda optimizer: optimizer.step(), self.optimizers))
        network.zero_grad()
        self._average()
        return sum((loss for loss, _, _ in results), torch.zeros(())), [features for _, _, features in results]

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        live, averaged = (_parameters_once(networks) for networks in (self.networks, self.averaged))
        torch._foreach_lerp_(averaged, live, 1 - decay)

    def _initialise(self, initial: Mapping[int, Mapping[str, Tensor]] | None) -> None:
        for scale, network in reversed(self.networks.items()):  # they share a body: the first scale's is to stay
            if initial is not None:
                adopt(network, initial[scale])
            else:
                start(network, self._first_patches(), self.recipe.patches.seed)
        if initial is not None:
            first = self.networks[self.recipe.scales[0]]
            plan = self.recipe.patches
            patches = self._first_patches(min(16, math.ceil(SAMPLE / (plan.batch * plan.side**2))))
            if self.recipe.renew:
                self.renewed = renew(first, patches, plan.seed)
            self.revived = revive(first, patches, plan.seed)

    def _first_patches(self, batches: int = 1) -> Tensor:
        """N×3×H×W in [0, 1]."""
        return torch.cat([self.data[index].lr for index in range(batches)]).float() / 255

    def _validate(self) -> dict[int, float]:
        if not self.valid:
            return {}
        device = self.recipe.device
        return {scale: mean_psnr(network, self.valid, device) for scale, network in self.averaged.items()}

    def _save(self, psnr: Mapping[int, float]) -> None:
        for scale, network in self.averaged.items():
            if psnr.get(scale, math.inf) >= self.best[scale]:
                self.best[scale] = psnr.get(scale, -math.inf)
                save_network(network, self._weights(scale))
        self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        state = {
            "plan": self._plan,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "valid": _fingerprint(self.valid),
            "history": [vars(report) for report in self.history],
            "networks": {scale: network.state_dict() for scale, network in self.networks.items()},
            "averaged": {scale: network.state_dict() for scale, network in self.averaged.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        data = io.BytesIO()
        torch.save(state, data)
        write_atomically(self.checkpoint, data.getvalue())

    def _refuse_strangers(self) -> None:
        names = [self.checkpoint.name, *(self._weights(scale).name for scale in self.recipe.scales), LOG, CURVE]
        if strange := [name for name in names if os.path.lexists(self.folder / name)]:
            message = f"{self.folder} holds {strange[0]}, which a run would replace, and no checkpoint of one"
            raise OutputError(message, "give another folder")

    def _weights(self, scale: int) -> Path:
        return self.folder / f"hasn_x{scale}.safetensors"

    @property
    def _plan(self) -> dict[str, object]:
        """What a run may not change on its way, by the names of the options."""
        recipe, patches = self.recipe, self.recipe.patches
        return {
            "-s": " and ".join(f"x{scale}" for scale in recipe.scales),
            "--batch": patches.batch,
            "--patch": patches.side,
            "--seed": patches.seed,
            "--adam": not recipe.kernels,
            "--loss": recipe.loss,
            "--from": recipe.initial or "nothing",
            "--renew": recipe.renew,
        }

    def _saved(self) -> dict[str, Any] | None:
        """What the folder's checkpoint holds, of a run as the recipe has it; None where training is to begin."""
        if not self.checkpoint.exists():
            self._refuse_strangers()
            return None
        state = read_checkpoint(self.checkpoint)
        plan = state["plan"]
        if state["step"] == 0:  # nothing is lost by beginning anew, with other options too
            return None
        for option, value in self._plan.items():
            if plan.get(option, value) != value:
                message = f"{self.folder} holds a run with {option} {plan.get(option)}, not {value}"
                raise UsageError(message, "give another folder, or the options that the run began with")
        return state

    def _take_up(self, state: Mapping[str, Any]) -> None:
        if len(state["optimizers"]) != len(self.optimizers):
            message = f"{self.checkpoint} is of a version of hasn that optimized otherwise"
            raise HasnError(message, "give another folder")
        for networks, name in ((self.networks, "networks"), (self.averaged, "averaged")):
            for scale, network in networks.items():
                load_finite(network, state[name][scale])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        if state.get("valid", ours := _fingerprint(self.valid)) == ours:  # by other pictures there is no best yet
            self.best = state["best"]
        self.history = [Report(**row) for row in state["history"]]


def _fingerprint(pictures: Sequence[Image]) -> str:
    """SHA-256 of pictures, H×W×3."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(repr(picture.shape).encode() + np.ascontiguousarray(picture).data)
    return digest.hexdigest()


def mean_deviations(pieces: Sequence[Sequence[Tensor]]) -> tuple[float, ...]:
    """The spatial deviation before the blocks and after each, over a batch's pieces."""
    return tuple(sum(map(spatial_deviation, stage)) / len(stage) for stage in zip(*pieces, strict=True))


def rmse(sr: Tensor, hr: Tensor) -> Tensor:
    """The root of each picture's mean square error, N×3×H×W in [0, 1]; their mean.

    What PSNR is the logarithm of. (The logarithm itself lets flat patches rule, with a gradient without bounds.)
    """
    return ((sr - hr).square().mean((1, 2, 3)) + SLIGHT).sqrt().mean()


def schedule(recipe: Recipe, fraction: float, step: int) -> float:
    """Base rate: a straight warm-up, then a cosine down to the end's (Loshchilov and Hutter, 2017)."""
    warm = min(1.0, (step + 1) / (recipe.warm_up + 1))
    return warm * (recipe.end_rate + (recipe.rate - recipe.end_rate) * 0.5 * (1 + math.cos(math.pi * fraction)))


def mean_psnr(network: HASN, pictures: Sequence[Image], device: str) -> float:
    """Mean PSNR-Y in decibels of HR pictures, H×W×3 uint8, reduced and enlarged again."""
    upscaler = Upscaler(network, device=device)
    values = []
    for picture in pictures:
        hr = whole_multiple(picture, network.scale)
        sr = upscaler.upscale(resize(hr, scale=1 / network.scale))
        values.append(psnr_y(sr, hr, network.scale))
    return float(np.mean(values))


def _networks_of_one_body(scales: Sequence[int]) -> dict[int, HASN]:
    networks = {scale: HASN(scale) for scale in scales}
    first = networks[scales[0]]
    for network in networks.values():
        for name, module in first.named_children():
            if name != "upsampler":
                setattr(network, name, module)
    return networks


def _parameters_once(networks: Mapping[int, HASN]) -> list[Tensor]:
    """Parameters of networks that share a body, each once."""
    return list({id(p): p for network in networks.values() for p in network.parameters()}.values())
