"""Learning rates as a pure function of the step: layer-wise decay, run schedule and warm-up after unfreezing."""

import math

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.schedule.phases import Schedule


class LearningRates:
    """Learning rate of each unit at each step of the planned run; early stopping of a phase changes no other phase's.

    A rate is the product of `lr`, the unit's factor, the run's schedule and the warm-up after unfreezing. The factor is
    `head_lr_multiplier` for heads; for other units it is `block_lr_decay` to the power of the distance from the top
    block (layer-wise decay as in ULMFiT, Howard and Ruder 2018). The schedule is that of
    `transformers.get_linear_schedule_with_warmup`, or of its cosine or constant counterpart.
    """

    def __init__(self, config: OptimizerConfig, schedule: Schedule, num_blocks: int) -> None:
        self.config = config
        self.schedule = schedule
        self.num_blocks = num_blocks

    def at(self, step: int) -> dict[str, float]:
        """Learning rate of each trainable unit at `step` of the planned run, from 0 (see `Schedule.planned`)."""
        phase = self.schedule.phase_at(step)
        rate = self.config.lr * self._run_factor(step)
        warmup = min(1.0, (step - phase.start) / max(1, self.config.unfreeze_warmup_steps))
        warming = set(phase.unfrozen) if self.config.unfreeze_warmup_steps else set()
        return {unit: rate * self.unit_factor(unit) * (warmup if unit in warming else 1.0) for unit in phase.units}

    def unit_factor(self, unit: str) -> float:
        """A unit's factor: its rate as a multiple of `lr`, before schedule and warm-up."""
        if unit.startswith("heads."):
            return self.config.head_lr_multiplier
        depth = self.num_blocks if unit == "embeddings" else self.num_blocks - 1 - int(unit.removeprefix("blocks."))
        return self.config.block_lr_decay**depth

    def _run_factor(self, step: int) -> float:
        warmup = self.config.warmup_steps
        if step < warmup:
            return step / warmup
        if self.config.schedule == "constant":
            return 1.0
        done = (step - warmup) / max(1, self.schedule.total_steps - warmup)
        return 1.0 - done if self.config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
