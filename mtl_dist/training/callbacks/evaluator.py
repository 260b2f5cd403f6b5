"""Evaluation at the end of phases, for early stopping, and at the end of the run."""

import logging

from mtl_dist.distributed.watchdog import Watchdog
from mtl_dist.schedule.phases import Phase
from mtl_dist.tasks.classification import ClassificationMetrics
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.training.callbacks.base import Callback
from mtl_dist.training.callbacks.preemption import Preemption
from mtl_dist.training.context import RunContext
from mtl_dist.training.evaluation import evaluate, flat_confusions, flat_metrics, nonfinite_losses
from mtl_dist.training.misclassified import final_tables

logger = logging.getLogger(__name__)
Metrics = dict[str, ClassificationMetrics]


class Evaluator(Callback):
    """Measures all tasks after each phase that another one follows and that early stopping has not ended."""

    def __init__(self, context: RunContext, tracker: Tracker, preemption: Preemption, watchdog: Watchdog) -> None:
        self._context = context
        self._tracker = tracker
        self._preemption = preemption
        self._watchdog = watchdog
        self._split = context.evaluation_split
        self._last: tuple[int, Metrics] = -1, {}
        """Steps done at the last evaluation of `RunContext.evaluation_split`, and its metrics."""

    def on_train_start(self) -> None:
        self._evaluate_if_due()

    def on_phase_end(self, phase: Phase) -> None:
        self._evaluate_if_due()

    def _evaluate_if_due(self) -> None:
        """Evaluates after a phase's last step, also where the run was stopped between the two."""
        state = self.trainer.train_state
        ended = next((phase for phase in self.trainer.schedule.phases[:-1] if phase.stop == state.step), None)
        if ended is not None and ended.name not in state.stops and state.evaluated != state.step:
            self.evaluate(ended)
            state.evaluated = state.step

    def measure(self, split: str, max_mistakes: int = 0) -> Metrics:
        """Metrics of the tasks that have rows of `split`, the same on every rank.

        Raises Interrupted where the run is to stop.
        """

        def before_batch() -> None:
            self._watchdog.heartbeat(f"after step {self.trainer.train_state.step}: a batch of {split}")
            self._preemption.poll()

        context = self._context
        batch_size = context.recipe.evaluation.batch_size
        return evaluate(context.engine, context.data, split, batch_size, context.cache, before_batch, max_mistakes)

    def evaluate(self, phase: Phase) -> Metrics:
        """Measures the split of evaluations within the run, and logs the metrics as `eval/...` and on the screen."""
        step = self.trainer.train_state.step
        metrics = self.measure_for_checkpoint()
        self._tracker.log(step, phase.name, flat_metrics(metrics, "eval") | flat_confusions(metrics, "eval"))
        when = f"after phase {phase.name}" if step == phase.stop else f"phase {phase.name}, after step {step}"
        _show(f"{when}, {self._split}", metrics)
        return metrics

    def measure_for_checkpoint(self) -> Metrics:
        """Measures the split of evaluations within the run, so that `figures` has this step's metrics."""
        metrics = self.measure(self._split)
        self._last = self.trainer.train_state.step, metrics
        return metrics

    def figures(self) -> dict[str, dict[str, float]]:
        """Metrics of each task at the current step by name; empty where this step was not evaluated."""
        step, metrics = self._last
        return {task: one.as_dict() for task, one in metrics.items()} if step == self.trainer.train_state.step else {}

    def evaluate_end(self) -> Metrics:
        """Measures the test split and the one measured within the run; returns the metrics of the test split."""
        tracking = self._context.recipe.tracking
        test = self.measure("test", tracking.misclassified if tracking.wandb else 0)
        last = test if self._split == "test" else self.measure(self._split)
        figures = flat_metrics(last, "eval") | flat_metrics(test, "test")
        confusions = flat_confusions(last, "eval") | flat_confusions(test, "test")
        self._tracker.log(
            self.trainer.train_state.step,
            "end",
            figures | confusions,
            lambda: final_tables(test, self._context.data, "test"),
        )
        _show("at the end, test", test)
        return test


def _show(when: str, metrics: Metrics) -> None:
    figures = ", ".join(
        f"{task} accuracy {one.accuracy:.4f} macro-F1 {one.macro_f1:.4f}" for task, one in metrics.items()
    )
    logger.info("%s: %s", when, figures)
    for line in nonfinite_losses(metrics):
        logger.warning("%s: %s", when, line)
