"""`hasn` called within the test process, and pictures to give to it."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from hasn_cli.cli.main import run


class Result:
    def __init__(self, code: int, out: bytes, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def events(self) -> list[dict]:
        return [json.loads(line) for line in self.out.decode().splitlines()]


@pytest.fixture
def hasn(tmp_path, monkeypatch, capfdbinary):
    """Run `hasn` in this process, in an empty folder; stdin is bytes."""
    monkeypatch.chdir(tmp_path)

    def call(*args: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = run([str(arg) for arg in args])
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        return Result(code, out, err.decode())

    return call


def save(path, size=(20, 16), mode="RGB", **options):
    """A picture with something in it; `size` is (width, height), as Pillow has it."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    small.convert(mode).save(path, **options)
    return path


def size_of(path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size
