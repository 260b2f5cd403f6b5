"""TrainingProgress of training: a bar on a terminal, plain lines in a log."""

from mtl_dist.schedule.phases import Phase
from mtl_dist.tracking.console import TrainingProgress
from mtl_dist.training.callbacks.base import Callback
from mtl_dist.training.callbacks.metrics_logger import MetricsLogger
from mtl_dist.training.step_result import StepResult


class ProgressBar(Callback):
    """Shows steps done, the phase and the loss that was logged last."""

    def __init__(self, progress: TrainingProgress, metrics: MetricsLogger) -> None:
        self._progress = progress
        self._metrics = metrics

    def on_step_end(self, phase: Phase, result: StepResult) -> None:
        done = self.trainer.train_state.step
        logged = self._metrics.last_loss
        loss = logged[1] if logged is not None and logged[0] == done else None
        self._progress.advance(done, self.trainer.schedule.total_steps, phase.name, loss)
