"""LR patches for `--degrade photo`: reduced, noisy and compressed, and still a picture of the same place as HR."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hasn_cli.cli.main import run
from hasn_cli.network import HASN
from hasn_cli.resize import resize
from hasn_cli.training import degrade
from hasn_cli.training.degrade import COMPRESSIONS, KERNELS, MARGIN, compressed, degraded, reduced
from hasn_cli.training.graphics import KINDS, graphic
from hasn_cli.training.patches import Patches, PatchPlan
from hasn_cli.training.recipe import Recipe
from hasn_cli.training.trainer import Trainer
from hasn_cli.training.validation import mean_psnr

PLAN = PatchPlan(side=16, batch=4, candidates=1, degrade="photo")


def smooth_noise(side: int, seed: int = 0) -> np.ndarray:
    """A picture with detail at several scales, H×W×3."""
    random = np.random.default_rng(seed)
    layers = [resize(random.uniform(0, 255, (n, n, 3)), size=(side, side)) for n in (6, 14, 40)]
    return np.clip(np.mean(layers, 0) * 1.6 - 76, 0, 255).astype(np.uint8)


def always(monkeypatch, name: str, choice: str) -> None:
    monkeypatch.setattr(degrade, name, {choice: 1.0})


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_reduces_in_place_and_keeps_flat_colour(scale, kernel):
    random = np.random.default_rng(0)
    flat = np.full((24 * scale, 24 * scale, 3), (10, 120, 250), np.uint8)
    assert (reduced(flat, scale, kernel, random) == (10, 120, 250)).all()
    picture = smooth_noise(24 * scale)
    small, usual = reduced(picture, scale, kernel, random), resize(picture, scale=1 / scale)
    assert small.shape == usual.shape
    assert best_shift(small, usual) == (0, 0)


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_compression_leaves_the_patch_where_it_was(monkeypatch, kind):
    always(monkeypatch, "COMPRESSIONS", kind)
    monkeypatch.setattr(degrade, "QUALITY", (70, 97))
    window = smooth_noise(24 + 2 * MARGIN)
    for seed in range(20):
        lr = compressed(window, np.random.default_rng(seed))
        assert lr.shape == (24, 24, 3) and lr.dtype == np.uint8
        assert best_shift(lr, window[MARGIN:-MARGIN, MARGIN:-MARGIN]) == (0, 0)


def best_shift(one: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """By how many rows and columns `one` has to be moved to be most like `other`."""
    inner = other[3:-3, 3:-3].astype(float)
    height, width = inner.shape[:2]
    errors = {
        (y, x): np.abs(one[3 + y : 3 + y + height, 3 + x : 3 + x + width] - inner).mean()
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    }
    return min(errors, key=errors.__getitem__)


def test_jpeg_blocks_begin_anywhere(monkeypatch):
    always(monkeypatch, "COMPRESSIONS", "jpeg")
    always(monkeypatch, "SUBSAMPLINGS", "4:4:4")
    monkeypatch.setattr(degrade, "QUALITY", (30, 30))
    monkeypatch.setattr(degrade, "NOISY", 0.0)
    ramp = np.repeat(np.tile(np.linspace(0, 255, 32 + 2 * MARGIN), (32 + 2 * MARGIN, 1))[..., None], 3, -1)
    grids = set()
    for seed in range(60):
        steps = np.abs(np.diff(compressed(ramp.astype(np.uint8), np.random.default_rng(seed))[..., 0].astype(int)))
        grids.add(int(steps.mean(0)[:24].reshape(3, 8).mean(0).argmax()))
    assert len(grids) >= 6


def test_a_share_of_the_patches_is_clean(monkeypatch):
    always(monkeypatch, "KERNELS", "bicubic")
    hr = smooth_noise(2 * (12 + 2 * MARGIN))
    clean = resize(hr, scale=1 / 2)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    same = sum((degraded(hr, 2, np.random.default_rng(seed)) == clean).all() for seed in range(300))
    expected = COMPRESSIONS["none"] * (1 - degrade.NOISY)
    assert abs(same / 300 - expected) < 0.07


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.strip("_"))
def test_graphics_are_the_box_average_of_themselves(monkeypatch, scale, kind):
    monkeypatch.setattr("hasn_cli.training.graphics.KINDS", (kind,))
    drawn = 0
    for seed in range(6):
        lr, hr = graphic(40, scale, np.random.default_rng(seed))
        assert lr.shape == (40, 40, 3) and hr.shape == (40 * scale, 40 * scale, 3)
        mean = hr.reshape(40, scale, 40, scale, 3).mean((1, 3))
        assert np.abs(mean - lr).max() <= 1
        drawn += bool(np.ptp(hr))
    assert drawn >= 4


def test_degraded_batches_depend_on_seed_and_number_alone():
    pictures = [smooth_noise(240, seed) for seed in range(2)]
    data = Patches(pictures, [2, 4], PLAN)
    again = DataLoader(data, batch_size=None, sampler=range(5, 9), num_workers=2)
    for number, batch in zip(range(5, 9), again, strict=True):
        assert batch.lr.shape == (4, 3, 16, 16) and batch.hr.shape[-1] == 16 * batch.scale
        assert torch.equal(batch.lr, data[number].lr)
        assert torch.equal(batch.hr, data[number].hr)


def test_clean_batches_are_the_same_as_without_the_choice():
    pictures = [smooth_noise(240)]
    clean = Patches(pictures, [2], PatchPlan(side=16, batch=4))
    assert all(draw.seed is None for draw in clean.drawing.batch(3)[1])
    photo = Patches(pictures, [2], PatchPlan(side=16, batch=4, degrade="photo"))
    assert len({draw.seed for draw in photo.drawing.batch(3)[1]}) == 4


def test_validation_of_a_photo_run_is_on_jpegs_of_four_qualities():
    network = HASN(2).eval()
    pictures = [smooth_noise(64, seed) for seed in range(4)]
    one_by_one = [mean_psnr(network, [picture], "cpu", "photo") for picture in pictures[:1]]
    assert one_by_one[0] == mean_psnr(network, pictures[:1], "cpu")  # the first is not compressed
    assert mean_psnr(network, pictures, "cpu", "photo") != mean_psnr(network, pictures, "cpu")


def test_the_command_trains_on_degraded_patches_and_keeps_to_them(tmp_path, capsys):
    from PIL import Image

    (tmp_path / "in").mkdir()
    for seed in range(2):
        Image.fromarray(smooth_noise(160, seed)).save(tmp_path / "in" / f"{seed}.png")
    short = ["--batch", "2", "--patch", "16", "-s", "2", "-o", str(tmp_path / "run"), "--warm-up", "0"]
    assert run(["train", str(tmp_path / "in"), *short, "--iterations", "2", "--degrade", "photo"]) == 0
    assert (tmp_path / "run" / "hasn_x2.safetensors").exists()
    assert run(["train", str(tmp_path / "in"), *short, "--iterations", "4"]) == 2
    assert "--degrade photo" in capsys.readouterr().err


def test_batches_for_blends_are_each_of_one_band_of_qualities(monkeypatch):
    monkeypatch.setattr(degrade, "GRAPHICS", 0.0)
    used: list[int] = []
    real = degrade.as_jpeg
    monkeypatch.setattr(degrade, "as_jpeg", lambda lr, quality, how: (used.append(quality), real(lr, quality, how))[1])
    data = Patches([smooth_noise(240)], [2], PatchPlan(side=16, batch=4, candidates=1, degrade="photo", blended=True))
    seen = set()
    for number in range(30):
        used.clear()
        share = data[number].photo
        seen.add(share)
        assert {degrade.photo_share(quality) for quality in used} <= {share}
        assert used or share == 1.0  # all of a batch may be WebP at the end of the scale only
    assert len(seen) >= 4


def test_every_quality_has_a_share_that_grows_with_the_compression():
    shares = [degrade.photo_share(quality) for quality in range(100, 0, -1)]
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0.25, 1.0)
    covered = [quality for band in degrade.BANDS for quality in range(band.quality[0], band.quality[1] + 1)]
    assert sorted(covered) == list(range(25, 99))


def test_validation_of_blends_takes_the_blend_for_each_quality():
    network, other = HASN(2).eval(), HASN(2).eval()
    pictures = [smooth_noise(64, seed) for seed in range(4)]
    plain = mean_psnr(network, pictures, "cpu", "photo")
    assert mean_psnr(network, pictures, "cpu", "photo", list(network.parameters())) == pytest.approx(plain, abs=1e-3)
    half = copy.deepcopy(network)
    with torch.no_grad():
        for parameter, partner in zip(half.parameters(), other.parameters(), strict=True):
            parameter.lerp_(partner, 0.5)
    first = pictures[:1]  # it is not compressed
    blended = mean_psnr(network, first, "cpu", "photo", list(other.parameters()))
    assert blended == pytest.approx(mean_psnr(half, first, "cpu"), abs=1e-3)


def test_only_the_trained_share_of_a_blend_learns(tmp_path):
    recipe = Recipe(iterations=1, warm_up=0, patches=PatchPlan(side=16, batch=2, degrade="photo"), kernels=False)
    pictures = [smooth_noise(160)]
    state = HASN(2).state_dict()
    trainer = Trainer(pictures, [], tmp_path, recipe, lambda: {2: state}, {2: HASN(2).state_dict()})
    batch = trainer.data[0]
    trainer._train_on(batch._replace(photo=0.0), rate=1e-3)  # the partner computes it alone
    assert all(torch.equal(state[name], value) for name, value in trainer.networks[2].state_dict().items())
    trainer._train_on(batch._replace(photo=0.5), rate=1e-3)
    assert any(not torch.equal(state[name], value) for name, value in trainer.networks[2].state_dict().items())


def test_blends_are_for_degraded_pictures_only(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    command = ["train", str(tmp_path / "in"), "-o", str(tmp_path / "run"), "--iterations", "2", "--blend-with", "hasn"]
    assert run(command) == 2
    assert "--degrade photo" in capsys.readouterr().err


def test_kinds_and_shares_add_up():
    for shares in (KERNELS, COMPRESSIONS, degrade.SUBSAMPLINGS):
        assert sum(shares.values()) == pytest.approx(1)
    assert sum(band.share for band in degrade.BANDS) == pytest.approx(1)
    counts = Counter(degrade._choose(KERNELS, np.random.default_rng(seed)) for seed in range(400))
    assert set(counts) == set(KERNELS)
