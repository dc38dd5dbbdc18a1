"""Training: its start, its patches, its optimizers, and a run that survives anything."""

from __future__ import annotations

import copy
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import permutations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from hasn_cli.cli.main import run
from hasn_cli.errors import HasnError, OutputError, UsageError, WeightsError
from hasn_cli.evaluation.metrics import psnr_y
from hasn_cli.network import HASN
from hasn_cli.resize import resize
from hasn_cli.training.forward import forward
from hasn_cli.training.initialization import DEVIATION, adopt, shut_channels, spatial_deviation, start
from hasn_cli.training.log import plot, write_csv
from hasn_cli.training.optimizer import LOOK, REFRESH, SOAP, build_optimizers, set_rate
from hasn_cli.training.patches import Patches, PatchPlan
from hasn_cli.training.recipe import Recipe, schedule
from hasn_cli.training.session import prepare
from hasn_cli.training.trainer import Trainer
from hasn_cli.training.validation import mean_psnr
from hasn_cli.weights import bundled_path
from hasn_cli.weights.checkpoint import load_state_dict_file, network_from_state_dict, save_network

PLAN = PatchPlan(side=16, batch=2, candidates=1)


def drawing(side: int = 96, seed: int = 0) -> np.ndarray:
    """Soft blobs and hard edges in colour."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    image = np.stack([0.5 + 0.3 * np.sin(6 * x * c + 4 * y + c) for c in (1, 2, 3)], -1)
    for _ in range(12):
        top, left = random.integers(0, side - 24, 2)
        image[top : top + random.integers(6, 24), left : left + random.integers(6, 24)] = random.random(3)
    return (image * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def started():
    """A network at its start, and the patches that it was scaled on."""
    lr = Patches([drawing()], [2], PatchPlan(side=24, batch=4))[0].lr.float() / 255
    network = HASN(2)
    start(network, lr)
    return network, lr


# the start


def test_the_start_interpolates(started):
    picture = drawing(seed=3)
    bicubic = resize(resize(picture, scale=0.5), scale=2)
    assert mean_psnr(started[0], [picture], "cpu") > psnr_y(bicubic, picture, 2) - 1


def test_every_block_starts_alive(started):
    network, lr = started
    _, features = forward(network, lr)
    for feature in features[1:]:
        assert spatial_deviation(feature) == pytest.approx(DEVIATION, rel=0.3)


@pytest.mark.parametrize("scales", [(2,), (2, 3, 4)], ids=["one scale", "three with one body"])
def test_every_gated_channel_fires_for_some_pixels_at_the_start(tmp_path, scales):
    recipe = Recipe(scales=scales, iterations=1, patches=PatchPlan(side=24, batch=4))
    trainer = Trainer([drawing(192, seed) for seed in range(3)], [], tmp_path, recipe)
    features = trainer.networks[2].conv_1(trainer._first_patches())
    for block in trainer.networks[2].blocks:
        normed = block.ln(block.dwconv(features))
        assert normed.mean((0, 2, 3)).abs().max() < 1e-3
        fires = (block.f1(normed) > 0).float().mean((0, 2, 3))
        assert fires.min() > 0.01
        assert fires.max() < 0.99
        features = block(features)


def test_conv_2_gets_a_gradient_at_the_start(started):
    network, lr = started
    loss = (network(lr) - torch.rand(4, 3, 48, 48)).abs().mean()
    (gradient,) = torch.autograd.grad(loss, [network.conv_2.weight])
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("scale", [3, 4])
def test_another_scales_weights_still_interpolate(started, scale):
    network = HASN(scale)
    adopt(network, started[0].state_dict())
    for name, tensor in network.state_dict().items():
        assert name.startswith("upsampler") or torch.equal(tensor, started[0].state_dict()[name])
    smooth = resize(drawing(48, seed=2), scale=2)
    assert mean_psnr(network, [smooth], "cpu") > 28


@pytest.mark.parametrize("height", [13, 24])  # below the network's smallest side, too
def test_the_trainers_forward_and_its_gradients_are_the_networks(started, height):
    network, lr = started
    network, lr = shaken(network).double(), lr[..., :height, :].double()
    expected = network(lr)
    sr, features = forward(network, lr)
    assert len(features) == 7
    torch.testing.assert_close(sr, expected, rtol=0, atol=1e-6)
    names, parameters = zip(*network.named_parameters(), strict=True)
    wanted, found = (torch.autograd.grad(out.square().mean(), parameters) for out in (expected, sr))
    for name, one, other in zip(names, wanted, found, strict=True):
        assert (one - other).norm() <= 1e-5 * one.norm() + 1e-9, name


def test_channels_that_never_fire_are_counted_as_dead(started):
    network = shaken(started[0])
    before = sum(shut_channels(network, started[1]))
    with torch.no_grad():
        network.block_2.f1.conv.bias[:100] = -50
    assert 100 <= shut_channels(network, started[1])[1] < 110
    assert before < 10


# patches


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_lr_patch_is_a_piece_of_the_whole_lr_picture(scale):
    picture = drawing(96)
    batch = Patches([picture], [scale], PatchPlan(side=12, batch=6, shrink=1, recolour=False))[5]
    assert batch.hr.shape == (6, 3, 12 * scale, 12 * scale)
    # a crop may start at any HR pixel, and the LR grid with it
    found = 0
    for lr in batch.lr.permute(0, 2, 3, 1).numpy():
        variants = [f(t) for t in (lr, lr.transpose(1, 0, 2)) for f in (id_, flip_y, flip_x, flip_both)]
        found += any(_lies_in(picture, variant, scale) for variant in variants)
    assert found == 6


def id_(a):
    return a


def flip_y(a):
    return a[::-1]


def flip_x(a):
    return a[:, ::-1]


def flip_both(a):
    return a[::-1, ::-1]


def _lies_in(picture, patch, scale):
    for top in range(scale):
        for left in range(scale):
            grid = picture[top:, left:]
            grid = grid[: grid.shape[0] // scale * scale, : grid.shape[1] // scale * scale]
            windows = np.lib.stride_tricks.sliding_window_view(resize(grid, scale=1 / scale), patch.shape)
            if (windows == patch).all(axis=(-3, -2, -1)).any():
                return True
    return False


def test_an_lr_patch_is_the_hr_patch_made_smaller():
    batch = Patches([drawing()], [2], PatchPlan(side=16, batch=8))[0]
    for lr, hr in zip(*(side.permute(0, 2, 3, 1).numpy() for side in batch[1:3]), strict=True):
        error = np.abs(resize(hr, scale=1 / 2).astype(int) - lr)[2:-2, 2:-2]  # the rim sees what lies beyond
        assert error.mean() < 0.5
        assert error.max() <= 12  # turned patches are rounded and clipped in the other order


def test_patches_show_pictures_at_their_own_size_and_smaller():
    x = np.arange(320)
    waves = np.repeat((128 + 100 * np.sin(2 * np.pi * x / 16))[None, :, None], 320, 0).repeat(3, 2).astype(np.uint8)
    hr = Patches([waves], [2], PatchPlan(side=36, batch=40, candidates=1, shrink=2))[0].hr[:, 0].float()
    across = torch.stack([patch if patch.std(0).mean() < patch.std(1).mean() else patch.T for patch in hr])[:, 0]
    periods = 256 / torch.fft.rfft(across - across.mean(1, keepdim=True), n=256).abs().argmax(1)
    assert 12 <= int((periods > 15.5).sum()) <= 28, "half of them"
    assert periods.min() < 9.5
    assert periods.min() > 7


def test_half_the_patches_have_their_colours_in_another_order():
    colours = np.full((64, 64, 3), (10, 100, 200), np.uint8)
    batch = Patches([colours], [2], PatchPlan(side=16, batch=60))[0]
    orders = [tuple(patch[:, 0, 0].tolist()) for patch in batch.hr]
    assert set(orders) == set(permutations((10, 100, 200)))
    assert orders.count((10, 100, 200)) > 20
    assert torch.equal(batch.lr[:, :, 3, 3], batch.hr[:, :, 3, 3])


def test_a_picture_just_large_enough_is_taken_whole():
    plan = PatchPlan(side=16, batch=4, recolour=False)
    picture = drawing(plan.smallest_side(2))
    for hr in Patches([picture], [2], plan)[0].hr:
        assert sorted(hr.flatten().tolist()) == sorted(picture[4:-4, 4:-4].flatten().tolist())


def test_batches_depend_on_seed_and_number_alone():
    data = Patches([drawing(), drawing(80, 1)], [2, 3], PLAN)
    again = DataLoader(data, batch_size=None, sampler=range(5, 9), num_workers=2)
    for number, batch in zip(range(5, 9), again, strict=True):
        assert batch.scale == data[number].scale == (2, 3)[number % 2]
        assert torch.equal(batch.lr, data[number].lr)
        assert torch.equal(batch.hr, data[number].hr)
    other = Patches(data.pictures, [2, 3], PatchPlan(side=16, batch=2, candidates=1, seed=1))
    assert not torch.equal(other[5].lr, data[5].lr)


def test_detail_is_preferred():
    half_flat = drawing(128)
    half_flat[:, 40:] = 90
    plain, choosy = (
        Patches([half_flat], [2], PatchPlan(side=16, batch=16, candidates=n))[0].hr.float().std(dim=(2, 3)).mean()
        for n in (1, 6)
    )
    assert choosy > 1.3 * plain


# optimizers


def test_every_weight_is_optimized_once():
    networks = [HASN(2), HASN(4)]
    networks[1].block_1 = networks[0].block_1
    groups = [group for optimizer in build_optimizers(networks) for group in optimizer.param_groups]
    optimized = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(optimized) == sorted({id(p) for network in networks for p in network.parameters()})


def moved_against(push, steps, **settings):
    """Where a matrix has moved after steps whose gradients `push` gives, each time without what came before."""
    parameter = torch.nn.Parameter(torch.zeros(4, 6))
    optimizer = SOAP([parameter], lr=1e-3, **settings)
    for step in range(steps):
        parameter.grad = push(step)
        optimizer.step()
    return parameter.detach()


def test_soap_looks_before_it_moves():
    assert not moved_against(lambda step: torch.ones(4, 6), LOOK).any()
    assert moved_against(lambda step: torch.ones(4, 6), LOOK + 1).any()


@pytest.mark.parametrize("steps", [LOOK + 5, LOOK + 3 * REFRESH + 5], ids=["first bases", "bases brought up to date"])
def test_soap_moves_as_far_along_weak_directions_as_along_strong_ones(steps):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (4, 6))
    strengths = torch.tensor([1.0, 1e-1, 1e-2, 1e-3])

    def push(step):
        weights = torch.diag(strengths) * (1 + 0.1 * torch.randn(4, generator=generator))
        return left @ torch.nn.functional.pad(weights, (0, 2)) @ right.T

    along = (left.T @ moved_against(push, steps) @ right).diagonal()
    expected = torch.full((4,), -1e-3 * (steps - LOOK))
    assert torch.allclose(along, expected, rtol=0.1), along


def test_soap_finds_directions_anew_when_they_turn():
    turned, steps = 20 * REFRESH, 40 * REFRESH
    generator = torch.Generator().manual_seed(0)
    bases = [[torch.linalg.qr(torch.randn(n, n, generator=generator))[0] for n in (4, 6)] for _ in range(2)]
    strengths = torch.diag(torch.tensor([1.0, 0.3, 0.1, 0.03]))

    def push(step):
        left, right = bases[step >= turned]
        return left @ torch.nn.functional.pad(strengths, (0, 2)) @ right.T

    late = moved_against(push, steps, betas=(0.9, 0.9)) - moved_against(push, steps - 10, betas=(0.9, 0.9))
    left, right = bases[1]
    along = (left.T @ late @ right).diagonal()
    assert torch.allclose(along, torch.full((4,), -1e-2), rtol=0.1), along


def test_soap_descends_a_narrow_valley_that_adam_shakes_in():
    """Inputs that are nearly alike, as neighbouring pixels are: curvatures 10,000 to 1, across the axes."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0]
    curvature = basis @ torch.diag(torch.logspace(0, -4, 16)) @ basis.T
    target = torch.randn(8, 16, generator=generator)

    def left_over(build):
        parameter = torch.nn.Parameter(torch.zeros(8, 16))
        optimizer = build([parameter])
        for _ in range(300):
            error = parameter.detach() - target
            noise = torch.randn(8, 16, generator=generator) @ curvature
            parameter.grad = (error + noise) @ curvature
            optimizer.step()
        return float((parameter.detach() - target).square().mean())

    by_adam = left_over(lambda parameters: torch.optim.Adam(parameters, lr=1e-2, betas=(0.9, 0.99)))
    by_soap = left_over(lambda parameters: SOAP(parameters, lr=1e-2))
    assert by_soap < by_adam / 3


def test_soap_works_on_each_of_several_parameters_as_on_it_alone():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(2, LOOK + REFRESH + 2, 3, 5, generator=generator)
    together = [torch.nn.Parameter(torch.zeros(3, 5)) for _ in range(2)]
    alone = [torch.nn.Parameter(torch.zeros(3, 5)) for _ in range(2)]
    optimizers = [SOAP(together, lr=0.1), *(SOAP([parameter], lr=0.1) for parameter in alone)]
    for step in range(gradients.shape[1]):
        for i in range(2):
            together[i].grad = alone[i].grad = gradients[i, step]
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_soap_leaves_a_head_alone_whose_scale_is_not_drawn():
    parameter = torch.nn.Parameter(torch.ones(4, 6))
    SOAP([parameter], lr=1.0).step()
    assert torch.equal(parameter, torch.ones(4, 6))


def test_every_group_gets_its_share_of_the_rate():
    optimizers = build_optimizers([HASN(2)])
    set_rate(optimizers, 2.0)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert len({group["lr"] for group in groups}) > 3
    assert all(group["lr"] == 2.0 * group["factor"] for group in groups)


def test_the_rate_warms_up_and_comes_down_to_nothing():
    recipe = Recipe(iterations=1, rate=2.0, warm_up=99)
    assert schedule(recipe, 0.0, 0) == pytest.approx(0.02)
    assert schedule(recipe, 0.5, 1000) == pytest.approx(1.0)
    assert schedule(recipe, 1.0, 1000) == pytest.approx(0, abs=1e-9)


def test_the_rate_comes_down_to_the_end_that_is_given():
    recipe = Recipe(iterations=1, rate=2.0, end_rate=0.5, warm_up=99)
    assert schedule(recipe, 0.0, 1000) == pytest.approx(2.0)
    assert schedule(recipe, 0.5, 1000) == pytest.approx(1.25)
    assert schedule(recipe, 1.0, 1000) == pytest.approx(0.5)


# runs


def test_a_run_learns_beyond_its_start(tmp_path):
    picture = drawing()
    recipe = Recipe(iterations=60, warm_up=30, patches=PatchPlan(side=16, batch=2), report_every=30)
    trainer = Trainer([picture], [picture], tmp_path, recipe)
    before = loss_on(picture, trainer.networks[2])
    reports = list(trainer.run())
    assert [report.step for report in reports] == [30, 60]
    assert reports[-1].pixels == 60 * 2 * 16 * 16
    saved = network_from_state_dict(load_state_dict_file(tmp_path / "hasn_x2.safetensors"), scale=2)
    assert loss_on(picture, saved) < 0.93 * before
    assert mean_psnr(saved, [picture], "cpu") == pytest.approx(reports[-1].psnr[2], abs=1e-6)


def test_each_loss_is_best_at_what_it_measures(tmp_path):
    random = np.random.default_rng(0)
    dots = np.where(random.random((128, 128, 1)) < 0.1, 255, 0).astype(np.uint8).repeat(3, 2)  # nobody can foretell
    errors = {}
    for loss in ("l1", "rmse"):
        plan = PatchPlan(side=16, batch=4, shrink=1.0)
        recipe = Recipe(iterations=24, warm_up=8, ema=0.9, patches=plan, loss=loss)
        trainer = Trainer([dots], [], tmp_path / loss, recipe)
        reports = list(trainer.run())
        errors[loss] = errors_on(dots, trainer.averaged[2])
        assert reports[-1].loss == pytest.approx(float(errors[loss].abs().mean()) * 255, rel=0.3)
    assert errors["rmse"].square().mean() < 0.98 * errors["l1"].square().mean()
    assert errors["l1"].abs().mean() < 0.98 * errors["rmse"].abs().mean()


def loss_on(picture, network):
    return float(errors_on(picture, network).abs().mean())


@torch.no_grad()
def errors_on(picture, network):
    hr, lr = (
        torch.from_numpy(image / 255.0).float().permute(2, 0, 1) for image in (picture, resize(picture, scale=0.5))
    )
    return network(lr[None])[0] - hr


def test_scales_trained_together_share_one_body(tmp_path):
    trainer = Trainer([drawing()], [], tmp_path, Recipe(scales=(2, 3), iterations=LOOK + 2, patches=PLAN))
    began = trainer.networks[2].block_4.g.conv.weight.clone()
    list(trainer.run())
    two, three = (load_state_dict_file(tmp_path / f"hasn_x{scale}.safetensors") for scale in (2, 3))
    assert all(torch.equal(two[name], three[name]) for name in two if not name.startswith("upsampler"))
    assert not torch.equal(two["block_4.g.conv.weight"], began)


def test_pieces_on_several_lanes_give_the_gradient_of_the_whole_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("hasn_cli.training.trainer.set_rate", lambda *_: None)  # the weights stay, and so do the grads
    monkeypatch.setattr(HASN, "zero_grad", lambda *_: None)

    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)  # L1's sign is never in doubt

    def gradients(name, **how):
        recipe = Recipe(iterations=1, patches=PatchPlan(side=16, batch=4), **how)
        trainer = Trainer([noise], [], tmp_path / name, recipe)
        list(trainer.run())
        return [parameter.grad for parameter in trainer.networks[2].parameters()]

    for one, other in zip(gradients("pieces", piece=1, lanes=2), gradients("whole", piece=4), strict=True):
        assert (one - other).norm() <= 1e-2 * other.norm() + 1e-7


def shaken(network):
    """The same with random changes to every weight: nothing hides behind the start's zeros."""
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return network


def test_half_precision_stays_close(started):
    network, lr = network_from_state_dict(load_state_dict_file(bundled_path(2)), scale=2), started[1]
    difference = (forward(network, lr, half=True)[0] - forward(network, lr)[0]).abs()
    assert 0 < difference.max() < 4 / 255
    assert difference.mean() < 0.5 / 255


def test_the_weights_that_are_written_are_a_mean_over_time(tmp_path):
    recipe = Recipe(iterations=12, warm_up=0, end_rate=1e-3, patches=PLAN, ema=0.9)
    trainer = Trainer([drawing()], [], tmp_path, recipe)
    path, run = [], trainer.run()
    weight = trainer.networks[2].block_2.g.conv.weight
    began = weight.detach().clone()
    original = trainer._average

    def watched():
        original()
        path.append(weight.detach().clone())

    trainer._average = watched
    list(run)
    expected = began
    for step, weights in enumerate(path):
        decay = min(0.9, (1 + step) / (10 + step))  # the beginning is soon forgotten
        expected = decay * expected + (1 - decay) * weights
    saved = load_state_dict_file(tmp_path / "hasn_x2.safetensors")["block_2.g.conv.weight"]
    torch.testing.assert_close(saved, expected, rtol=0, atol=1e-7)
    assert (saved - path[-1]).abs().max() > 1e-5


def test_no_gradient_is_longer_than_the_recipe_allows(tmp_path):
    trainer = Trainer([drawing()], [], tmp_path, Recipe(iterations=3, warm_up=0, patches=PLAN, clip=0.0))
    before = {name: tensor.clone() for name, tensor in trainer.networks[2].state_dict().items()}
    list(trainer.run())
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.networks[2].state_dict().items())


def test_half_precision_is_trained_in_where_the_recipe_says_so(tmp_path):
    losses = []
    for half in (False, True):
        recipe = Recipe(iterations=1, patches=PLAN, half=half, initial="hasn")
        states = {2: load_state_dict_file(bundled_path(2))}
        trainer = Trainer([drawing()], [], tmp_path / str(half), recipe, lambda states=states: states)
        losses += [report.loss for report in trainer.run()]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_time_of_a_run_counts_on_when_it_is_taken_up(tmp_path):
    recipe = Recipe(iterations=4, patches=PLAN, report_every=1, validate_every=1)
    interrupted = Trainer([drawing()], [], tmp_path, recipe).run()
    first = [next(interrupted), next(interrupted)][0]
    interrupted.close()
    assert Trainer([drawing()], [], tmp_path, recipe).seconds >= first.seconds > 0


def test_the_best_weights_by_validation_stay(tmp_path, monkeypatch):
    psnr = iter([30.0, 31.0, 29.0, 28.0])
    monkeypatch.setattr("hasn_cli.training.optimizer.LOOK", 1)  # weights move from the first step
    monkeypatch.setattr("hasn_cli.training.trainer.mean_psnr", lambda *_: next(psnr))
    recipe = Recipe(iterations=4, warm_up=0, patches=PLAN, report_every=1, validate_every=1)
    trainer = Trainer([drawing()], [drawing(48)], tmp_path, recipe)
    saved = []
    for _ in trainer.run():
        saved.append(load_state_dict_file(tmp_path / "hasn_x2.safetensors")["conv_1.weight"])
    assert trainer.best == {2: 31.0}
    assert not torch.equal(saved[0], saved[1])
    assert torch.equal(saved[1], saved[3])


@pytest.mark.parametrize(("later", "best"), [(48, 31.0), (64, 20.0)])
def test_what_is_best_by_other_pictures_does_not_count_when_a_run_goes_on(tmp_path, monkeypatch, later, best):
    values = {48: 31.0, 64: 20.0}  # by the height of the picture
    monkeypatch.setattr("hasn_cli.training.trainer.mean_psnr", lambda _, valid, *__: values[len(valid[0])])
    recipe = Recipe(iterations=4, patches=PLAN, report_every=1, validate_every=1)
    interrupted = Trainer([drawing()], [drawing(48)], tmp_path, recipe).run()
    next(interrupted), next(interrupted)
    interrupted.close()
    (tmp_path / "hasn_x2.safetensors").unlink()
    trainer = Trainer([drawing()], [drawing(later)], tmp_path, recipe)
    assert trainer.step
    list(trainer.run())
    assert trainer.best == {2: best}
    assert (tmp_path / "hasn_x2.safetensors").exists()


def test_reports_and_validations_keep_their_own_steps(tmp_path):
    recipe = Recipe(iterations=9, patches=PLAN, report_every=3, validate_every=4)
    reports = list(Trainer([drawing()], [drawing(48)], tmp_path, recipe).run())
    assert [report.step for report in reports] == [3, 4, 6, 8, 9]
    assert [report.step for report in reports if report.psnr] == [4, 8, 9]


def test_a_run_by_time_ends(tmp_path):
    recipe = Recipe(minutes=0.05, patches=PLAN, report_every=1)
    trainer = Trainer([drawing()], [], tmp_path, recipe)
    *_, last = trainer.run()
    assert trainer.finished
    assert last.seconds < 60
    assert trainer.checkpoint.exists()


def test_a_dead_block_is_named(tmp_path):
    trainer = Trainer([drawing()], [], tmp_path, Recipe(iterations=3, patches=PLAN, report_every=1))
    torch.nn.init.zeros_(trainer.networks[2].block_3.cab.cab[2].weight)
    with pytest.raises(HasnError, match="block 3 is dead"):
        list(trainer.run())


def test_black_patches_are_no_dead_block(tmp_path):
    night = np.zeros((96, 96, 3), np.uint8)
    recipe = Recipe(iterations=6, patches=PLAN, report_every=1, piece=1)
    trainer = Trainer([drawing(), night, night], [], tmp_path, recipe)
    assert any(not trainer.data[step].lr.any() for step in range(6)), "a batch that is all black"
    assert len(list(trainer.run())) == 6


def test_a_run_for_other_scales_is_not_taken_up(tmp_path):
    recipe = {"iterations": 1, "patches": PLAN, "report_every": 1}
    list(Trainer([drawing()], [], tmp_path, Recipe(**recipe)).run())
    with pytest.raises(UsageError, match="holds a run with -s x2, not x3"):
        Trainer([drawing()], [], tmp_path, Recipe(scales=(3,), **recipe))


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ("--batch", {"patches": PatchPlan(side=16, batch=3, candidates=1)}),
        ("--patch", {"patches": PatchPlan(side=20, batch=2, candidates=1)}),
        ("--seed", {"patches": PatchPlan(side=16, batch=2, candidates=1, seed=1)}),
        ("--adam", {"kernels": False}),
        ("--loss", {"loss": "rmse"}),
        ("--from nothing, not hasn", {"initial": "hasn"}),
    ],
)
def test_a_run_with_other_options_is_not_taken_up(tmp_path, option, changed):
    recipe = {"iterations": 1, "patches": PLAN}
    list(Trainer([drawing()], [], tmp_path, Recipe(**recipe)).run())
    with pytest.raises(UsageError, match=f"holds a run with {option}"):
        Trainer([drawing()], [], tmp_path, Recipe(**(recipe | changed)))


def test_a_run_goes_on_without_the_weights_that_it_began_from(tmp_path):
    (tmp_path / "data").mkdir()
    Image.fromarray(drawing()).save(tmp_path / "data" / "a.png")
    weights = shutil.copy(bundled_path(2), tmp_path / "mine.safetensors")
    recipe = Recipe(iterations=4, patches=PLAN, initial=str(weights), report_every=1, validate_every=2)

    def prepared():
        return prepare(tmp_path / "data", tmp_path / "run", recipe, on_skip=lambda name, why: None)

    interrupted = prepared().run()
    next(interrupted), next(interrupted), next(interrupted)
    interrupted.close()
    weights.unlink()
    assert prepared().step == 2


@pytest.mark.parametrize("name", ["hasn_x2.safetensors", "log.csv", "curve.png"])
def test_what_is_no_runs_is_not_written_over(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        Trainer([drawing()], [], tmp_path, Recipe(iterations=1, patches=PLAN))
    assert (tmp_path / name).read_text() == "mine"


def test_a_run_that_was_ended_before_it_saved_a_step_begins_anew(tmp_path):
    interrupted = Trainer([drawing()], [], tmp_path, Recipe(iterations=9, patches=PLAN, report_every=1)).run()
    next(interrupted)
    interrupted.close()
    (tmp_path / "log.csv").write_text("of that run")
    other = Trainer([drawing()], [], tmp_path, Recipe(iterations=1, patches=PatchPlan(side=20, batch=2)))
    assert [report.step for report in other.run()] == [1]


@pytest.mark.parametrize("harm", [lambda data: data[:1000], lambda data: b"", lambda data: b"no checkpoint"])
def test_a_damaged_checkpoint_is_named(tmp_path, harm):
    recipe = Recipe(iterations=1, patches=PLAN)
    trainer = Trainer([drawing()], [], tmp_path, recipe)
    list(trainer.run())
    trainer.checkpoint.write_bytes(harm(trainer.checkpoint.read_bytes()))
    with pytest.raises(HasnError, match=r"checkpoint\.pt is damaged") as caught:
        Trainer([drawing()], [], tmp_path, recipe)
    assert caught.value.hint


def test_a_checkpoint_of_other_optimizers_is_named(tmp_path):
    recipe = Recipe(iterations=1, patches=PLAN)
    trainer = Trainer([drawing()], [], tmp_path, recipe)
    list(trainer.run())
    state = torch.load(trainer.checkpoint, weights_only=True)
    torch.save(state | {"optimizers": state["optimizers"][:2]}, trainer.checkpoint)
    with pytest.raises(HasnError, match="another version of hasn") as caught:
        Trainer([drawing()], [], tmp_path, recipe)
    assert caught.value.hint


@pytest.mark.parametrize("weights", ["other.safetensors", "wide.safetensors", "infinite.safetensors"])
def test_only_a_whole_hasn_is_begun_from(tmp_path, weights):
    Image.fromarray(drawing(128)).save(tmp_path / "a.png")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_network(HASN(2, 40), tmp_path / "wide.safetensors")
    broken = HASN(2)
    torch.nn.init.constant_(broken.conv_1.weight, float("inf"))
    save_file(broken.state_dict(), tmp_path / "infinite.safetensors")
    with pytest.raises(WeightsError, match=weights):
        prepare(
            tmp_path,
            tmp_path / "run",
            Recipe(iterations=1, patches=PLAN, initial=str(tmp_path / weights)),
            on_skip=lambda name, why: None,
        )


def test_corrupt_and_small_pictures_are_named_and_skipped(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(drawing()).save(data / "good.png")
    Image.fromarray(drawing(30)).save(data / "small.png")
    (data / "broken.png").write_bytes((data / "good.png").read_bytes()[:500])
    skipped = {}
    recipe = Recipe(iterations=1, patches=PLAN)
    trainer = prepare(data, tmp_path / "run", recipe, on_skip=lambda name, why: skipped.update({name: why}))
    assert len(trainer.data.pictures) == 1
    assert sorted(skipped) == [str(data / "broken.png"), str(data / "small.png")]
    assert "smaller than 40 pixels" in skipped[str(data / "small.png")]
    (data / "good.png").unlink()
    with pytest.raises(UsageError, match="no picture of at least 40×40"):
        prepare(data, tmp_path / "run", recipe, on_skip=lambda name, why: None)


def test_the_log_is_a_table_and_a_picture(tmp_path):
    recipe = Recipe(iterations=4, patches=PLAN, report_every=2, validate_every=4)
    trainer = Trainer([drawing()], [drawing(48)], tmp_path, recipe)
    list(trainer.run())
    write_csv(trainer.history, tmp_path / "log.csv")
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert rows[0]["psnr_y_x2"] == ""
    assert float(rows[1]["psnr_y_x2"]) == pytest.approx(trainer.history[-1].psnr[2], abs=1e-3)
    assert all(float(rows[1][f"deviation_{block}"]) > 0 for block in range(7))
    plot(trainer.history, tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").size == (800, 900)


def test_a_killed_run_goes_on_to_the_same_curve(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    Image.fromarray(drawing()).save(data / "a.png")
    arguments = "-s 2 --iterations 8 --patch 16 --batch 2 --report-every 2 --validate-every 4 -d cpu -j 0 --valid"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def train(run):
        command = [sys.executable, "-m", "hasn_cli", "train", str(data), "-o", str(run), *arguments.split(), str(data)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    killed, whole = train(tmp_path / "killed"), train(tmp_path / "whole")
    deadline = time.monotonic() + 300
    log = tmp_path / "killed" / "log.csv"  # a row is written once its step, here the first that is saved, is saved
    while "\n4," not in (log.read_text() if log.exists() else "") and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    _, said = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, said
    resumed = train(tmp_path / "killed")
    _, said = resumed.communicate(timeout=300)
    whole.communicate(timeout=300)
    assert "continuing from step" in said
    curves = [list(csv.DictReader((tmp_path / name / "log.csv").open())) for name in ("killed", "whole")]
    for row in (row for curve in curves for row in curve):
        del row["seconds"], row["iterations_per_second"]
    assert len(curves[0]) == 4
    assert curves[0] == curves[1]
    states = [load_state_dict_file(tmp_path / name / "hasn_x2.safetensors") for name in ("killed", "whole")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_log_that_a_kill_kept_from_being_written_comes_when_the_run_is_taken_up(tmp_path):
    (tmp_path / "data").mkdir()
    Image.fromarray(drawing()).save(tmp_path / "data" / "a.png")
    options = ["-s", "2", "--iterations", "1", "--patch", "16", "--batch", "2", "-d", "cpu", "-j", "0"]
    command = ["train", str(tmp_path / "data"), "-o", str(tmp_path / "run"), *options]
    assert run(command) == 0
    (tmp_path / "run" / "log.csv").unlink()
    assert run(command) == 0
    assert [row["step"] for row in csv.DictReader((tmp_path / "run" / "log.csv").open())] == ["1"]


def test_length_must_be_given(tmp_path):
    with pytest.raises(ValueError, match="either iterations or minutes"):
        Trainer([drawing()], [], tmp_path, Recipe())


@pytest.mark.parametrize("length", [[], ["--iterations", "3", "--minutes", "1"]])
def test_the_command_wants_one_length(tmp_path, capsys, length):
    assert run(["train", str(tmp_path), "-o", str(tmp_path / "run"), *length]) == 2
    assert "either --iterations or --minutes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_begins_from_given_weights(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    Image.fromarray(drawing()).save(tmp_path / "data" / "a.png")
    options = [
        "--patch",
        "16",
        "--batch",
        "2",
        "--iterations",
        "1",
        "--report-every",
        "1",
        "--rate",
        "1e-9",
        "-d",
        "cpu",
    ]
    folder = tmp_path / "run"
    assert run(["train", str(tmp_path / "data"), "-s", "3", "-o", str(folder), "--from", "hasn", *options]) == 0
    began, now = (load_state_dict_file(path) for path in (bundled_path(3), folder / "hasn_x3.safetensors"))
    assert all(torch.allclose(began[name], now[name], atol=1e-6) for name in began)
    assert "100%" in capsys.readouterr().err


def test_a_run_without_matplotlib_has_a_table_and_no_plot(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hasn_cli.cli.train.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    Image.fromarray(drawing(128)).save(tmp_path / "a.png")
    arguments = ["train", tmp_path, "--valid", tmp_path, "-o", tmp_path / "run", "-d", "cpu"]
    arguments += ["--patch", 16, "--batch", 2, "--iterations", 2, "--validate-every", 1]
    assert run([str(argument) for argument in arguments]) == 0
    assert "curve.png needs matplotlib" in capsys.readouterr().err
    assert len(list(csv.DictReader((tmp_path / "run" / "log.csv").open()))) == 2
    assert run([str(argument) for argument in arguments]) == 0
    assert "is finished" in capsys.readouterr().err


def test_a_report_is_one_line_of_a_log(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    (tmp_path / "data").mkdir()
    Image.fromarray(drawing(128)).save(tmp_path / "data" / "a.png")
    arguments = ["train", tmp_path / "data", "--valid", tmp_path / "data", "-o", tmp_path / "run", "-d", "cpu"]
    arguments += ["-s", 2, "-s", 3, "-s", 4, "--patch", 16, "--batch", 2, "--iterations", 2, "--report-every", 1]
    assert run([str(argument) for argument in arguments]) == 0
    first, last, end, *warning = capsys.readouterr().err.splitlines()
    assert "50%" in first and "100%" in last and last.endswith("dB") and "x2 " in last
    assert end.startswith("the weights and the log are in")
    assert "after 2 steps" in warning[0] and "--from hasn" in warning[1]


def test_each_scale_begins_from_its_own_weights(tmp_path):
    (tmp_path / "data").mkdir()
    Image.fromarray(drawing(128)).save(tmp_path / "data" / "a.png")
    recipe = Recipe(scales=(4, 2), iterations=1, patches=PLAN, initial="hasn")
    trainer = prepare(tmp_path / "data", tmp_path / "run", recipe, on_skip=lambda name, why: None)
    for scale, network in trainer.networks.items():
        own, four = (load_state_dict_file(bundled_path(s)) for s in (scale, 4))
        torch.testing.assert_close(network.upsampler[0].weight, own["upsampler.0.weight"])
        torch.testing.assert_close(network.block_2.g.conv.weight, four["block_2.g.conv.weight"])
