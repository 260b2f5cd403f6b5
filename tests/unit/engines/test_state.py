"""State that an engine gathers and loads; training is tested with the trainer."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.config.load import parse
from mtl_dist.engines.base import Engine
from mtl_dist.train_state import TrainState
from mtl_dist.training.context import RunContext
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.utils.checkpoints import state_at
from tests.utils.in_process import setup_here
from tests.utils.tiny import tiny_recipe_file


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe_file(tmp_path_factory.mktemp("engine"))


def fresh(recipe_file: Path, *overrides: str) -> RunContext:
    arguments = ["--config", str(recipe_file), "model.dropout=0.1", "optimizer.warmup_steps=0", *overrides]
    return setup_here(parse(arguments).recipe)


def train(setup: RunContext, phase: int, steps: int) -> None:
    """Trains the first steps of a phase."""
    entered = setup.rates.schedule.phases[phase]
    setup.engine.enter_phase(entered.name, entered.units)
    setup.engine.train_mode()
    trainer = LayerwiseLearningRateTrainer(setup, TrainState())
    for step in range(entered.start, entered.start + steps):
        trainer.training_step(step)


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, bytes]]:
    return {name: (value.dtype, value.numpy().tobytes()) for name, value in tensors.items()}


def state_of(engine: Engine) -> list[dict[str, tuple[torch.dtype, bytes]]]:
    return [bits(engine.weights()), bits(engine.optimizer_state())]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_checkpoint_restores_weights_and_optimizer_state_bit_by_bit(
    tmp_path: Path, recipe_file: Path, dtype: str
) -> None:
    """Also if the engine that loads it has optimizer state already, which must be dropped."""
    first = fresh(recipe_file, f"model.dtype={dtype}")
    train(first, 1, 2)
    expected = state_of(first.engine)
    trained = {name for name, parameter in first.engine.model.named_parameters() if parameter.requires_grad}
    assert {name.split("/")[1] for name in expected[1]} == trained
    assert len(expected[1]) == 3 * len(trained) < 3 * len(expected[0])
    config = first.recipe.checkpoint
    checkpoint.save(tmp_path, 2, first.engine.weights(), first.engine.optimizer_state(), state_at(2), config)
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    second = fresh(recipe_file, f"model.dtype={dtype}", "seed=43")
    train(second, 2, 1)
    second.engine.load(*checkpoint.load(found, second.engine.parameter_templates))
    assert state_of(second.engine) == expected


def test_training_continues_equally_in_an_engine_that_loaded_the_state(recipe_file: Path) -> None:
    first, second = fresh(recipe_file), fresh(recipe_file)
    train(first, 0, 3)
    copies = [
        {name: value.clone() for name, value in part.items()}
        for part in (first.engine.weights(), first.engine.optimizer_state())
    ]
    second.engine.load(*copies)
    for setup in (first, second):
        train(setup, 1, 2)
    assert state_of(second.engine) == state_of(first.engine)


def test_digests_depend_on_every_parameter(recipe_file: Path) -> None:
    engine = fresh(recipe_file).engine
    before = engine.parameter_digests()
    assert list(before) == sorted(name for name, _ in engine.model.named_parameters())
    with torch.no_grad():
        dict(engine.model.named_parameters())["heads.mood.3.bias"][1] += 1e-6
    after = engine.parameter_digests()
    assert [name for name in before if after[name] != before[name]] == ["heads.mood.3.bias"]
