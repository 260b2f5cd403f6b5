"""When a run saves a checkpoint, what it does where the disk refuses, and how it rolls back to one."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtl_dist.checkpoint import storage
from mtl_dist.checkpoint.format import folder_name
from mtl_dist.distributed.watchdog import Watchdog
from mtl_dist.errors import TrainingError
from mtl_dist.finite import find_nonfinite
from mtl_dist.run_layout import CHECKPOINTS
from mtl_dist.schedule.phases import Phase
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.training.callbacks.base import Callback
from mtl_dist.training.callbacks.evaluator import Evaluator
from mtl_dist.training.callbacks.preemption import Preemption, saves_checkpoints
from mtl_dist.training.context import RunContext

logger = logging.getLogger(__name__)


class Checkpointer(Callback):
    """Saves by steps, by time and at each phase's end. Every rank calls its methods alike; the main process writes."""

    def __init__(
        self,
        context: RunContext,
        tracker: Tracker,
        evaluator: Evaluator,
        preemption: Preemption,
        watchdog: Watchdog,
    ) -> None:
        self._context = context
        self._config = context.recipe.checkpoint
        self._root = Path(context.recipe.output_dir) / CHECKPOINTS
        self._tracker = tracker
        self._evaluator = evaluator
        self._preemption = preemption
        self._watchdog = watchdog

    def on_step_boundary(self, phase: Phase) -> None:
        done, every = self.trainer.train_state.step, self._config.every_steps
        # At the end of the phase, its evaluation comes first.
        if done < phase.stop and (self._preemption.save_is_due or (every and done % every == 0)):
            self.trainer.settle_last_step()
            with self.trainer.not_training():
                self.save()

    def on_phase_end(self, phase: Phase) -> None:
        state = self.trainer.train_state
        if self._config.keep_best and state.step == self.trainer.schedule.total_steps:
            # The end is evaluated after its checkpoint is saved, so that a run killed in between need not train again.
            self._evaluator.measure_for_checkpoint()
        self.save()

    def save(self) -> None:
        """Saves a checkpoint, unless the run saves none or its last gradient was not finite.

        Compares first what the ranks should hold alike, and raises TrainingError where they differ. Where the disk
        refuses, all ranks raise its TrainingError, or continue, as `checkpoint.on_error` says.
        """
        state, engine = self.trainer.train_state, self._context.engine
        # Weights whose gradient is not finite are nothing to roll back to.
        if not saves_checkpoints(self._config) or state.nonfinite_in_row:
            return
        with self._watchdog.suspended(f"after step {state.step}: saving a checkpoint"):
            if self._context.recipe.safety.compare_every_steps is not None:
                engine.check_replicas(f"after step {state.step}")
            stored = {
                "identity": self._context.identity,
                "train_state": asdict(state),
                "figures": self._evaluator.figures(),
            }
            self._write(state.step, stored)

    def _write(self, step: int, stored: Mapping[str, Any]) -> None:
        group, engine = self._context.group, self._context.engine
        weights, optimizer_state = engine.weights(), engine.optimizer_state()
        try:
            with group.raise_together():
                if group.is_main:
                    self._tracker.flush()  # a run that resumes here does not write the lines up to here again
                    storage.save(self._root, step, weights, optimizer_state, stored, self._config)
            self._tracker.log_artifact("checkpoint", self._root / folder_name(step), step)
        except TrainingError as error:
            if self._config.on_error == "stop":
                raise
            logger.info("%s; training continues (checkpoint.on_error), the next checkpoint is tried as planned", error)
        self._preemption.note_save()

    def on_divergence(self) -> bool:
        """Rolls back to the newest checkpoint; False where there is none, or the run has rolled back too often."""
        context, state = self._context, self.trainer.train_state
        if len(state.rollbacks) >= context.recipe.optimizer.max_rollbacks:
            return False
        back_to, lost_to = self.load_newest(), state.step + 1
        if back_to is None:
            return False
        phase = self.trainer.schedule.phase_at(state.step)
        context.engine.enter_phase(phase.name, phase.units)
        context.engine.train_mode()
        state.rollbacks.append([back_to, lost_to])
        context.cache.enter_phase(phase, state)
        state.nonfinite_in_row = 0
        self._tracker.log(lost_to, phase.name, {"safety/rolled_back_to": back_to})
        self._tracker.alert("Rolled back", f"after step {lost_to}, to the weights after step {back_to}", lost_to)
        logger.warning(
            "after step %s: the gradient was not finite %s times in a row; back to the weights after step %s, on with"
            " the samples of step %s",
            *(lost_to, context.recipe.optimizer.max_nonfinite_steps, back_to, lost_to + 1),
        )
        return True

    def load_newest(self) -> int | None:
        """Loads weights and optimizer state of the newest checkpoint; returns its step, or None without one.

        A phase is entered next. Raises TrainingError, the same on every rank, for weights that are not finite.
        """
        group, engine = self._context.group, self._context.engine
        found = storage.newest_valid(self._root)[0] if group.is_main else None
        found = group.all_gather(found)[0]
        if found is None:
            return None
        with group.raise_together():
            tensors = storage.load(found, engine.parameter_templates)
            if fault := find_nonfinite(tensors[0].items()):
                raise TrainingError(f"the gradient is not finite, and neither is {found.folder}: {fault}")
        engine.load(*tensors)
        return found.step
