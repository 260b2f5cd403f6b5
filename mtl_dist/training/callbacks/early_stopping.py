"""Early stopping: a phase ends once the metric of its `until` has stopped improving."""

import logging

from mtl_dist.distributed.consistency import require_equal
from mtl_dist.schedule.early_stopping import patience_exhausted, stop_reason, value_of
from mtl_dist.schedule.phases import Phase
from mtl_dist.training.callbacks.base import Callback
from mtl_dist.training.callbacks.evaluator import Evaluator
from mtl_dist.training.context import RunContext
from mtl_dist.training.step_result import StepResult

logger = logging.getLogger(__name__)


class EarlyStopping(Callback):
    """Measures every `until.every_steps` steps of a phase and decides, alike on every rank, whether it ends."""

    def __init__(self, context: RunContext, evaluator: Evaluator) -> None:
        self._group = context.group
        self._evaluator = evaluator

    def on_phase_start(self, phase: Phase) -> None:
        state = self.trainer.train_state
        # A run that was stopped between a step and its evaluation resumes with the evaluation.
        if phase.measurements_by(state.step) > len(state.measured.get(phase.name, ())):
            self._end_phase_if_exhausted(phase)

    def on_step_end(self, phase: Phase, result: StepResult) -> None:
        with self.trainer.not_training():
            self._end_phase_if_exhausted(phase)

    def _end_phase_if_exhausted(self, phase: Phase) -> None:
        done = self.trainer.train_state.step
        if phase.measures_after(done) and self.evaluate_and_decide(phase):
            self.trainer.train_state.stops[phase.name] = done

    def evaluate_and_decide(self, phase: Phase) -> bool:
        """Measures, and returns whether the patience of `phase.until` is exhausted; the same on every rank.

        Raises TrainingError on every rank where the ranks have measured different values.
        """
        until, state = phase.until, self.trainer.train_state
        assert until is not None, "else nothing is measured within a phase"
        metrics = self._evaluator.evaluate(phase)
        value = value_of(until.metric, {task: one.as_dict() for task, one in metrics.items()})
        require_equal(self._group, f"after step {state.step}", {until.metric: repr(value)})
        values = state.measured.setdefault(phase.name, [])
        values.append(value)
        # Rank 0 decides: a rank that decided otherwise would wait in another phase for ever.
        stop = self._group.all_gather(patience_exhausted(values, until))[0]
        if stop:
            logger.info(
                "phase %s ends early, after step %s: %s",
                phase.name,
                state.step,
                stop_reason(values, until, phase.start),
            )
        return stop
