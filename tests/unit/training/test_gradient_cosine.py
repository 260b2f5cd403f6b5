"""Logged gradient norms and cosines against plain autograd; logging them does not change a bit of the run."""

import copy
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mtl_dist.config.recipe import Recipe
from mtl_dist.engines.ddp import DataParallel
from mtl_dist.train_state import TrainState
from mtl_dist.training.context import RunContext
from mtl_dist.training.gradient_cosine import uppermost_unit
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.utils.in_process import metrics_of, run_here, setup_here, summary_of
from tests.utils.tiny import tiny_recipe

TASKS = ("topic", "mood")
PHASES = {0: None, 1: "blocks.3", 2: "blocks.3"}
"""Uppermost trainable unit of the encoder in each phase."""


class LoggingTrainer(LayerwiseLearningRateTrainer):
    """Trainer that logs every step."""

    def is_logged(self, done: int) -> bool:
        return True


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    return tiny_recipe(
        folder, "model.dtype=float64", "batch_size=13", "tracking.gradient_cosine_every_steps=1", *overrides
    )


def first_step(setup: RunContext, phase: int) -> StepResult:
    """Carries out the first step of a phase and returns its result."""
    one = setup.rates.schedule.phases[phase]
    setup.engine.enter_phase(one.name, one.units)
    setup.engine.train_mode()
    return LoggingTrainer(setup, TrainState()).training_step(one.start)


def plain_gradients(setup: RunContext, step: int) -> list[dict[str, Tensor]]:
    """Returns the gradients of each task's mean loss in a global batch by parameter, from a copy of the model."""
    model, batch = copy.deepcopy(setup.engine.model), setup.sampler.batch(step)
    inputs = setup.data.training_batch(batch.pool_ids, batch.rows)
    found = []
    for task in TASKS:
        model.requires_grad_(True).zero_grad()
        logits = model(inputs.input_ids, inputs.attention_mask, inputs.rows, inputs.token_type_ids)
        cross_entropy(logits[task], inputs.labels[task]).backward()
        found.append({name: one.grad for name, one in model.named_parameters() if one.grad is not None})
    return found


def flat(gradients: dict[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.cat([gradients[name].flatten() for name in names if name in gradients])


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("phase", PHASES)
def test_cosine_and_norms_equal_those_of_plain_autograd(tmp_path: Path, phase: int, accumulation: int) -> None:
    setup = setup_here(recipe_of(tmp_path, "tasks.mood.weight=2", "optimizer.max_grad_norm=0.01"), accumulation)
    step = setup.rates.schedule.phases[phase].start
    topic, mood = plain_gradients(setup, step)
    result = first_step(setup, phase)
    names = setup.engine.model.unit_parameters()
    if (unit := PHASES[phase]) is None:
        assert result.cosines == {}
    else:
        one, other = flat(topic, names[unit]), flat(mood, names[unit])
        expected = float(one @ other / (one.norm() * other.norm()))
        assert result.cosines == {"topic/mood": pytest.approx(expected, rel=1e-9)}
        assert abs(expected) < 0.99
    units = setup.rates.schedule.phases[phase].units
    zero = torch.zeros(())
    sums = {name: topic.get(name, zero) + 2 * mood.get(name, zero) for of_unit in names.values() for name in of_unit}
    assert result.unit_norms == {unit: pytest.approx(float(flat(sums, names[unit]).norm()), rel=1e-9) for unit in units}
    assert math.hypot(*result.unit_norms.values()) == pytest.approx(result.gradient_norm, rel=1e-12)
    assert result.gradient_norm > 0.1  # before clipping


def test_a_task_with_zero_gradient_has_no_cosine(tmp_path: Path) -> None:
    setup = setup_here(recipe_of(tmp_path))
    with torch.no_grad():
        dict(setup.engine.model.named_parameters())["heads.mood.3.weight"].zero_()
    assert first_step(setup, 1).cosines == {"topic/mood": pytest.approx(math.nan, nan_ok=True)}


def test_a_head_absent_from_the_batch_has_no_norm(tmp_path: Path) -> None:
    overrides = ("sampling.batches=one_task", "tracking.gradient_cosine_every_steps=null")
    result = first_step(setup_here(recipe_of(tmp_path, *overrides)), 1)
    heads = {unit for unit in result.unit_norms if unit.startswith("heads.")}
    assert heads == {f"heads.{TASKS[int(result.batch.pool_ids[0])]}"}


def test_norms_are_only_computed_for_logged_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[bool] = []
    norms = DataParallel._norms_by_unit

    def noted(self: DataParallel, absent: Sequence[str]) -> dict[str, float]:
        computed.append(True)
        return norms(self, absent)

    monkeypatch.setattr(DataParallel, "_norms_by_unit", noted)
    run_here(tiny_recipe(tmp_path, "tracking.log_every_steps=3"))
    logged = [line["step"] for line in metrics_of(tmp_path / "run") if "train/loss" in line]
    assert logged == [3, 4, 6, 8, 9, 12]
    assert len(computed) == len(logged)


def test_sampling_changes_no_bit_of_the_run(tmp_path: Path) -> None:
    """The run has dropout and gradient accumulation; steps whose cosine is computed are logged."""
    common = ("model.dropout=0.1", "model.encoder_dropout=0.1", "tracking.log_every_steps=4")
    run_here(tiny_recipe(tmp_path, *common), accumulation=2)
    sampled = ("tracking.gradient_cosine_every_steps=3", f"output_dir={tmp_path / 'sampled'}")
    run_here(tiny_recipe(tmp_path, *common, *sampled), accumulation=2)
    one, other = summary_of(tmp_path / "run"), summary_of(tmp_path / "sampled")
    assert one["state_sha256"] == other["state_sha256"]
    key = "optim/gradient_cosine/topic/mood"
    found = [line for line in metrics_of(tmp_path / "sampled") if key in line]
    assert [line["step"] for line in found] == [6, 9, 12]  # in step 3 only heads train
    assert all(-1 <= line[key] <= 1 for line in found)


def test_metrics_of_a_line_match_the_sampler_and_the_phase(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    run_here(recipe)
    setup = setup_here(recipe)
    lines: list[dict[str, Any]] = [line for line in metrics_of(tmp_path / "run") if "train/loss" in line]
    drawn = dict.fromkeys(TASKS, 0)
    parameters = [phase["trainable_parameters"] for phase in summary_of(tmp_path / "run")["phases"]]
    for line in lines:
        counts = setup.sampler.batch(line["step"] - 1).counts
        for task, count in zip(TASKS, counts.tolist(), strict=True):
            drawn[task] += count
            assert line[f"train/{task}/draws"] == drawn[task]
            assert line[f"train/{task}/passes"] == drawn[task] / 48
        assert line["phase"] == ("heads", "upper", "all")[line["phase/index"]]
        assert line["phase/trainable_parameters"] == parameters[line["phase/index"]]
    assert [line["phase/index"] for line in lines] == [0] * 4 + [1] * 4 + [2] * 4
    text = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    memory = [line["perf/memory_gb"] for line in map(json.loads, text.splitlines()) if "train/loss" in line]
    now = psutil.Process().memory_info().rss / 2**30
    assert memory == sorted(memory)
    assert 0.5 * now < memory[-1] < 100 * now


@pytest.mark.parametrize(
    ("units", "uppermost"),
    [
        (("heads.a", "heads.b"), None),
        (("embeddings", "heads.a"), "embeddings"),
        (("blocks.9", "blocks.10", "heads.a"), "blocks.10"),
    ],
)
def test_the_uppermost_unit_is_one_of_the_encoder(units: tuple[str, ...], uppermost: str | None) -> None:
    assert uppermost_unit(units) == uppermost
