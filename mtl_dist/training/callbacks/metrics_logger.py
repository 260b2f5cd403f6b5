"""The line of metrics.jsonl for a training step, and warnings and alerts about steps that were skipped."""

import logging
from collections.abc import Mapping

import torch

from mtl_dist.schedule.phases import Phase
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.training.callbacks.base import Callback
from mtl_dist.training.context import RunContext
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.throughput import Throughput, memory_figures

logger = logging.getLogger(__name__)

MOST_SKIPS_SHOWN = 10
"""Warnings about steps without a finite gradient in one process."""


class MetricsLogger(Callback):
    """Logs every step for which `TransferLearningTrainer.is_logged` holds."""

    def __init__(self, context: RunContext, tracker: Tracker) -> None:
        self._context = context
        self._tracker = tracker
        self._throughput = Throughput(context.cache)
        self._skips = 0
        """Number of calls of `on_skipped_step`."""
        self.last_loss: tuple[int, float] | None = None
        """The last step that was logged, as steps done by then, and its loss."""

    def on_phase_start(self, phase: Phase) -> None:
        self._throughput = Throughput(self._context.cache)

    def on_step_end(self, phase: Phase, result: StepResult) -> None:
        self._throughput.count(int(result.batch.lengths.sum()), result.computed)
        done = self.trainer.train_state.step
        if self.trainer.is_logged(done):
            self.last_loss = done, self._log(phase, result)

    def on_skipped_step(self, step: int) -> None:
        phase = self.trainer.schedule.phase_at(step)
        self._skips += 1
        if self._skips <= MOST_SKIPS_SHOWN:
            last = "; further ones are counted at the end" if self._skips == MOST_SKIPS_SHOWN else ""
            logger.warning(
                "step %s, phase %s: the gradient is not finite, so the step is skipped%s", step + 1, phase.name, last
            )
        self._tracker.alert("Gradient not finite", f"step {step + 1}, phase {phase.name}: skipped", step + 1)

    def _log(self, phase: Phase, result: StepResult) -> float:
        """Writes the line of a step and returns its loss. The only exchange among ranks besides gradients."""
        context, trainer = self._context, self.trainer
        losses_by_rank = context.group.all_gather(result.losses.tolist())
        losses = torch.tensor(losses_by_rank, dtype=torch.float64).sum(dim=0).tolist()
        by_task = dict(zip(context.recipe.tasks, losses, strict=True))
        loss = sum(context.recipe.tasks[task].weight * value for task, value in by_task.items())
        present = dict(zip(context.recipe.tasks, result.batch.counts, strict=True))
        self._tracker.log(
            result.batch.step + 1,
            phase.name,
            {
                "train/loss": loss,
                **{f"train/{task}/loss": value for task, value in by_task.items() if present[task]},
                **self._draws(result.batch.step + 1),
                **{
                    f"train/{task}/labels": int(count)
                    for task, count in present.items()
                    if len(context.data.pool_of[task].tasks) > 1
                },
                **{f"optim/lr/{unit}": rate for unit, rate in trainer.rates_at(result.batch.step).items()},
                **self._gradient_figures(result),
                "optim/nonfinite_steps": trainer.train_state.nonfinite_total,
                "phase/index": [one.name for one in trainer.schedule.phases].index(phase.name),
                "phase/trainable_parameters": sum(context.unit_sizes[unit] for unit in phase.units),
                "plan/digest": result.batch.digest,
                "plan/tokens": int(result.batch.lengths.sum()),
                **self._throughput.figures(trainer.training_seconds),
                **memory_figures(context.engine.device),
            },
        )
        return loss

    def _gradient_figures(self, result: StepResult) -> Mapping[str, float]:
        return {
            "optim/grad_norm": result.gradient_norm,
            **{f"optim/grad_norm/{unit}": norm for unit, norm in result.unit_norms.items()},
            **{f"optim/gradient_cosine/{pair}": cosine for pair, cosine in result.cosines.items()},
        }

    def _draws(self, done: int) -> dict[str, float]:
        """Rows drawn from each task's pool in the first `done` steps, and passes over the pool."""
        figures: dict[str, float] = {}
        for task, draws in self._context.draws_by_task(0, done).items():
            figures[f"train/{task}/draws"] = draws
            figures[f"train/{task}/passes"] = draws / self._context.data.pool_of[task].size
        return figures
