"""How `hasn train` shows a run on a terminal."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest

from hasn_cli.cli.train import _view
from hasn_cli.resize import resize
from hasn_cli.training.patches import PatchPlan
from hasn_cli.training.recipe import Recipe
from hasn_cli.training.trainer import Trainer


def test_the_share_done_grows_during_the_first_step_of_a_run_by_minutes(tmp_path, monkeypatch):
    trainer = Trainer([picture()], [], tmp_path, Recipe(minutes=1e-3, patches=PatchPlan(side=16, batch=2)))
    seen, original = [], trainer._train_on

    def watched(*arguments):
        seen.append((trainer.fraction, trainer.seconds_left))
        result = original(*arguments)
        seen.append((trainer.fraction, trainer.seconds_left))
        return result

    monkeypatch.setattr(trainer, "_train_on", watched)
    assert trainer.fraction == 0
    list(trainer.run())
    (before, left_before), (after, left_after) = seen[:2]
    assert before < after <= 1
    assert left_before > left_after >= 0
    assert trainer.fraction == 1


def picture() -> np.ndarray:
    return resize(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), scale=3)


class Clockwork:
    """Stands in for a trainer of a run of ten minutes that is a tenth further each time it is asked."""

    step = 3
    asked = 0

    @property
    def fraction(self) -> float:
        self.asked += 1
        return min(1.0, self.asked / 10)

    @property
    def seconds_left(self) -> float:
        return 600 * (1 - self.asked / 10)


def test_the_bar_moves_and_tells_the_time_left_before_the_first_report(monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    trainer = Clockwork()
    with _view(trainer):
        while trainer.asked < 4:
            pass
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capfd.readouterr().err)
    shares = [int(share) for share in re.findall(r"(\d+)%", drawn)]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0] > 0
    assert "step 3, 9:00 left" in drawn


@pytest.mark.parametrize(("initial", "steps", "warned"), [(None, 12, True), (None, 900, False), ("hasn", 12, False)])
def test_a_run_from_scratch_that_ends_after_a_few_steps_warns(tmp_path, monkeypatch, capfd, initial, steps, warned):
    from hasn_cli.cli.main import run

    trainer = SimpleNamespace(finished=False, step=steps, run=lambda: iter(()), fraction=1.0, seconds_left=0.0)
    monkeypatch.setattr("hasn_cli.training.session.prepare", lambda *_, **__: trainer)
    options = ["--from", initial] if initial else []
    assert run(["train", str(tmp_path), "-o", str(tmp_path / "run"), "--minutes", "1", *options]) == 0
    said = capfd.readouterr().err
    assert ("--from hasn" in said) == warned
    assert (f"after {steps} steps" in said) == warned
