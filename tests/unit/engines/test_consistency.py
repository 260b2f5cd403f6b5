"""What the check of the optimizer at a phase boundary reports; tests/distributed has real engines that need it."""

from pathlib import Path

import pytest
import torch

from mtl_dist.engines.base import Engine
from mtl_dist.engines.consistency import check_optimizer
from mtl_dist.errors import TrainingError
from mtl_dist.train_state import TrainState
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.utils.in_process import setup_here
from tests.utils.tiny import tiny_recipe

BIAS = "heads.mood.3.bias"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """After a step of the first phase, in which the heads train."""
    setup = setup_here(tiny_recipe(tmp_path))
    phase = setup.rates.schedule.phases[0]
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    LayerwiseLearningRateTrainer(setup, TrainState()).training_step(0)
    return setup.engine


def test_the_optimizer_of_the_phase_passes(engine: Engine) -> None:
    check_optimizer(engine, "now", engine.local_optimizer_state_digests())


def test_a_trainable_parameter_that_the_optimizer_lacks_is_named(engine: Engine) -> None:
    bias = dict(engine.model.named_parameters())[BIAS]
    for group in engine.optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if parameter is not bias]
    with pytest.raises(TrainingError, match=f"^now: rank 0: {BIAS} is to train, and the optimizer does not have it$"):
        check_optimizer(engine, "now", engine.local_optimizer_state_digests())


@pytest.mark.parametrize("key", ["step", "exp_avg", "exp_avg_sq", None])
def test_optimizer_state_that_has_changed_is_named(engine: Engine, key: str | None) -> None:
    before = engine.local_optimizer_state_digests()
    state = engine.optimizer.state[dict(engine.model.named_parameters())[BIAS]]
    if key is None:
        state.clear()
    else:
        state[key] = torch.full_like(state[key], 7.0)
    with pytest.raises(TrainingError, match=f"^now: rank 0: the optimizer state of {BIAS} is not the one from before$"):
        check_optimizer(engine, "now", before)
