"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest
from browser import browser  # noqa: F401 (a fixture)
from command import hasn  # noqa: F401 (a fixture)
from quick_hasn import path_with_hasn  # noqa: F401 (a fixture)

# threads that wait take no processor time from the other tests and programs; read when PyTorch is first imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile("hasn", deadline=None)  # no test depends on an idle machine
hypothesis.settings.load_profile("hasn")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # true in a shell's background, and inherited by processes
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with Set5, the golden outputs and the released checkpoint; tests are skipped without it."""
    path = Path(os.environ.get("HASN_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("the shared data (Set5, golden outputs) does not lie beside the checkout; set HASN_SHARED")
    return path
