"""Places at which a run in the test's own process is killed, each an arrangement of patches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer


class Killed(BaseException):
    """Stands for a kill: nothing of the run catches it."""


def kill_before_step(step: int) -> Callable[[pytest.MonkeyPatch], None]:
    def arrange(patch: pytest.MonkeyPatch) -> None:
        training_step = LayerwiseLearningRateTrainer.training_step

        def dies(self: LayerwiseLearningRateTrainer, at: int) -> StepResult:
            if at == step:
                raise Killed
            return training_step(self, at)

        patch.setattr(LayerwiseLearningRateTrainer, "training_step", dies)

    return arrange


def kill_before_saving(step: int) -> Callable[[pytest.MonkeyPatch], None]:
    def arrange(patch: pytest.MonkeyPatch) -> None:
        save = checkpoint.save

        def dies(root: Path, at: int, *parts: Any) -> Path:
            if at == step:
                raise Killed
            return save(root, at, *parts)

        patch.setattr(checkpoint, "save", dies)

    return arrange
