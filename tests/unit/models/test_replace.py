"""Replaced modules: found at every place that registers them, with the parameters, names and order of the old ones."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from mtl_dist.models.dropout import FastDropout, use_fast_dropout
from mtl_dist.models.frozen_linear import FrozenLinear, cache_frozen_casts
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from mtl_dist.models.replace import replace_modules
from tests.utils.tiny import KINDS, tiny_config


class Scaled(nn.Linear):
    """A replacement with a parameter of its own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features)
        self.weight, self.bias = layer.weight, layer.bias


def scale(module: nn.Module) -> Scaled | None:
    return Scaled(module) if type(module) is nn.Linear else None


def test_a_module_with_several_parents_is_replaced_by_one_at_all_of_them() -> None:
    shared, alone = nn.Linear(2, 2), nn.Linear(2, 2)
    model = nn.ModuleDict({"a": nn.Sequential(shared, alone, shared), "b": shared, "c": nn.ModuleList([shared])})
    converted: list[nn.Module] = []

    def convert(module: nn.Module) -> nn.Module | None:
        converted.append(module)
        return scale(module)

    replace_modules(model, convert)
    places = [model["a"].get_submodule("0"), model["a"].get_submodule("2"), model["b"], model["c"].get_submodule("0")]
    assert all(type(place) is Scaled and place is places[0] for place in places)
    assert model["a"].get_submodule("1") is not places[0]
    assert len(converted) == len(set(converted)) == 5  # each module once, the root included
    assert places[0].get_parameter("weight") is shared.weight


def test_children_that_are_none_stay() -> None:
    model = nn.Module()
    model.register_module("pooler", None)
    replace_modules(model, scale)
    assert model._modules == {"pooler": None}


def test_a_root_that_would_be_replaced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Linear is replaced in a module that holds it, not by itself$"):
        replace_modules(nn.Linear(2, 2), scale)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_keep_identity_names_and_order(kind: str) -> None:
    config = AutoConfig.for_model(kind, **tiny_config(kind))
    model = MultitaskTransformer(SentenceTransformer(AutoModel.from_config(config)), {"a": ("x", "y")})
    parameters, buffers = list(model.named_parameters()), list(model.named_buffers())
    state, modules = list(model.state_dict()), dict(model.named_modules())
    use_fast_dropout(model)
    cache_frozen_casts(model)
    assert any(isinstance(module, FrozenLinear) for module in model.modules())
    assert any(isinstance(module, FastDropout) for module in model.modules())
    assert not any(type(module) in (nn.Linear, nn.Dropout) for module in model.modules())
    for before, after in ((parameters, list(model.named_parameters())), (buffers, list(model.named_buffers()))):
        assert [name for name, _ in before] == [name for name, _ in after]
        assert all(old is new for (_, old), (_, new) in zip(before, after, strict=True))
    assert list(model.state_dict()) == state
    assert list(dict(model.named_modules())) == list(modules)


def test_mode_settings_and_hooks_are_kept() -> None:
    layer, dropout = nn.Linear(3, 2).eval().requires_grad_(False), nn.Dropout(0.3, inplace=True).eval()
    model = nn.Sequential(layer, dropout)
    seen: list[str] = []
    handle = layer.register_forward_hook(lambda *_: seen.append("linear"))
    dropout.register_forward_pre_hook(lambda *_: seen.append("dropout"))
    cache_frozen_casts(model)
    use_fast_dropout(model)
    new_layer, new_dropout = model.children()
    assert isinstance(new_layer, FrozenLinear)
    assert isinstance(new_dropout, FastDropout)
    assert (new_layer.in_features, new_layer.out_features) == (3, 2)
    assert (new_dropout.p, new_dropout.inplace) == (0.3, True)
    assert not any(module.training for module in model.children())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model(torch.ones(1, 3))
    handle.remove()
    model(torch.ones(1, 3))
    assert seen == ["linear", "dropout", "dropout"]


def test_what_is_registered_later_belongs_to_one_of_them() -> None:
    layer = nn.Linear(3, 2)
    model = nn.Sequential(layer)
    cache_frozen_casts(model)
    (new,) = model.children()
    new.register_buffer("scale", torch.ones(1))
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert list(copy.deepcopy(new).state_dict()) == ["weight", "bias", "scale"]
