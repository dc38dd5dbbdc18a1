"""Sizes beyond x4 take two passes and are planned for the larger one. Plans need no PyTorch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from command import save, size_of
from pictures import photo, picture

from hasn_cli.batch.process import bytes_needed
from hasn_cli.batch.settings import Settings
from hasn_cli.enlarge import PASSES, Size, enlarge_pixels, passes
from hasn_cli.errors import ImageError
from hasn_cli.inference import Upscaler
from hasn_cli.inference.planning import plan_on_cpu
from hasn_cli.network import ESA_CHANNELS, EXPANSION, HASN, MIN_SIDE, NUM_FEATURES, complexity
from hasn_cli.weights import header


class Repeating:
    """An upscaler that repeats pixels and records its inputs."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, tuple[int, ...]]] = []
        self.scale = 0

    def __call__(self, scale: int) -> Repeating:
        self.scale = scale
        return self

    def upscale(self, image, progress=None):
        self.seen.append((self.scale, image.shape[:2]))
        if progress:
            progress(0.5)
            progress(1.0)
        return image.repeat(self.scale, 0).repeat(self.scale, 1)


@pytest.mark.parametrize(
    ("factor", "seen"),
    [
        (3, [(3, (10, 12))]),
        (5, [(2, (10, 12)), (3, (20, 24))]),
        (8, [(2, (10, 12)), (4, (20, 24))]),
        (16, [(4, (10, 12)), (4, (40, 48))]),
    ],
)
def test_large_factors_take_two_passes(factor, seen):
    upscaler = Repeating()
    told: list[float] = []
    large = enlarge_pixels(photo(10, 12), upscaler, Size(factor), progress=told.append)
    assert large.shape == (10 * factor, 12 * factor, 3)
    assert upscaler.seen == seen
    assert told == sorted(told) and told[-1] == pytest.approx(1)


def test_progress_counts_the_pixels_of_each_pass():
    told: list[float] = []
    enlarge_pixels(photo(10, 12), Repeating(), Size(8), progress=told.append)
    assert told == pytest.approx([0.1, 0.2, 0.6, 1.0])  # the first pass has a fifth of the pixels


def test_transparency_stays_between_its_neighbours_in_two_passes():
    pixels = photo(10, 12, channels=4)
    large = enlarge_pixels(pixels, Repeating(), Size(6))
    assert large.shape == (60, 72, 4)
    assert pixels[..., 3].min() <= large[..., 3].min() and large[..., 3].max() <= pixels[..., 3].max()


@pytest.mark.parametrize(("box", "target"), [((90, 90), (75, 90)), ((5000, 5000), (160, 192)), ((6, 6), (5, 6))])
def test_fit_works_for_every_picture(box, target):
    size = Size(fit=box)
    assert size.target((10, 12)) == target
    assert size.network_scale((10, 12)) in PASSES


def test_a_width_and_height_of_other_proportions_need_stretch():
    assert Size(width=192, height=108).target((540, 960)) == (108, 192)
    assert Size(width=100, height=57).target((540, 960)) == (57, 100)  # 56.25: rounded
    with pytest.raises(ImageError, match="would distort") as caught:
        Size(width=100, height=100).target((540, 960))
    assert "--fit 100x100" in (caught.value.hint or "")
    assert Size(width=100, height=100, stretch=True).target((540, 960)) == (100, 100)


def test_memory_is_reserved_for_the_last_pass():
    small, large = picture(photo(50, 60)), picture(photo(100, 120))
    last = bytes_needed(large, Settings(Size(4), memory=1 << 30))
    assert bytes_needed(small, Settings(Size(8), memory=1 << 30)) == last


@pytest.mark.parametrize("size", [(8, 9), (90, 70), (800, 600)])
@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "fp16"}, {"precision": "bf16"}, {"tile": 50}, {"tta": True}, {"memory": 60 << 20, "tile": 0}],
)
def test_a_plan_without_pytorch_is_that_of_the_network(size, options):
    memory = {"memory": 1 << 30, **options}
    real = Upscaler(HASN(2), device="cpu", threads=2, **memory)
    try:
        expected = real.plan(size)
    except Exception as error:
        with pytest.raises(type(error)):
            plan_on_cpu(size, 3, 1, 2, threads=2, **memory)
    else:
        assert plan_on_cpu(size, 3, 1, 2, threads=2, **memory) == expected


def test_planning_knows_the_networks_dimensions():
    from hasn_cli.inference import planning

    assert (planning.NUM_FEATURES, planning.EXPANSION) == (NUM_FEATURES, EXPANSION)
    assert (planning.ESA_CHANNELS, planning.MIN_SIDE) == (ESA_CHANNELS, MIN_SIDE)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_costs_follow_from_the_shapes_alone(scale):
    network = HASN(scale)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    true = complexity(network, (720, 1280))
    assert header.parameters(shapes) == true.parameters
    assert header.multiply_adds(shapes, (720, 1280)) == true.multiply_adds


@pytest.mark.parametrize("words", [["weights", "list"], ["a.png", "-s", "8", "--dry-run", "-d", "cpu"]])
def test_lists_and_dry_runs_import_no_pytorch(words, tmp_path):
    save(tmp_path / "a.png")
    code = f"import sys; from hasn_cli.cli.main import run; run({words!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr


def test_two_passes_are_announced_recorded_and_exact(hasn, tmp_path):
    save(tmp_path / "a.png", (16, 15))
    save(tmp_path / "b.png", (16, 15))
    first = hasn("a.png", "b.png", "-s", "800%", "-v")
    assert first.code == 0 and size_of(tmp_path / "a_x8.png") == (128, 120)
    assert "2 passes (x2 and x4), whole picture" in first.err
    again = hasn("a.png", "b.png", "-s", "8", "--resume")
    assert again.code == 0 and again.err.count("done already") == 2
    steps = passes(8, (15, 16))
    assert [(step.scale, step.size) for step in steps] == [(2, (15, 16)), (4, (30, 32))]


def test_consistent_holds_for_two_passes(hasn, tmp_path):
    from PIL import Image

    from hasn_cli.resize import resize

    save(tmp_path / "a.png", (24, 20))
    for options in ([], ["--consistent"]):
        assert hasn("a.png", "-s", "6", "-o", f"out{len(options)}.png", *options).code == 0
    given = np.asarray(Image.open(tmp_path / "a.png"), np.float32)
    errors = []
    for index in range(2):
        large = np.asarray(Image.open(tmp_path / f"out{index}.png"), np.float32)
        errors.append(float(np.abs(resize(large, size=given.shape[:2]) - given).mean()))
    assert errors[1] < errors[0] * 0.7  # rounding to whole levels leaves some
