"""Runs in one process that are stopped between steps or in an evaluation, or roll back to an earlier checkpoint."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.config.recipe import Recipe
from mtl_dist.distributed.consistency import combined_digest
from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.engines.base import Engine
from mtl_dist.errors import Interrupted, TrainingError
from mtl_dist.training.callbacks.checkpointer import Checkpointer
from tests.utils.in_process import metrics_of, run_here
from tests.utils.nonfinite import inject_nonfinite
from tests.utils.stopping import stop_at_check
from tests.utils.tiny import tiny_recipe

UNTIL = ("evaluation.split=validation", "phases.1.until={metric: loss, patience: 9, every_steps: 2}")


def recipe_of(folder: Path, run: str, *overrides: str) -> Recipe:
    """Returns the tiny recipe with dropout, 3 phases of 4 steps, and a validation file."""
    files = [f"tasks.{task}.data_files.validation={folder}/data/{task}.test.json" for task in ("topic", "mood")]
    common = ("model.dropout=0.1", "checkpoint.every_steps=3", f"output_dir={folder / run}")
    return tiny_recipe(folder, *common, *files, *overrides)


def result_of(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Returns the SHA-256 of the final state and the metrics lines."""
    return json.loads((folder / "summary.json").read_text())["state_sha256"], metrics_of(folder)


@pytest.mark.parametrize("check", [1, 3, 4, 5, 6, 7, 9, 10, 12, 13, 14, 16, 18, 20, 22])
def test_a_stopped_run_resumes_with_the_same_bits(tmp_path: Path, check: int) -> None:
    """Runs are stopped between steps, in evaluations at phase ends and for `until`, and in the final evaluation."""
    run_here(recipe_of(tmp_path, "whole", *UNTIL))
    recipe = recipe_of(tmp_path, "stopped", *UNTIL)
    with pytest.MonkeyPatch.context() as patch:
        stop_at_check(patch, check)
        with pytest.raises(Interrupted, match=r"^stopped by SIGTERM after step \d+ of 12; the same command resumes"):
            run_here(recipe)
    assert not (tmp_path / "stopped" / "summary.json").exists()
    run_here(recipe)
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "whole")


def test_a_signal_after_the_last_check_does_not_change_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank that ended with 75, while others end with 0, would cause a finished job to be restarted."""
    codes: list[int] = []
    monkeypatch.setattr(StopRequest, "end_with", lambda self, code: codes.append(code))
    run_here(recipe_of(tmp_path, "run"))
    assert codes == [0]


def test_without_checkpoints_the_message_of_a_stopped_run_announces_a_new_start(tmp_path: Path) -> None:
    overrides = ("checkpoint.every_steps=null", "checkpoint.every_minutes=null")
    with pytest.MonkeyPatch.context() as patch:
        stop_at_check(patch, 2)
        with pytest.raises(Interrupted, match="after step 2 of 12; the same command starts anew: checkpoint"):
            run_here(recipe_of(tmp_path, "run", *overrides))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_checkpoint_is_saved_every_so_many_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny interval a checkpoint is saved after each step."""
    saved: list[int] = []
    save = checkpoint.save

    def noted(root: Path, step: int, *parts: Any) -> Path:
        saved.append(step)
        return save(root, step, *parts)

    monkeypatch.setattr(checkpoint, "save", noted)
    run_here(recipe_of(tmp_path, "run", "checkpoint.every_steps=null", "checkpoint.every_minutes=1e-9"))
    assert saved == list(range(1, 13))


def test_too_many_nonfinite_steps_roll_back_to_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved after step 6, nonfinite from 8 to 10: step 7 is lost, and the run continues with the samples of step 11."""
    entered: dict[str, str] = {}
    enter_phase = Engine.enter_phase

    def noted(self: Engine, name: str, units: Sequence[str]) -> None:
        enter_phase(self, name, units)
        entered[f"{len(entered)} {name}"] = combined_digest(self.parameter_digests() | self.optimizer_state_digests())

    monkeypatch.setattr(Engine, "enter_phase", noted)
    inject_nonfinite(range(7, 10), put=monkeypatch.setattr)
    run_here(recipe_of(tmp_path, "run", "optimizer.max_nonfinite_steps=3", "phases.1.steps=10"))
    lines = metrics_of(tmp_path / "run")
    (line,) = (line for line in lines if "safety/rolled_back_to" in line)
    assert (line["step"], line["safety/rolled_back_to"]) == (10, 6)
    digests = [line["plan/digest"] for line in lines if "train/loss" in line]
    assert len(digests) == len(set(digests)) == 18
    found, _ = checkpoint.newest_valid(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert found.state["train_state"]["rollbacks"] == [[6, 10]]
    assert list(entered) == ["0 heads", "1 upper", "2 upper", "3 all", "4 the end"]


def test_a_rollback_restores_weights_and_optimizer_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollback directly after the checkpoint of step 6 restores the state before the nonfinite steps."""
    inject_nonfinite(range(6, 8), put=monkeypatch.setattr)
    states = []
    load_newest = Checkpointer.load_newest

    def noted(self: Checkpointer) -> int | None:
        before = self._context.engine.parameter_digests() | self._context.engine.optimizer_state_digests()
        back_to = load_newest(self)
        states.append(
            (before, self._context.engine.parameter_digests() | self._context.engine.optimizer_state_digests())
        )
        return back_to

    monkeypatch.setattr(Checkpointer, "load_newest", noted)
    run_here(recipe_of(tmp_path, "run", "optimizer.max_nonfinite_steps=2", "phases.1.steps=10"))
    ((before, after),) = states
    assert before == after


def test_the_number_of_rollbacks_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject_nonfinite(range(4, 12), put=monkeypatch.setattr)
    overrides = ("optimizer.max_nonfinite_steps=2", "optimizer.max_rollbacks=2")
    with pytest.raises(TrainingError, match=r"^the gradient was not finite in 2 steps in a row"):
        run_here(recipe_of(tmp_path, "run", *overrides))
    back = [line["step"] for line in metrics_of(tmp_path / "run") if "safety/rolled_back_to" in line]
    assert back == [6, 8]


def test_without_a_checkpoint_nonfinite_steps_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject_nonfinite(range(2), put=monkeypatch.setattr)
    with pytest.raises(TrainingError, match=r"^the gradient was not finite in 2 steps in a row"):
        run_here(recipe_of(tmp_path, "run", "optimizer.max_nonfinite_steps=2"))
