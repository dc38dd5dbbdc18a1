"""The parts of training that a GPU uses, checked on the CPU: patches cut by the device, gradients, compiled blocks."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from hasn_cli.evaluation.bicubic import resize
from hasn_cli.network import HASN
from hasn_cli.training.device_patches import DevicePatches
from hasn_cli.training.forward import (
    block_function,
    forward,
    taps_gradient_by_convolution,
    taps_gradient_by_products,
)
from hasn_cli.training.patches import Patches, PatchPlan
from hasn_cli.training.recipe import Recipe
from hasn_cli.training.start import start
from hasn_cli.training.trainer import Trainer
from hasn_cli.training.validation import mean_psnr


def pictures() -> list[np.ndarray]:
    """Three pictures of soft noise: a wide one, a high one, and one that is hardly larger than a patch."""
    random = np.random.default_rng(0)
    sizes = ((60, 110), (90, 50), (36, 36))
    return [resize(random.integers(0, 256, (*size, 3), np.uint8), scale=3) for size in sizes]


@pytest.mark.parametrize("side", [16, 23])
def test_a_device_cuts_the_patches_that_worker_processes_cut(side):
    plan = PatchPlan(side=side, batch=5, seed=4)
    by_processes = Patches(pictures(), (2, 3, 4), plan)
    by_device = DevicePatches(pictures(), (2, 3, 4), plan, "cpu")
    for number in range(6):
        one, other = by_processes[number], by_device[number]
        assert one.scale == other.scale
        for ours, theirs in ((one.lr, other.lr), (one.hr, other.hr)):
            difference = (ours.int() - theirs.int()).abs()
            assert other.lr.dtype == torch.uint8
            assert difference.max() <= 1
            assert (difference > 0).float().mean() < 1e-3


def test_the_depthwise_gradient_by_products_is_the_one_by_convolution():
    random = torch.Generator().manual_seed(0)
    padded = torch.randn(3, 4, 16, 21, generator=random, dtype=torch.float64)
    gradient = torch.randn(3, 4, 10, 15, generator=random, dtype=torch.float64)
    one, other = taps_gradient_by_convolution(padded, gradient), taps_gradient_by_products(padded, gradient)
    assert one.shape == other.shape == (4, 1, 7, 7)
    torch.testing.assert_close(one, other)


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


def test_a_run_on_a_device_cuts_its_patches_there(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        "hasn_cli.training.trainer.DevicePatches",
        lambda *arguments: made.append(arguments) or DevicePatches(*arguments[:3], "cpu"),
    )
    monkeypatch.setattr(HASN, "to", lambda self, *_, **__: self)
    recipe = Recipe(iterations=1, patches=PatchPlan(side=16, batch=2), device="cuda")
    Trainer(pictures(), [], tmp_path, recipe)
    assert made[0][3] == "cuda"
