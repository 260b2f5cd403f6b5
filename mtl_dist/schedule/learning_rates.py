"""Learning rates as a pure function of the step: layer-wise decay, run schedule and warm-up after unfreezing."""

import math

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.schedule.phases import Schedule


class LearningRates:
    """Learning rate of each unit at each step, as planned: a phase that ends early changes no other phase's rates.

    Base rate x unit factor x run schedule x thaw warm-up, where the unit factor is `head_lr_multiplier` for heads and
    `block_lr_decay` to the power of the distance from the top block below (layer-wise decay as in ULMFiT, Howard and
    Ruder 2018). The run schedule is that of `transformers.get_linear_schedule_with_warmup` and its cosine and
    constant fellows.
    """

    def __init__(self, config: OptimizerConfig, schedule: Schedule, num_blocks: int) -> None:
        self.config = config
        self.schedule = schedule
        self.num_blocks = num_blocks

    def at(self, step: int) -> dict[str, float]:
        """Rate of each trainable unit at `step`, counted from 0 over the planned run (`Schedule.planned`)."""
        phase = self.schedule.phase_at(step)
        rate = self.config.lr * self._run_factor(step)
        thaw = min(1.0, (step - phase.start) / max(1, self.config.unfreeze_warmup_steps))
        warming = set(phase.unfrozen) if self.config.unfreeze_warmup_steps else set()
        return {unit: rate * self.unit_factor(unit) * (thaw if unit in warming else 1.0) for unit in phase.units}

    def unit_factor(self, unit: str) -> float:
        """A unit's rate as a multiple of `lr`."""
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
