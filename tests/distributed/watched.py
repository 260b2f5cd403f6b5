"""A recipe's run under `accelerate launch`, every training step of which is watched."""

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

Watch = Callable[[LayerwiseLearningRateTrainer, Callable[[], StepResult]], StepResult]
"""Called in place of a step, with the trainer and the step itself; returns what that does."""


def run_watched(
    file: str, arguments: Sequence[str], watch: Watch, seen: Any, engine: type[DataParallel] = DataParallel
) -> None:
    """Runs with the arguments of launch/train.py; then rank r writes `seen` to <file>.<r>, as JSON."""
    training_step = LayerwiseLearningRateTrainer.training_step

    def watched(self: LayerwiseLearningRateTrainer, step: int) -> StepResult:
        return watch(self, lambda: training_step(self, step))

    LayerwiseLearningRateTrainer.training_step = watched
    accelerator, processes, _ = start_accelerator()
    run_on(accelerator, processes, parse(arguments), engine)
    Path(f"{file}.{processes.rank}").write_text(json.dumps(seen))
    accelerator.end_training()
