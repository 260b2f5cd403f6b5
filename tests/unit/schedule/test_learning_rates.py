"""Learning rates against the schedulers of transformers."""

from typing import Literal

import pytest
import torch
from torch import nn
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.phases import Phase, Schedule

TOTAL = 15
UNITS = ("embeddings", "blocks.0", "blocks.1", "blocks.2", "heads.a", "heads.b")
ONE_PHASE = Schedule((Phase("all", 0, TOTAL, UNITS, ()),))


@pytest.mark.parametrize("warmup", [0, 1, 4, TOTAL, TOTAL + 5])
@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_rates_are_those_of_transformers(name: Literal["linear", "cosine", "constant"], warmup: int) -> None:
    """With a factor of 5 for heads, and a power of the decay below the top block."""
    config = OptimizerConfig(lr=3e-4, schedule=name, warmup_steps=warmup, block_lr_decay=0.8, head_lr_multiplier=5)
    rates = LearningRates(config, ONE_PHASE, num_blocks=3)
    factors = {
        "embeddings": 0.8**3,
        "blocks.0": 0.8**2,
        "blocks.1": 0.8,
        "blocks.2": 1.0,
        "heads.a": 5.0,
        "heads.b": 5.0,
    }
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = {
        "linear": lambda: get_linear_schedule_with_warmup(optimizer, warmup, TOTAL),
        "cosine": lambda: get_cosine_schedule_with_warmup(optimizer, warmup, TOTAL),
        "constant": lambda: get_constant_schedule_with_warmup(optimizer, warmup),
    }[name]()
    for step in range(TOTAL):
        [base] = scheduler.get_last_lr()
        assert rates.at(step) == pytest.approx({unit: base * factor for unit, factor in factors.items()}, rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_default_rates() -> None:
    """2e-5 for the encoder and five times as much for heads, after 500 steps."""
    schedule = Schedule((Phase("all", 0, 1000, UNITS, ()),))
    rates = LearningRates(OptimizerConfig(), schedule, num_blocks=3)
    assert rates.at(0) == dict.fromkeys(UNITS, 0.0)
    assert rates.at(500) == pytest.approx({unit: 1e-4 if "heads" in unit else 2e-5 for unit in UNITS}, rel=1e-12)


def test_only_unfrozen_units_warm_up_again() -> None:
    phases = (
        Phase("heads", 0, 4, ("heads.a",), ()),
        Phase("top", 4, 10, ("blocks.2", "heads.a"), ("blocks.2",)),
        Phase("both", 10, 12, ("blocks.1", "blocks.2", "heads.a"), ("blocks.1",)),
    )
    config = OptimizerConfig(lr=1.0, schedule="constant", warmup_steps=0, unfreeze_warmup_steps=4, head_lr_multiplier=2)
    rates = LearningRates(config, Schedule(phases), num_blocks=3)
    assert [rates.at(step) for step in range(12)] == [
        *[{"heads.a": 2.0}] * 4,
        *({"blocks.2": rise, "heads.a": 2.0} for rise in (0.0, 0.25, 0.5, 0.75, 1.0, 1.0)),
        *({"blocks.1": rise, "blocks.2": 1.0, "heads.a": 2.0} for rise in (0.0, 0.25)),
    ]


def test_both_warm_ups_apply_to_units_unfrozen_during_the_runs() -> None:
    phases = (Phase("heads", 0, 2, ("heads.a",), ()), Phase("top", 2, 6, ("blocks.2",), ("blocks.2",)))
    config = OptimizerConfig(lr=1.0, schedule="constant", warmup_steps=8, unfreeze_warmup_steps=2)
    rates = LearningRates(config, Schedule(phases), num_blocks=3)
    assert [rates.at(step)["blocks.2"] for step in range(2, 6)] == [0.0, 3 / 8 * 1 / 2, 4 / 8, 5 / 8]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_an_early_stop_changes_no_rate_of_other_phases(
    name: Literal["linear", "cosine", "constant"],
) -> None:
    phases = (
        Phase("heads", 0, 7, ("heads.a",), ()),
        Phase("top", 7, 12, ("blocks.2", "heads.a"), ("blocks.2",)),
        Phase("both", 12, 18, ("blocks.1", "blocks.2", "heads.a"), ("blocks.1",)),
    )
    config = OptimizerConfig(lr=1.0, schedule=name, warmup_steps=3, unfreeze_warmup_steps=3)
    rates = LearningRates(config, Schedule(phases), num_blocks=3)
    planned = {phase.name: [rates.at(step) for step in range(phase.start, phase.stop)] for phase in phases}
    stopped = Schedule(phases).with_early_stops({"heads": 2, "top": 6})
    for phase, length in zip(stopped.phases, (2, 4, 6), strict=True):
        now = [rates.at(stopped.planned(step)) for step in range(phase.start, phase.stop)]
        assert now == planned[phase.name][:length]
