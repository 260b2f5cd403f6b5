"""Simulated kills of a run in the test's own process; each function returns a function that installs the patch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer


class Killed(BaseException):
    """Simulates a kill: no code of the run catches this exception."""


def kill_before_step(step: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Raises Killed before training step `step`, counted from 0."""

    def install(patch: pytest.MonkeyPatch) -> None:
        training_step = LayerwiseLearningRateTrainer.training_step

        def raise_killed(self: LayerwiseLearningRateTrainer, at: int) -> StepResult:
            if at == step:
                raise Killed
            return training_step(self, at)

        patch.setattr(LayerwiseLearningRateTrainer, "training_step", raise_killed)

    return install


def kill_before_saving(step: int) -> Callable[[pytest.MonkeyPatch], None]:
    """Raises Killed before the checkpoint after `step` steps is saved."""

    def install(patch: pytest.MonkeyPatch) -> None:
        save = checkpoint.save

        def raise_killed(root: Path, at: int, *parts: Any) -> Path:
            if at == step:
                raise Killed
            return save(root, at, *parts)

        patch.setattr(checkpoint, "save", raise_killed)

    return install
