"""Every script in examples/ does what its first comment says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MADE_BY_HAND = {"make_results.sh"}  # takes a minute; run when the weights change


def small(source, target, side=40):
    """The middle of an example picture, small so that the test is quick."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(EXAMPLES / source) as image:
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image.convert("RGB").crop((left, top, left + side, top + side - 10)).save(target)


def works(tool):
    """Whether a program is installed and says its version. A stand-in that only knows some commands does not."""
    return shutil.which(tool) and subprocess.run([tool, "--version"], capture_output=True).returncode == 0


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small("camera.jpg", tmp_path / "photos/one.jpg")
    small("flower.png", tmp_path / "photos/two words.png")
    small("forest.jpg", tmp_path / "photos/below/three.jpg")
    return tmp_path / "photos"


@pytest.fixture
def run_script(path_with_hasn):
    def run(name, *arguments, needs=(), **environment):
        for tool in needs:
            if not any(map(works, tool.split("|"))):
                pytest.skip(f"{tool.replace('|', ' or ')} is not installed")
        runner = [sys.executable] if name.endswith(".py") else ["bash"]
        command = [*runner, str(EXAMPLES / name), *map(str, arguments)]
        env = {**os.environ, "PATH": path_with_hasn, **environment}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def size(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*") if not path.name.startswith("."))


def test_folder(photos, run_script):
    run_script("folder.sh", photos, "larger")
    assert tree(Path("larger")) == ["below/three.jpg", "one.jpg", "two words.png"]
    assert size("larger/below/three.jpg") == (80, 60)


def test_curl(photos, run_script):
    handler = partial(SimpleHTTPRequestHandler, directory=photos)
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/one.jpg"
        run_script("curl.sh", url, "large.png", needs=["curl"], no_proxy="127.0.0.1")
        server.shutdown()
    assert size("large.png") == (160, 120)


def test_imagemagick(photos, run_script):
    run_script("imagemagick.sh", photos / "one.jpg", "detail.png", needs=["magick|convert"])
    width, height = size("detail.png")
    assert (width - 48) % 3 == 0 and abs(width - 48 - 40) <= 3 and abs(height - 48 - 30) <= 3


def test_parallel(photos, run_script):
    run_script("parallel.sh", photos, "larger", needs=["parallel"], JOBS="2")
    assert tree(Path("larger")) == ["one.jpg", "two words.png"]


def test_the_tasks_of_a_slurm_array_share_the_pictures_and_leave_none(photos, run_script):
    made = []
    for task in ("0", "1"):
        run_script("slurm.sh", photos, "larger", SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_TASK_COUNT="2")
        made.append(tree(Path("larger")))
    assert len(made[0]) == 1 and made[1] == ["one.jpg", "two words.png"]


def test_cluster(photos, run_script):
    pytest.importorskip("distributed", reason="the cluster extra is not installed")
    run_script("cluster.sh", photos, "larger", "local:1")
    assert tree(Path("larger")) == ["below/three.jpg", "one.jpg", "two words.png"]


def test_python_api(photos, run_script):
    shown = run_script("api.py", photos / "one.jpg")
    assert size("large.png") == (160, 120)
    assert shown.count("80×60") == 2


def test_every_script_has_a_test():
    scripts = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".sh", ".py")}
    here = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in scripts if f'run_script("{name}"' not in here} == MADE_BY_HAND


def test_the_pictures_are_small_and_their_origin_is_named():
    told = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for path in EXAMPLES.iterdir():
        made = path.stem.endswith("_x4")  # written by README's first command
        if path.suffix in (".jpg", ".png") and not made:
            assert path.stat().st_size < 300_000
            assert f"`{path.name}`" in told
