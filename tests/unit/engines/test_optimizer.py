"""AdamW against its formula, and the members of parameter groups."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel

from mtl_dist.config.recipe import OptimizerConfig
from mtl_dist.engines.optimizer import ParameterGroups, build_optimizer, set_rates
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from tests.utils.tiny import KINDS, MOODS, TOPICS, tiny_encoder


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


def test_each_group_gets_the_rate_of_its_unit_and_frozen_groups_get_0() -> None:
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


def test_groups_of_equal_rate_are_joined_and_updated_to_the_same_bits() -> None:
    units = {unit: [f"{unit}.weight", f"{unit}.bias"] for unit in ("a", "b", "c")}
    rates_of_steps = [
        {"a": 0.1, "b": 0.1},  # c is frozen
        {"a": 0.1, "b": 0.2},
        {"a": 0.3, "b": 0.3},
    ]

    def train(join: bool) -> tuple[list[torch.Tensor], list[int]]:
        torch.manual_seed(0)
        model = nn.ModuleDict({unit: nn.Linear(5, 3) for unit in units})
        optimizer = build_optimizer(model, units, OptimizerConfig(weight_decay=0.1))
        groups = ParameterGroups(optimizer)
        groups.select(("a", "b"))
        num_groups = []
        for rates in rates_of_steps:
            for parameter in groups.parameters():
                parameter.grad = torch.randn_like(parameter)
            if join:
                groups.set_rates(rates)
            else:
                set_rates(optimizer, rates)
            num_groups.append(len(optimizer.param_groups))
            optimizer.step()
            optimizer.zero_grad()
        states = [optimizer.state[parameter] for parameter in groups.parameters()]
        return [*model.parameters(), *(value for state in states for value in state.values())], num_groups

    (joined, few), (separate, many) = train(join=True), train(join=False)
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


def test_a_step_follows_adamws_formula() -> None:
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


def test_a_parameter_without_gradient_is_not_changed_by_decay_or_momentum() -> None:
    model = Pair()
    optimizer = build_optimizer(model, {"unit": ["weight", "bias"]}, OptimizerConfig(weight_decay=0.5))
    set_rates(optimizer, {"unit": 0.1})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    model.weight.grad = None
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    state = {key: value.clone() for key, value in optimizer.state[model.weight].items()}
    assert state["exp_avg"].any()
    for _ in range(3):
        optimizer.step()
    assert torch.equal(model.weight, weight)
    assert all(torch.equal(optimizer.state[model.weight][key], value) for key, value in state.items())
    assert not torch.equal(model.bias, bias)
    assert math.isfinite(model.bias.sum().item())
