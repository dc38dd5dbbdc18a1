"""The training loop: one body for one or more scales, with checkpoints so that a killed run can continue."""

from __future__ import annotations

import copy
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hasn_cli import files
from hasn_cli.errors import HasnError, OutputError, UsageError
from hasn_cli.network import HASN
from hasn_cli.training.degrade import Image
from hasn_cli.training.forward import block_function, forward
from hasn_cli.training.graphs import CapturedSteps, Update
from hasn_cli.training.initialization import adopt, shut_channels, start
from hasn_cli.training.optimizer import SOAP, build_optimizers, set_rate
from hasn_cli.training.patches import Batch, Patches
from hasn_cli.training.recipe import LogRow, Recipe, schedule
from hasn_cli.training.saved import load_finite, read_checkpoint, understood
from hasn_cli.training.validation import fingerprint, mean_deviations, mean_psnr, mix
from hasn_cli.weights.checkpoint import save_network

LOG, CURVE = "log.csv", "curve.png"  # file names in a run's folder
SLIGHT = (0.25 / 255) ** 2  # keeps the square root's gradient finite
DEAD = 1e-5  # a block whose output has a smaller spatial deviation contributes nothing and cannot recover


class Trainer:
    """Trains on pictures in memory and writes to a folder. Continues from the folder's checkpoint if there is one.

    Args:
        pictures: H×W×3 uint8 RGB, to train on.
        valid: the same, to choose the best weights by; may be empty.
        folder: gets `checkpoint.pt` and `hasn_xS.safetensors` (the averaged weights, the best by validation).
        recipe: how to train.
        initial: returns a state dict, of any scale, for each scale. The body of the first scale is used. Only called
            when a run starts. None: train from scratch.
        partners: a state dict for each scale, if the blends of these weights with the trained ones shall learn.

    Raises:
        OutputError: the folder has no checkpoint, but holds files that a run would replace.
        UsageError, HasnError: the checkpoint belongs to a run with another recipe, or is damaged.
    """

    def __init__(
        self,
        pictures: Sequence[Image],
        valid: Sequence[Image],
        folder: Path,
        recipe: Recipe,
        initial: Callable[[], Mapping[int, Mapping[str, Tensor]]] | None = None,
        partners: Mapping[int, Mapping[str, Tensor]] | None = None,
    ) -> None:
        if (recipe.iterations is None) == (recipe.minutes is None):
            raise ValueError("give either iterations or minutes")
        self.valid, self.folder, self.recipe = valid, folder, recipe
        self.data = Patches(pictures, recipe.scales, recipe.patches)
        self.networks = _networks_of_one_body(recipe.scales)
        saved = self._saved()
        if saved is None:
            self._initialise(initial and initial())
        self._format = torch.channels_last if recipe.channels_last else torch.contiguous_format
        for network in self.networks.values():
            network.to(recipe.device, memory_format=self._format)  # type: ignore[call-overload]
        self.averaged = copy.deepcopy(self.networks)
        self._partners = {scale: self._parameters_of(scale, state) for scale, state in (partners or {}).items()}
        self.optimizers = build_optimizers(self.networks.values(), kernels=recipe.kernels, captured=recipe.captured)
        self._active = {scale: _optimizers_of(network, self.optimizers) for scale, network in self.networks.items()}
        self._update: Update = CapturedSteps(self._descend) if recipe.captured else self._descend
        folder.mkdir(parents=True, exist_ok=True)
        self._map: Callable[..., Iterable[Any]] = map if recipe.lanes == 1 else ThreadPoolExecutor(recipe.lanes).map
        self._block = block_function(own_depthwise=recipe.own_depthwise, compiled=recipe.compile)
        self._photo = 1.0  # share of the trained weights in the blend that learns from the current batch
        self.step, self.seconds = 0, 0.0
        self._clock: float | None = None  # when the step in progress began, by time.monotonic; None between steps
        self.best = dict.fromkeys(recipe.scales, -math.inf)
        self.history: list[LogRow] = []
        if saved is not None:
            with understood(self.checkpoint):
                self._take_up(saved)

    @property
    def checkpoint(self) -> Path:
        """The file with everything needed to continue."""
        return self.folder / "checkpoint.pt"

    @property
    def finished(self) -> bool:
        """Whether the run has reached the length that the recipe gives it."""
        return self._fraction() >= 1

    @property
    def fraction(self) -> float:
        """How much of the run is done, 0 to 1. Given minutes, it also grows during a step."""
        running = 0.0 if self._clock is None else time.monotonic() - self._clock
        return self._fraction(running)

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None before the first step of a run by iterations."""
        if self.recipe.minutes is not None:
            return 60 * self.recipe.minutes * (1 - self.fraction)
        return self.seconds * (1 / self.fraction - 1) if self.fraction else None

    def run(self) -> Iterator[LogRow]:
        """Train to the end, with reports on the way.

        Raises:
            HasnError: a block has died or the loss is not a number. The run cannot recover.
        """
        losses: list[Tensor] = []
        if not self.step:
            self.save_checkpoint()  # from now on the files in the folder belong to this run
        reported_at = self._clock = time.monotonic()
        for batch in self._batches():
            fraction = self._fraction()
            if fraction >= 1:
                break
            rate = schedule(self.recipe, fraction, self.step)
            loss, pieces = self._train_on(batch, rate)
            losses.append(loss)
            self.step += 1
            every = (self.recipe.report_every, self.recipe.validate_every)
            reporting = any(self.step % steps == 0 for steps in every)
            if reporting and self.recipe.device.startswith("cuda"):
                torch.cuda.synchronize()  # a GPU may be many steps behind
            now = time.monotonic()
            self.seconds, self._clock = self.seconds + now - self._clock, now
            if reporting or self._fraction() >= 1:
                self._clock = None  # neither the validation nor what the caller does counts as training
                speed = len(losses) / (now - reported_at)
                yield self._report(rate, losses, mean_deviations(pieces), speed)
                losses = []
                reported_at = self._clock = time.monotonic()
        self._clock = None

    def _report(self, rate: float, losses: list[Tensor], deviations: tuple[float, ...], speed: float) -> LogRow:
        last = self._fraction() >= 1
        loss = float(torch.stack(losses).mean()) * 255
        if not math.isfinite(loss):
            raise HasnError(f"training diverged at step {self.step}: the loss is {loss}", "try a lower --rate")
        if deviations[0] >= DEAD > min(deviations[1:]):  # flat patches say nothing about the blocks
            block = deviations.index(min(deviations[1:]))
            raise HasnError(f"training collapsed at step {self.step}: block {block} is dead", "try a lower --rate")
        psnr: dict[int, float] = {}
        shut = shut_channels(self.networks[self.recipe.scales[0]], self._first_patches().to(self.recipe.device))
        validating = last or self.step % self.recipe.validate_every == 0
        if validating:
            psnr = self._validate()
        pixels = self.step * self.recipe.patches.batch * self.recipe.patches.side**2
        report = LogRow(self.step, self._fraction(), self.seconds, pixels, rate, loss, speed, deviations, psnr, shut)
        self.history.append(report)
        if validating:
            self._save(psnr)
        return report

    def _fraction(self, running: float = 0.0) -> float:
        """How much of the run is done, with `running` seconds added to those that are counted."""
        if self.recipe.iterations is not None:
            return self.step / self.recipe.iterations
        assert self.recipe.minutes is not None
        return min(1.0, (self.seconds + running) / (60 * self.recipe.minutes))

    def _batches(self) -> Iterator[Batch]:
        end = self.recipe.iterations if self.recipe.iterations is not None else 2**31
        loader: DataLoader[Batch] = DataLoader(
            self.data,
            batch_size=None,  # each item is already a batch
            sampler=range(self.step, end),
            num_workers=self.recipe.workers,
            prefetch_factor=4 if self.recipe.workers else None,
            pin_memory=self.recipe.device.startswith("cuda"),
        )
        return iter(loader)

    def _train_on(self, batch: Batch, rate: float) -> tuple[Tensor, list[list[Tensor]]]:
        """Take a step. Returns the L1 loss and, for each piece, the features before the first block and after each."""
        set_rate(self.optimizers, rate)
        lr, hr = (side.to(self.recipe.device, non_blocking=True) for side in (batch.lr, batch.hr))
        self._photo = batch.photo
        found = self._update(batch.scale, lr, hr)
        for optimizer in self._active[batch.scale]:
            if isinstance(optimizer, SOAP):
                optimizer.maintain()
        self._average()
        return found

    def _descend(self, scale: int, all_lr: Tensor, all_hr: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Move the weights by the gradient of N×3×H×W and N×3×sH×sW, uint8. A CUDA graph can capture this."""
        parameters = list(self.networks[scale].parameters())
        pieces = list(zip(*(torch.split(side, self.recipe.piece) for side in (all_lr, all_hr)), strict=True))

        def gradients(piece: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
            lr, hr = (x.float() / 255 for x in piece)
            lr = lr.contiguous(memory_format=self._format)
            sr, features = forward(self.networks[scale], lr, half=self.recipe.half, block=self._block)
            share = len(lr) / len(all_lr)
            l1 = (sr - hr).abs().mean() * share
            loss = l1 if self.recipe.loss == "l1" else rmse(sr, hr) * share
            found = torch.autograd.grad(loss, parameters)
            return l1.detach(), found, [stage.detach() for stage in features]

        with self._blended(scale, parameters):
            results = list(self._map(gradients, pieces))
        for parameter, *grads in zip(parameters, *(grads for _, grads, _ in results), strict=True):
            parameter.grad = torch.stack(grads).sum(0) * self._photo
        nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        list(self._map(_move, self._active[scale]))
        self.networks[scale].zero_grad()
        loss = torch.stack([loss for loss, _, _ in results]).sum()
        return loss, [features for _, _, features in results]

    @contextmanager
    def _blended(self, scale: int, parameters: Sequence[Tensor]) -> Iterator[None]:
        """Meanwhile the parameters are those of the blend for this batch. Its gradient is theirs times their share."""
        if not self._partners:
            yield
            return
        own = [parameter.detach().clone() for parameter in parameters]
        mix(parameters, self._partners[scale], self._photo)
        yield
        mix(parameters, own, 0)

    def _parameters_of(self, scale: int, state: Mapping[str, Tensor]) -> list[Tensor]:
        """A state dict's tensors in the order of the network's parameters."""
        return [state[name].to(self.recipe.device) for name, _ in self.networks[scale].named_parameters()]

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        live, averaged = (_parameters_once(networks) for networks in (self.networks, self.averaged))
        torch._foreach_lerp_(averaged, live, 1 - decay)

    def _initialise(self, initial: Mapping[int, Mapping[str, Tensor]] | None) -> None:
        for scale, network in reversed(self.networks.items()):  # they share a body, so the first scale comes last
            if initial is not None:
                adopt(network, initial[scale])
            else:
                start(network, self._first_patches(), self.recipe.patches.seed)

    def _first_patches(self) -> Tensor:
        """N×3×H×W in [0, 1]."""
        return self.data[0].lr.float() / 255

    def _validate(self) -> dict[int, float]:
        if not self.valid:
            return {}
        device = self.recipe.device
        degrade = self.recipe.patches.degrade
        return {
            scale: mean_psnr(network, self.valid, device, degrade, self._partners.get(scale))
            for scale, network in self.averaged.items()
        }

    def _save(self, psnr: Mapping[int, float]) -> None:
        """Write the averaged weights if their mean PSNR is the best so far, and a checkpoint.

        The scales share a body, so their files always come from the same step.
        """
        if sum(psnr.values()) >= sum(self.best.values()) or not psnr:
            self.best = {scale: psnr.get(scale, -math.inf) for scale in self.averaged}
            for scale, network in self.averaged.items():
                save_network(network, self._weights(scale))
        self.save_checkpoint()

    def save_checkpoint(self) -> None:
        """Write the file that a later run continues from."""
        state = {
            "plan": self._plan,
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "valid": fingerprint(self.valid),
            "history": [vars(report) for report in self.history],
            "networks": {scale: network.state_dict() for scale, network in self.networks.items()},
            "averaged": {scale: network.state_dict() for scale, network in self.averaged.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        data = io.BytesIO()
        torch.save(state, data)
        files.write(self.checkpoint, data.getvalue())

    def _refuse_strangers(self) -> None:
        names = [self.checkpoint.name, *(self._weights(scale).name for scale in self.recipe.scales), LOG, CURVE]
        if strange := [name for name in names if os.path.lexists(self.folder / name)]:
            message = f"{self.folder} has no checkpoint, but holds {strange[0]}, which training would replace"
            raise OutputError(message, "give another folder")

    def _weights(self, scale: int) -> Path:
        return self.folder / f"hasn_x{scale}.safetensors"

    @property
    def _plan(self) -> dict[str, object]:
        """The settings that must not change during a run, by the names of their options."""
        recipe, patches = self.recipe, self.recipe.patches
        return {
            "-s": " and ".join(f"x{scale}" for scale in recipe.scales),
            "--batch": patches.batch,
            "--patch": patches.side,
            "--seed": patches.seed,
            "--adam": not recipe.kernels,
            "--loss": recipe.loss,
            "--from": recipe.initial or "nothing",
            "--degrade": patches.degrade,
            "--blend-with": recipe.blend_with or "nothing",
        }

    def _saved(self) -> dict[str, Any] | None:
        """The folder's checkpoint, checked against the recipe. None if training starts now."""
        if not self.checkpoint.exists():
            self._refuse_strangers()
            return None
        state = read_checkpoint(self.checkpoint)
        plan = state["plan"]
        if state["step"] == 0:  # nothing is lost by starting over, even with other options
            return None
        for option, value in self._plan.items():
            if plan.get(option, value) != value:
                message = f"{self.folder} holds a run with {option} {plan.get(option)}, not {value}"
                raise UsageError(message, "give another folder, or the options that the run was started with")
        return state

    def _take_up(self, state: Mapping[str, Any]) -> None:
        if len(state["optimizers"]) != len(self.optimizers):
            message = f"{self.checkpoint} was written by another version of hasn, with other optimizers"
            raise HasnError(message, "give another folder")
        for networks, name in ((self.networks, "networks"), (self.averaged, "averaged")):
            for scale, network in networks.items():
                load_finite(network, state[name][scale])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        if state.get("valid", ours := fingerprint(self.valid)) == ours:  # with other pictures there is no best yet
            self.best = state["best"]
        self.history = [LogRow(**row) for row in state["history"]]


def rmse(sr: Tensor, hr: Tensor) -> Tensor:
    """The root of each picture's mean square error, averaged over the pictures, N×3×H×W in [0, 1].

    PSNR is its logarithm. The logarithm itself is no good loss: its gradient is unbounded on flat patches.
    """
    return ((sr - hr).square().mean((1, 2, 3)) + SLIGHT).sqrt().mean()


def _networks_of_one_body(scales: Sequence[int]) -> dict[int, HASN]:
    networks = {scale: HASN(scale) for scale in scales}
    first = networks[scales[0]]
    for network in networks.values():
        for name, module in first.named_children():
            if name != "upsampler":
                setattr(network, name, module)
    return networks


def _move(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, SOAP):
        optimizer.move()
    else:
        optimizer.step()


def _optimizers_of(network: HASN, optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """Those that move any of the network's parameters."""
    own = set(network.parameters())
    return [o for o in optimizers if any(p in own for group in o.param_groups for p in group["params"])]


def _parameters_once(networks: Mapping[int, HASN]) -> list[Tensor]:
    """The parameters of networks that share a body, each once."""
    return list({id(p): p for network in networks.values() for p in network.parameters()}.values())
