"""`hasn doctor` describes this machine correctly and says what would help."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from hasn_cli import doctor
from hasn_cli.cli.main import run
from hasn_cli.errors import BudgetError
from hasn_cli.images.formats import FORMATS, READ_ONLY
from hasn_cli.inference.blocks import find_native

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def report():
    return doctor.examine(seconds=0)


def test_it_shows_what_the_program_would_run_on(report):
    assert report.packages["torch"] == torch.__version__
    assert report.threads == torch.get_num_threads()
    assert (report.machine_code is None) == (find_native() is None)
    assert [device.chosen for device in report.devices].count(True) == 1
    assert report.devices[0].name == "cpu" and report.devices[0].memory == psutil.virtual_memory().total


def test_every_device_it_names_can_be_used(report):
    from hasn_cli.inference.devices import resolve_device

    for device in report.devices:
        assert resolve_device(device.name).type == device.name.split(":")[0]


def test_each_gpu_is_listed_and_the_first_is_what_auto_means(monkeypatch):
    memory = {0: (70 << 30, 80 << 30), 1: (1 << 30, 80 << 30)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: memory[getattr(device, "index", device)])
    cpu, first, second = doctor.find_devices()
    assert (first.name, first.title, first.memory, first.free) == ("cuda:0", "GPU 0", 80 << 30, 70 << 30)
    assert (second.name, second.free) == ("cuda:1", 1 << 30)
    assert (cpu.precision, first.precision) == ("fp32", "fp16")
    assert [cpu.chosen, first.chosen, second.chosen] == [False, True, False]


def test_every_format_is_tried(report):
    assert {state.name for state in report.formats} == {*FORMATS, *READ_ONLY}
    for state in report.formats:
        assert state.read or state.package, state
    jpeg = next(state for state in report.formats if state.name == "jpeg")
    assert jpeg.read and jpeg.write


def test_a_format_that_fails_is_reported(monkeypatch):
    from hasn_cli import images
    from hasn_cli.errors import ImageError

    write = images.write_picture

    def failing(picture, target, format, options):
        if format == "png":
            raise ImageError("no encoder")
        write(picture, target, format, options)

    monkeypatch.setattr("hasn_cli.images.write_picture", failing)
    states = {state.name: state for state in doctor.probe_formats()}
    assert not states["png"].write and states["bmp"].write
    concerns = doctor.find_concerns({4: "x"}, tuple(states.values()), Path("/"), 1 << 40)
    assert any("PNG" in concern.what and concern.fatal for concern in concerns)


def test_every_dependency_of_the_package_is_looked_up(report):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"torch", "numpy", "pillow"} <= set(report.packages) <= {name_of(line) for line in project["dependencies"]}
    assert set(report.extras) == set(project["optional-dependencies"]) - {"all", "bench", "peers", "test"}


def name_of(requirement):
    return re.match(r"[\w.-]+", requirement)[0]


def test_an_extra_is_installed_if_all_its_packages_are(monkeypatch):
    lines = [
        "torch>=2",
        "here>=1; extra == 'whole'",
        "here; extra == 'half'",
        "gone; extra == 'half'",
        "x; extra == 'test'",
    ]
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "gone" else "1")
    assert doctor.requirements() == (["torch"], {"whole": ["here"], "half": ["here", "gone"]})
    assert doctor.examine(seconds=0).extras == {"whole": True, "half": False}


class Planner:
    """An upscaler that computes pictures whole up to a limit, cuts larger ones, and refuses those above another."""

    scale = 3

    def __init__(self, whole, most):
        self.whole, self.most = whole, most

    def plan(self, size, channels=3, itemsize=1):
        pixels = size[0] * size[1]
        if pixels > self.most:
            raise BudgetError("too large")
        return type("Plan", (), {"tile": None if pixels <= self.whole else 512, "budget": 1 << 30})()


@pytest.mark.parametrize("whole", [12, 13, 5_000_000, 12 * 500**2 - 1])
def test_the_largest_exact_picture_is_the_largest(whole):
    reach = doctor.largest_exact(Planner(whole, 4 * whole))
    unit = reach.size[0] // 3
    assert reach.size == (3 * unit, 4 * unit)
    assert 12 * unit**2 <= whole < 12 * (unit + 1) ** 2
    assert (reach.scale, reach.budget) == (3, 1 << 30)


def test_if_nothing_fits_there_is_no_largest_exact_picture():
    assert doctor.largest_exact(Planner(0, 0)).size == (0, 0)


def test_the_reach_at_each_scale_is_what_the_engine_plans(report):
    assert [reach.scale for reach in report.reach] == [2, 3, 4]
    for reach in report.reach:
        assert reach.size[0] * reach.size[1] > 1_000_000
        assert reach.size[0] * 4 == reach.size[1] * 3


class Sleeper:
    """A slow upscaler, slowest at the first call."""

    scale = 2

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, 0
        monkeypatch.setattr(doctor.time, "perf_counter", lambda: self.now)

    def upscale(self, image):
        self.calls += 1
        self.now += 3.0 if self.calls == 1 else 0.5
        return np.zeros((2, 2, 3), np.uint8)


def test_the_speed_test_takes_the_given_time_and_does_not_count_the_warm_up(monkeypatch):
    speed = doctor.measure_speed(Sleeper(monkeypatch), 5.0)
    assert speed.rounds == 4
    megapixels = doctor.PROBE[0] * doctor.PROBE[1] / 1e6
    assert speed.seconds_per_megapixel == pytest.approx(0.5 / megapixels)
    assert speed.output_megapixels_per_second == pytest.approx(4 * megapixels / 0.5)


def test_concerns_name_a_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_cores", lambda: 1)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    concerns = doctor.find_concerns({2: None, 4: "x"}, (), tmp_path, 100 << 20)
    texts = " ".join(concern.what for concern in concerns)
    assert "x2" in texts and "NVIDIA" in texts and "100 MiB" in texts
    assert [concern.fatal for concern in concerns] == [True, False, False]
    assert all(concern.hint for concern in concerns)


def test_json_contains_everything_that_the_tables_show(capsys):
    assert run(["doctor", "--json", "--seconds", "0"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"][0]["name"] == "cpu"
    assert len(found["reach"]) == 3 and found["speed"] is None
    assert found["weights"]["4"].endswith("hasn_x4.safetensors")


def test_the_tables_name_what_matters(capsys):
    assert run(["doctor", "--seconds", "0.1"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("PyTorch", "← auto", "JPEG", "exact up to", "s for each megapixel of input", "threads"):
        assert text in shown


def test_damaged_weights_are_a_failure_and_everything_else_is_still_shown(monkeypatch, capsys, tmp_path):
    from hasn_cli import weights

    whole = weights.bundled_path
    damaged = tmp_path / "hasn_x4.safetensors"
    damaged.write_bytes(whole(4).read_bytes()[:1000])
    monkeypatch.setattr(weights, "bundled_path", lambda scale, *_: damaged if scale == 4 else whole(scale))
    assert run(["doctor", "--json", "--seconds", "0"]) == 1
    found = json.loads(capsys.readouterr().out)
    (concern,) = [concern for concern in found["concerns"] if concern["fatal"]]
    assert "hasn_x4.safetensors" in concern["what"] and concern["hint"]
    assert [reach["scale"] for reach in found["reach"]] == [2, 3]


def test_damaged_photo_weights_are_a_failure_too(monkeypatch, capsys, tmp_path):
    from hasn_cli import weights

    whole = weights.bundled_path
    damaged = tmp_path / "photo_x3.safetensors"
    damaged.write_bytes(whole(3, "photo").read_bytes()[:1000])
    spoilt = (3, "photo")
    found = lambda scale, name="clean": damaged if (scale, name) == spoilt else whole(scale, name)  # noqa: E731
    monkeypatch.setattr(weights, "bundled_path", found)
    assert run(["doctor", "--json", "--seconds", "0"]) == 1
    (concern,) = [concern for concern in json.loads(capsys.readouterr().out)["concerns"] if concern["fatal"]]
    assert "photo_x3.safetensors" in concern["what"]


def test_missing_weights_are_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "bundled_weights", lambda scale: None)
    assert run(["doctor"]) == 1
    assert "the weights for x2, x3, x4 are missing" in " ".join(capsys.readouterr().out.split())
