"""The parts of training that a GPU uses. All but the recorded steps are checked on the CPU."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from hasn_cli.network import HASN
from hasn_cli.resize import resize
from hasn_cli.training.forward import (
    block_function,
    forward,
)
from hasn_cli.training.initialization import start
from hasn_cli.training.patches import Patches, PatchPlan
from hasn_cli.training.recipe import Recipe
from hasn_cli.training.trainer import Trainer
from hasn_cli.training.validation import mean_psnr


def pictures() -> list[np.ndarray]:
    """Three pictures of soft noise: a wide one, a high one, and one that is hardly larger than a patch."""
    random = np.random.default_rng(0)
    sizes = ((60, 110), (90, 50), (36, 36))
    return [resize(random.integers(0, 256, (*size, 3), np.uint8), scale=3) for size in sizes]


def started(scale: int = 2) -> tuple[HASN, torch.Tensor]:
    """A network whose weights are all different from 0, and patches."""
    lr = Patches(pictures(), [scale], PatchPlan(side=16, batch=2))[0].lr.float() / 255
    network = HASN(scale)
    start(network, lr)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=random)
    return network, lr


def gradients(network: HASN, lr: torch.Tensor, **how) -> list[torch.Tensor]:
    sr, _ = forward(network, lr, **how)
    return torch.autograd.grad(sr.square().mean(), list(network.parameters()))


def test_pytorchs_own_depthwise_gradient_gives_the_same_training_step():
    network, lr = started()
    ours = gradients(network, lr, block=block_function())
    theirs = gradients(network, lr, block=block_function(own_depthwise=False))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-7


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_blocks_give_the_same_training_step_and_compile_once():
    network, lr = started()
    torch._dynamo.reset()
    compiled = block_function(compiled=True)
    ours, eager = (gradients(network, lr, half=True, block=block) for block in (compiled, block_function()))
    for one, other in zip(ours, eager, strict=True):
        assert (one - other).norm() <= 0.3 * other.norm() + 1e-7  # rounding alone makes 0.15 of it
    counted = torch._dynamo.utils.counters["stats"]
    compilations = counted["unique_graphs"]
    gradients(started(3)[0], lr, half=True, block=compiled)
    assert counted["unique_graphs"] == compilations, "once for all blocks and scales"


def test_validation_by_the_plain_module_agrees_with_the_engine():
    network, _ = started()
    by_engine = mean_psnr(network, pictures()[:2], "cpu")
    assert mean_psnr(network, pictures()[:2], "cpu:0") == pytest.approx(by_engine, abs=1e-3)  # another device's name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA card")
def test_recorded_steps_move_the_weights_as_eager_ones_do(tmp_path):
    recipe = Recipe(scales=(2, 3), iterations=100, warm_up=50, patches=PatchPlan(side=16, batch=2), device="cuda")
    weights = []
    for captured in (False, True):
        trainer = Trainer(pictures(), [], tmp_path / str(captured), replace(recipe, captured=captured))
        list(trainer.run())
        weights.append(trainer.averaged[3].state_dict())
    for name, eager in weights[0].items():
        assert (eager - weights[1][name]).norm() <= 1e-2 * eager.norm() + 1e-4, name
