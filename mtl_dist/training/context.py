"""The parts of a run that training needs, put together before its first step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mtl_dist.activation_cache.cache import ActivationCache
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import DataBundle
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.base import Engine
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.phases import Schedule
from mtl_dist.schedule.sampler import TaskBalancedSampler
from mtl_dist.train_state import TrainState


@dataclass(frozen=True)
class RunContext:
    """Parts of a run that stay the same while it trains; its TrainState is what changes.

    The tracker is not among it: it is opened when the run is known to resume or to start anew, and callbacks hold it.
    """

    recipe: Recipe
    group: ProcessGroup
    engine: Engine
    data: DataBundle
    sampler: TaskBalancedSampler
    rates: LearningRates
    """Learning rates over the schedule as planned."""
    micro_steps: int
    """Forward and backward passes of a process per optimizer step."""
    cache: ActivationCache
    unit_sizes: Mapping[str, int]
    """Trainable parameters of each unit."""
    evaluation_split: str
    """Split that is measured after each phase, for early stopping and for the best checkpoint."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of recipe, data, sampler (`plan`) and schedule, for setup.json and the summary."""
    heartbeat: Callable[[str], None] = lambda place: None
    """Told the places that every rank comes by in a step, in the same order; see `distributed.watchdog`."""

    @property
    def identity(self) -> dict[str, Any]:
        """Recipe and data of the run, stored in checkpoints: a run with another identity does not resume from them."""
        return {**self.recipe.model_dump(), "data_sha256": self.data.digest}

    def draws_by_task(self, start: int, stop: int) -> dict[str, int]:
        """Number of rows drawn from each task's pool in steps `start` to `stop`, whether or not they have its label."""
        draws = self.sampler.draws(start, stop)
        return {task: draws[self.data.pool_of[task].name] for task in self.data.tasks}

    def schedule_of(self, state: TrainState) -> Schedule:
        """The phases with the ends that early stopping has given them, and those to come as planned."""
        return self.rates.schedule.with_early_stops(state.stops)
