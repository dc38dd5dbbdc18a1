"""The package as users get it: built, installed elsewhere, and used without access to the source folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

pytest.importorskip("build", reason="needs the test extra")
pytest.importorskip("hatchling", reason="needs the test extra")


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed, and return its stdout."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory) -> Path:
    """A folder in which only the wheel is installed; dependencies come from the environment."""
    folder = tmp_path_factory.mktemp("elsewhere")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    run(*pip, "--target", folder / "site", wheel, cwd=folder)
    return folder


def test_the_wheel_carries_the_weights_the_licence_and_the_types(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for scale in (2, 3, 4):
        assert f"hasn_cli/bundled/hasn_x{scale}.safetensors" in names
    for name in (
        "hasn_cli/bundled/README.md",
        "hasn_cli/bundled/SOURCES.md",
        "hasn_cli/bundled/SHA256SUMS",
        "hasn_cli/bundled/config.json",
        "hasn_cli/py.typed",
    ):
        assert name in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if not name.startswith("hasn_cli")]
    assert not [name for name in names if name.endswith((".pth", ".ckpt"))]


def test_the_installed_command_upscales_without_the_checkout(elsewhere: Path):
    Image.new("RGB", (20, 16), "teal").save(elsewhere / "tiny.png")
    site = {"PYTHONPATH": str(elsewhere / "site"), "HF_HUB_OFFLINE": "1", "HF_HOME": str(elsewhere / "home")}
    located = run(elsewhere / "site" / "bin" / "hasn", "weights", "path", "hasn", cwd=elsewhere, **site)
    assert all(line.startswith(str(elsewhere / "site" / "hasn_cli" / "bundled")) for line in located.splitlines())
    run(elsewhere / "site" / "bin" / "hasn", "upscale", "tiny.png", "-s", "2", cwd=elsewhere, **site)
    with Image.open(elsewhere / "tiny_x2.png") as large:
        assert large.size == (40, 32)
    assert not (elsewhere / "home").exists()


def test_the_installed_weights_verify(elsewhere: Path):
    told = run(
        elsewhere / "site" / "bin" / "hasn",
        *("weights", "verify", "hasn"),
        cwd=elsewhere,
        PYTHONPATH=str(elsewhere / "site"),
    )
    assert told.count("SHA-256 and tensors are correct") == 3
