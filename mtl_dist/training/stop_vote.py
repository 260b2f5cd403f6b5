"""The ranks' agreement, between two steps, on whether to stop and whether to save a checkpoint."""

from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.errors import Interrupted
from mtl_dist.train_state import TrainState
from mtl_dist.training.context import RunContext

_SAVE, _STOP = 1, 2
"""What a rank can want between two steps; the greatest wish of all ranks is carried out by all."""


class StopVote:
    """Agrees on a signal that any rank has received. Every rank calls `poll` the same number of times."""

    def __init__(self, context: RunContext, state: TrainState, stop_request: StopRequest, resumable: bool) -> None:
        """`resumable`: whether the run saves checkpoints, for the message."""
        self._context = context
        self._state = state
        self._stop_request = stop_request
        self._resumable = resumable
        self._votes = context.group.async_max()

    def poll(self, wants_save: bool = False) -> bool:
        """Returns whether any rank wants to save; answers come one call late, so that nothing waits for them.

        Raises Interrupted on every rank where any of them was asked to stop.
        """
        outcome = self._votes.reduce(_STOP if self._stop_request.made else _SAVE if wants_save else 0)
        if outcome == _STOP:
            signals = [one for one in self._context.group.all_gather(self._stop_request.signal) if one is not None]
            done, total = self._state.step, self._context.schedule_of(self._state).total_steps
            ending = "resumes from there" if self._resumable else "starts anew: checkpoint.every_* are null"
            raise Interrupted(f"stopped by {signals[0].name} after step {done} of {total}; the same command {ending}")
        return outcome == _SAVE
