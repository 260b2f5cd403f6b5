"""Preemption: the ranks agree, between two steps, on whether to stop and whether a checkpoint is due by time."""

import time

from mtl_dist.config.recipe import CheckpointConfig
from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.errors import Interrupted
from mtl_dist.schedule.phases import Phase
from mtl_dist.training.callbacks.base import Callback
from mtl_dist.training.context import RunContext

_SAVE, _STOP = 1, 2
"""Wishes of a rank between two steps; the greatest one of all ranks is carried out by all."""


def saves_checkpoints(config: CheckpointConfig) -> bool:
    """Returns whether a run saves any checkpoint."""
    return config.every_steps is not None or config.every_minutes is not None


class Preemption(Callback):
    """Agrees on signals that any rank has received, and on checkpoints by time; `Checkpointer` saves them."""

    def __init__(self, context: RunContext, stop_request: StopRequest) -> None:
        self._context = context
        self._config = context.recipe.checkpoint
        self._stop_request = stop_request
        self._wishes = context.group.async_max()
        self._last_save = time.monotonic()
        self.save_is_due = False
        """Whether the ranks have agreed, at this step boundary, that a checkpoint is due by time."""

    def on_step_boundary(self, phase: Phase) -> None:
        self.save_is_due = self.poll()

    def poll(self) -> bool:
        """Returns whether a checkpoint is due by time; every rank calls this the same number of times.

        Answers come one call late, so that nothing waits for them: a wish is repeated until it is carried out. Raises
        Interrupted on every rank where any of them was asked to stop.
        """
        wish = _STOP if self._stop_request.made else _SAVE if self._is_due_by_time() else 0
        outcome = self._wishes.reduce(wish)
        if outcome == _STOP:
            signals = [one for one in self._context.group.all_gather(self._stop_request.signal) if one is not None]
            state = self.trainer.train_state
            done, total = state.step, self._context.schedule_of(state).total_steps
            resumes = saves_checkpoints(self._config)
            ending = "resumes from there" if resumes else "starts anew: checkpoint.every_* are null"
            raise Interrupted(f"stopped by {signals[0].name} after step {done} of {total}; the same command {ending}")
        return outcome == _SAVE

    def note_save(self) -> None:
        """Starts the time to the next checkpoint anew."""
        self._last_save = time.monotonic()

    def _is_due_by_time(self) -> bool:
        """Whether the last checkpoint is old, by the main process's clock, which differs from those of other ranks."""
        minutes = self._config.every_minutes
        return self._context.group.is_main and minutes is not None and time.monotonic() - self._last_save > 60 * minutes
