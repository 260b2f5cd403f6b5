"""Ranks agree on checkpoints by time between two steps, one call late."""

from pathlib import Path
from typing import Any

from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.train_state import TrainState
from mtl_dist.training.callbacks.preemption import Preemption
from mtl_dist.training.trainer import TransferLearningTrainer
from tests.utils.in_process import setup_here
from tests.utils.tiny import tiny_recipe


class OneRoundLate:
    """Answers as `AsyncMax` does among several ranks, for one process."""

    def __init__(self) -> None:
        self._previous = 0

    def reduce(self, value: int) -> int:
        previous, self._previous = self._previous, value
        return previous


def test_a_due_checkpoint_is_not_lost_to_an_evaluation(tmp_path: Path) -> None:
    """With an evaluation after every step, each answer to a step's wish comes during the evaluation."""
    context = setup_here(tiny_recipe(tmp_path, "checkpoint.every_minutes=1e-9"))
    preemption: Any = Preemption(context, StopRequest())
    preemption._wishes = OneRoundLate()
    TransferLearningTrainer(context, TrainState(), [preemption])
    due = []
    for _ in range(3):
        preemption.on_step_boundary(context.rates.schedule.phases[0])
        due.append(preemption.save_is_due)
        preemption.poll()  # a batch of the evaluation
    assert due == [False, True, True]
