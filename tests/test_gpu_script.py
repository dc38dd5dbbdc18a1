"""benchmarks/gpu.py, rehearsed on the CPU with tiny sizes: nobody can repair it while a card is waiting."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hasn_cli.resize import resize
from hasn_cli.weights.checkpoint import load_state_dict_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent
NOT_THERE = ("imagecodecs", "simplejpeg", "natsort", "platformdirs", "tifffile", "textual_image", "rich", "click")


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Path:
    """A kit of six small pictures from two folders, one of which did not fit."""
    folder = tmp_path_factory.mktemp("gpu")
    random = np.random.default_rng(0)
    for group, count in (("a", 4), ("b", 3), ("valid", 2)):
        (folder / group).mkdir()
        for number in range(count):
            picture = resize(random.integers(0, 256, (56, 60, 3), np.uint8), scale=4)
            Image.fromarray(picture).save(folder / group / f"{number}.png")
    said = gpu(folder, "pack", "a", "b", "--valid", "valid", "--weights", ROOT / "weights", "-o", "kit",
               "--megabytes", 6)  # fmt: skip
    assert "7 of 7 pictures" in said
    return folder / "kit"


def gpu(folder: Path, *arguments: object) -> str:
    """Run the script as on a bare machine, without hasn's console packages. Returns what it printed."""
    blocker = f"import sys; sys.modules.update(dict.fromkeys({NOT_THERE!r})); import runpy; sys.argv = sys.argv[1:]; "
    code = blocker + "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, ROOT / "benchmarks" / "gpu.py", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_kit_holds_a_share_of_each_folder_and_keeps_to_its_size(kit):
    pictures = sorted((kit / "pictures").iterdir())
    assert len(pictures) == 7
    assert {path.suffix for path in pictures} == {".avif"}
    assert len(list((kit / "valid").iterdir())) == 2
    size = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    smaller = (size - 1000) / 1e6
    said = gpu(kit.parent, "pack", "a", "b", "--valid", "valid", "--weights", ROOT / "weights", "-o", "smaller",
               "--megabytes", smaller)  # fmt: skip
    assert "6 of 7 pictures" in said
    assert sum(path.stat().st_size for path in (kit.parent / "smaller").rglob("*") if path.is_file()) <= smaller * 1e6


def test_several_kits_share_the_pictures(kit):
    said = gpu(kit.parent, "pack", "a", "b", "--valid", "valid", "-o", "halves", "--parts", 2)
    assert "7 of 7 pictures" in said
    counts = [len(list((kit.parent / "halves" / part / "pictures").iterdir())) for part in "12"]
    assert sum(counts) == 7 and min(counts) >= 3


def test_a_slice_trains_and_the_next_one_continues_from_its_weights(kit):
    tiny = ["-d", "cpu", "--no-compile", "--batch", 2, "--patch", 16, "--minutes", 0.3, "--reserve", 5,
            "--precision", "fp32", "--report-every", 1, "--validate-every", 4]  # fmt: skip
    said = gpu(kit.parent, "train", kit, "-o", "first", "--from", kit / "weights", *tiny)
    assert "done; everything is in first" in said
    states = [load_state_dict_file(kit.parent / "first" / f"hasn_x{scale}.safetensors") for scale in (2, 3, 4)]
    body = [name for name in states[0] if not name.startswith("upsampler")]
    assert all((states[0][name] == state[name]).all() for name in body for state in states)
    rows = list(csv.DictReader((kit.parent / "first" / "log.csv").open()))
    assert rows[-1]["psnr_y_x2"] and rows[-1]["psnr_y_x4"]
    said = gpu(kit.parent, "train", kit, "-o", "second", "--from", "first", "--seed", 1, "--degrade", "photo", *tiny)
    assert "done" in said
    assert sorted(path.name for path in (kit.parent / "second").iterdir()) == [
        "hasn_x2.safetensors", "hasn_x3.safetensors", "hasn_x4.safetensors", "log.csv",
    ]  # fmt: skip


def test_measuring_saves_every_row(kit):
    sizes = ["--side", 48, "--megapixels", 0.003, "--rounds", 1, "--skip-compiled"]
    said = gpu(kit.parent, "measure", kit, "-o", "measured", "-d", "cpu", "--minutes", 2, *sizes)
    rows = json.loads((kit.parent / "measured" / "measure.json").read_text())["rows"]
    assert said.count('"what"') == len(rows)
    exact = [row for row in rows if row["what"] == "exactness"]
    assert len(exact) == 24
    assert all(row["largest"] < (0.01 if row["precision"] == "fp32" else 20) for row in exact)
    speeds = [row for row in rows if row["what"] == "speed"]
    assert {row["engine"] for row in speeds} >= {"hasn, default", "plain module, half", "plain module, fp32"}
    assert all(row["LR MP/s"] > 0 for row in speeds)
