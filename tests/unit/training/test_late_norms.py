"""Runs as on an asynchronous device: gradient norms arrive a step late, and AdamW itself skips nonfinite gradients."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.checkpoint.format import read_state, step_of
from mtl_dist.config.recipe import Recipe
from mtl_dist.device import AsyncScalar
from mtl_dist.engines import base as engine
from mtl_dist.errors import Interrupted, TrainingError
from mtl_dist.training import trainer
from tests.utils.in_process import metrics_of, run_here, summary_of
from tests.utils.nonfinite import inject_nonfinite
from tests.utils.stopping import stop_at_check
from tests.utils.tiny import tiny_recipe

SETTINGS = (
    *("model.dropout=0.1", "tracking.log_every_steps=100", "checkpoint.every_steps=3", "phases.1.steps=10"),
    *("checkpoint.keep=99", "optimizer.max_nonfinite_steps=3"),
)


class LateScalar(AsyncScalar):
    """Scalar that is not ready before the next step."""

    def __init__(self, number: Tensor) -> None:
        super().__init__(number)
        self.is_ready = False


def simulate_async_device(patch: pytest.MonkeyPatch) -> None:
    """Patches the trainer and the engine to treat the CPU as an asynchronous device."""
    patch.setattr(trainer, "AsyncScalar", LateScalar)
    patch.setattr(engine, "is_async", lambda device: True)


def recipe_of(folder: Path, run: str) -> Recipe:
    return tiny_recipe(folder, *SETTINGS, f"output_dir={folder / run}")


def train_states(folder: Path) -> list[dict[str, Any]]:
    """Returns the train state in each checkpoint, without times."""
    folders = sorted((folder / "checkpoints").iterdir())
    return [{**read_state(one, step_of(one))["train_state"], "phase_seconds": None} for one in folders]


def result_of(folder: Path) -> tuple[Any, ...]:
    return summary_of(folder)["state_sha256"], metrics_of(folder), train_states(folder)


@pytest.mark.parametrize("bad", [range(0), range(1, 2), range(4, 6), range(6, 7), range(5, 8), range(12, 15)])
def test_a_run_with_late_norms_has_the_same_bits(tmp_path: Path, bad: range) -> None:
    """Nonfinite steps occur before a checkpoint, at a phase boundary, and so often that the run rolls back."""
    for name, prepare in (("now", lambda patch: None), ("late", simulate_async_device)):
        with pytest.MonkeyPatch.context() as patch:
            prepare(patch)
            inject_nonfinite(bad, put=patch.setattr)
            run_here(recipe_of(tmp_path, name))
    assert result_of(tmp_path / "late") == result_of(tmp_path / "now")
    assert summary_of(tmp_path / "late")["nonfinite_steps"] == len(bad)


@pytest.mark.parametrize("bad", [range(4, 5), range(5, 6)])
def test_a_stopped_run_saves_its_last_finite_step(tmp_path: Path, bad: range) -> None:
    """The run is stopped after step 5, which may not be finite."""
    with pytest.MonkeyPatch.context() as patch:
        simulate_async_device(patch)
        inject_nonfinite(bad, put=patch.setattr)
        run_here(recipe_of(tmp_path, "whole"))
    with pytest.MonkeyPatch.context() as patch:
        simulate_async_device(patch)
        inject_nonfinite(bad, put=patch.setattr)
        stop_at_check(patch, 4 + 1 + len(("topic", "mood")))
        with pytest.raises(Interrupted, match="after step 5 of 18"):
            run_here(recipe_of(tmp_path, "stopped"))
    (found, _) = checkpoint.newest_valid(tmp_path / "stopped" / "checkpoints")
    assert found is not None
    # Weights with a nonfinite gradient are not saved.
    assert (found.step, found.state["train_state"]["nonfinite_total"]) == ((4, 0) if bad.start == 4 else (5, 0))
    with pytest.MonkeyPatch.context() as patch:
        simulate_async_device(patch)
        inject_nonfinite(bad, put=patch.setattr)
        run_here(recipe_of(tmp_path, "stopped"))
    assert result_of(tmp_path / "stopped")[0] == result_of(tmp_path / "whole")[0]


def test_the_last_allowed_nonfinite_step_is_detected_in_the_step_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulate_async_device(monkeypatch)
    inject_nonfinite(range(1, 12), put=monkeypatch.setattr)
    called_at: list[int] = []
    give_up = trainer.TransferLearningTrainer.give_up_or_roll_back

    def noted(self: trainer.TransferLearningTrainer) -> None:
        called_at.append(self.train_state.step)
        give_up(self)

    monkeypatch.setattr(trainer.TransferLearningTrainer, "give_up_or_roll_back", noted)
    with pytest.raises(TrainingError, match="not finite in 3 steps in a row"):
        run_here(tiny_recipe(tmp_path, *SETTINGS, "checkpoint.every_steps=null", "checkpoint.every_minutes=null"))
    assert called_at == [3]
