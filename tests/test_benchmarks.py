"""The benchmarks that the documentation names still run, here on as little work as they allow."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

COMMANDS = [
    "batch.py throughput --pictures 2 --block 1",
    "batch.py memory --pictures 12",
    "serve.py load --at-once 4",
    "serve.py memory --requests 100",
    "inference.py speed --sizes 48x32 --peers plain --plain-rounds 1 --rounds 1",
    "inference.py flat --largest 1 --rounds 1",
    "inference.py tiles --sizes 160x96",
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_benchmark_prints_its_numbers(command):
    script, *arguments = command.split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any(character.isdigit() for character in done.stdout), done.stdout
