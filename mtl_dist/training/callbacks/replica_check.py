"""The comparison of what every rank should hold alike, after every so many steps."""

from mtl_dist.schedule.phases import Phase
from mtl_dist.training.callbacks.base import Callback
from mtl_dist.training.context import RunContext


class ReplicaCheck(Callback):
    """Stops all ranks with one TrainingError where their parameters or optimizer state differ."""

    def __init__(self, context: RunContext) -> None:
        self._engine = context.engine
        self._every = context.recipe.safety.compare_every_steps

    def on_step_boundary(self, phase: Phase) -> None:
        done = self.trainer.train_state.step
        if self._every and done % self._every == 0:
            self._engine.check_replicas(f"after step {done}")
