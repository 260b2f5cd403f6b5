"""Runs of a recipe under `accelerate launch` with a function around every training step."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtl_dist.config.load import parse
from mtl_dist.distributed.launch_check import start_accelerator
from mtl_dist.engines.ddp import DataParallel
from mtl_dist.training.run import run_on
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer

StepWrapper = Callable[[LayerwiseLearningRateTrainer, Callable[[], StepResult]], StepResult]
"""Function called in place of a step, with the trainer and the step; it must return the result of the step."""


def run_watched(
    file: str, arguments: Sequence[str], wrapper: StepWrapper, seen: Any, engine: type[DataParallel] = DataParallel
) -> None:
    """Runs with the arguments of launch/train.py; afterwards rank r writes `seen` to <file>.<r> as JSON."""
    training_step = LayerwiseLearningRateTrainer.training_step

    def watched(self: LayerwiseLearningRateTrainer, step: int) -> StepResult:
        return wrapper(self, lambda: training_step(self, step))

    LayerwiseLearningRateTrainer.training_step = watched
    accelerator, processes, _ = start_accelerator()
    run_on(accelerator, processes, parse(arguments), engine)
    Path(f"{file}.{processes.rank}").write_text(json.dumps(seen))
    accelerator.end_training()
