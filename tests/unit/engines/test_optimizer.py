"""Learning rates against transformers' schedulers, AdamW against its formula, and what a group holds."""

import math
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.engines.optimizer import ParameterGroups, build_optimizer, set_rates
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.phases import Phase, Schedule
from tests.utils.tiny import KINDS, MOODS, TOPICS, tiny_encoder

TOTAL = 15
UNITS = ("embeddings", "blocks.0", "blocks.1", "blocks.2", "heads.a", "heads.b")
ONE_PHASE = Schedule((Phase("all", 0, TOTAL, UNITS, ()),))


@pytest.mark.parametrize("warmup", [0, 1, 4, TOTAL, TOTAL + 5])
@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_rates_are_those_of_transformers(name: Literal["linear", "cosine", "constant"], warmup: int) -> None:
    """Times 5 for heads, times a power of the decay below the top block."""
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


def test_the_seeds_rates() -> None:
    """The defaults: 2e-5 for the encoder and five times as much for heads, after 500 steps."""
    schedule = Schedule((Phase("all", 0, 1000, UNITS, ()),))
    rates = LearningRates(OptimizerConfig(), schedule, num_blocks=3)
    assert rates.at(0) == dict.fromkeys(UNITS, 0.0)
    assert rates.at(500) == pytest.approx({unit: 1e-4 if "heads" in unit else 2e-5 for unit in UNITS}, rel=1e-12)


def test_what_has_thawed_warms_up_again_and_nothing_else() -> None:
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


def test_a_thaw_within_the_runs_warm_up_rises_by_both() -> None:
    phases = (Phase("heads", 0, 2, ("heads.a",), ()), Phase("top", 2, 6, ("blocks.2",), ("blocks.2",)))
    config = OptimizerConfig(lr=1.0, schedule="constant", warmup_steps=8, unfreeze_warmup_steps=2)
    rates = LearningRates(config, Schedule(phases), num_blocks=3)
    assert [rates.at(step)["blocks.2"] for step in range(2, 6)] == [0.0, 3 / 8 * 1 / 2, 4 / 8, 5 / 8]


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_a_phase_cut_short_leaves_the_rates_of_the_others_as_they_were(
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
    cut = Schedule(phases).with_early_stops({"heads": 2, "top": 6})
    for phase, length in zip(cut.phases, (2, 4, 6), strict=True):
        now = [rates.at(cut.planned(step)) for step in range(phase.start, phase.stop)]
        assert now == planned[phase.name][:length]


@pytest.mark.parametrize("kind", KINDS)
def test_groups_hold_every_parameter_once_and_only_matrices_decay(tmp_path: Path, kind: str) -> None:
    encoder = AutoModel.from_pretrained(tiny_encoder(tmp_path, kind, layers=2))
    model = MultitaskTransformer(SentenceTransformer(encoder), {"topic": TOPICS, "mood": MOODS})
    optimizer = build_optimizer(model, model.unit_parameters(), OptimizerConfig(weight_decay=0.03))
    names = {parameter: name for name, parameter in model.named_parameters()}
    held = Counter(parameter for group in optimizer.param_groups for parameter in group["params"])
    assert held == Counter(model.parameters())
    for group in optimizer.param_groups:
        assert {names[parameter] for parameter in group["params"]} <= set(model.unit_parameters()[group["unit"]])
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.03 if parameter.ndim > 1 else 0.0)
            if names[parameter].endswith("bias"):
                assert group["weight_decay"] == 0.0
    in_heads = [names[p] for group in optimizer.param_groups if group["unit"] == "heads.mood" for p in group["params"]]
    assert sorted(in_heads) == [f"heads.mood.{layer}.{part}" for layer in (0, 3) for part in ("bias", "weight")]


def test_each_group_gets_the_rate_of_its_unit_and_frozen_ones_none() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    units = {unit: [f"{unit}.weight", f"{unit}.bias"] for unit in ("a", "b")}
    optimizer = build_optimizer(model, units, OptimizerConfig())
    set_rates(optimizer, {"b": 0.5})
    assert [(group["unit"], group["lr"]) for group in optimizer.param_groups] == [
        ("a", 0),
        ("a", 0),
        ("b", 0.5),
        ("b", 0.5),
    ]


def test_units_of_one_rate_are_joined_and_get_the_bits_of_separate_groups() -> None:
    units = {unit: [f"{unit}.weight", f"{unit}.bias"] for unit in ("a", "b", "c")}
    of_steps = [
        {"a": 0.1, "b": 0.1},  # c is frozen
        {"a": 0.1, "b": 0.2},
        {"a": 0.3, "b": 0.3},
    ]

    def trained(join: bool) -> tuple[list[torch.Tensor], list[int]]:
        torch.manual_seed(0)
        model = nn.ModuleDict({unit: nn.Linear(5, 3) for unit in units})
        optimizer = build_optimizer(model, units, OptimizerConfig(weight_decay=0.1))
        groups = ParameterGroups(optimizer)
        groups.select(("a", "b"))
        calls = []
        for rates in of_steps:
            for parameter in groups.parameters():
                parameter.grad = torch.randn_like(parameter)
            if join:
                groups.set_rates(rates)
            else:
                set_rates(optimizer, rates)
            calls.append(len(optimizer.param_groups))
            optimizer.step()
            optimizer.zero_grad()
        states = [optimizer.state[parameter] for parameter in groups.parameters()]
        return [*model.parameters(), *(value for state in states for value in state.values())], calls

    (joined, few), (separate, many) = trained(join=True), trained(join=False)
    assert (few, many) == ([2, 4, 2], [4, 4, 4])
    assert len(joined) == len(separate) == 6 + 4 * 3
    assert all(torch.equal(one, other) for one, other in zip(joined, separate, strict=True))


class Pair(nn.Module):
    """A matrix and a bias, in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))


def test_a_step_is_adamws() -> None:
    """Loshchilov and Hutter 2019, with the bias correction of Adam; the bias does not decay."""
    config = OptimizerConfig(weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-3)
    model = Pair()
    optimizer = build_optimizer(model, {"unit": ["weight", "bias"]}, config)
    expected = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    first, second = ({name: np.zeros_like(value) for name, value in expected.items()} for _ in range(2))
    generator = np.random.default_rng(0)
    for step, rate in enumerate([0.3, 0.1, 0.2], start=1):
        for name, parameter in model.named_parameters():
            gradient = generator.normal(size=parameter.shape)
            parameter.grad = torch.from_numpy(gradient.copy())
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            expected[name] *= 1 - rate * (0.1 if name == "weight" else 0.0)
            corrected = np.sqrt(second[name] / (1 - 0.95**step)) + 1e-3
            expected[name] -= rate * first[name] / (1 - 0.8**step) / corrected
        set_rates(optimizer, {"unit": rate})
        optimizer.step()
        for name, parameter in model.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=1e-12)


def test_a_parameter_without_gradient_is_left_alone_by_decay_and_momentum() -> None:
    model = Pair()
    optimizer = build_optimizer(model, {"unit": ["weight", "bias"]}, OptimizerConfig(weight_decay=0.5))
    set_rates(optimizer, {"unit": 0.1})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    model.weight.grad = None
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    moments = {key: value.clone() for key, value in optimizer.state[model.weight].items()}
    assert moments["exp_avg"].any()
    for _ in range(3):
        optimizer.step()
    assert torch.equal(model.weight, weight)
    assert all(torch.equal(optimizer.state[model.weight][key], value) for key, value in moments.items())
    assert not torch.equal(model.bias, bias)
    assert math.isfinite(model.bias.sum().item())
