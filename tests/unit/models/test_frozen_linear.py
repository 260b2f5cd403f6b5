"""FrozenLinear, which caches the cast of its weight, against `nn.Linear`."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.zero import ZeroRedundancy
from mtl_dist.models import frozen_linear
from mtl_dist.models.encoder import load_encoder_config
from mtl_dist.models.frozen_linear import FrozenLinear, cache_frozen_casts
from mtl_dist.training.build import build_model
from tests.utils.in_process import accelerator_here, setup_here
from tests.utils.tiny import tiny_recipe

SHAPES = [
    ((7, 24), 24, 40),
    ((24,), 24, 40),
    ((0, 24), 24, 40),
    ((3, 5, 24), 24, 40),
    ((1, 24), 24, 1),
    ((32, 17, 384), 384, 1536),
    ((9, 1536), 1536, 384),
]


def layers(into: int, out: int, bias: bool = True) -> tuple[nn.Linear, FrozenLinear]:
    """A frozen `nn.Linear`, and the same layer as a FrozenLinear."""
    torch.manual_seed(0)
    plain = nn.Linear(into, out, bias=bias).requires_grad_(False)
    model = nn.Sequential(copy.deepcopy(plain))
    cache_frozen_casts(model)
    (caching,) = model.children()
    assert isinstance(caching, FrozenLinear)
    return plain, caching


def under_autocast(layer: nn.Module, values: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return layer(values)


def same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)


def test_float64_is_not_cast() -> None:
    """As under torch's own autocast."""
    plain, caching = (layer.double() for layer in layers(24, 40))
    values = torch.randn(3, 24, dtype=torch.float64)
    assert under_autocast(caching, values).dtype == torch.float64
    assert same(under_autocast(caching, values), under_autocast(plain, values))


@pytest.mark.parametrize("can_pack", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "into", "out"), SHAPES)
def test_results_have_the_same_bits(
    shape: tuple[int, ...], into: int, out: int, bias: bool, can_pack: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without oneDNN's packed layout, with and without autocast."""
    if not can_pack:
        monkeypatch.setattr(frozen_linear, "_can_pack", lambda: False)
    plain, caching = layers(into, out, bias)
    for _ in range(2):
        values = torch.randn(shape)
        for given in (values, values.bfloat16()):
            assert same(under_autocast(caching, given), under_autocast(plain, given))
        assert same(caching(values), plain(values))


def test_the_weight_is_cast_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, caching = layers(24, 40)
    under_autocast(caching, torch.randn(3, 24))
    cached = caching._cache.weight
    assert cached is not None
    under_autocast(caching, torch.randn(5, 24))
    assert caching._cache.weight is cached


def test_a_changed_weight_is_cast_again() -> None:
    """Whether it was copied into the parameter, as from a checkpoint, or assigned to its data."""
    plain, caching = layers(24, 40)
    values = torch.randn(3, 24)
    for name in ("weight", "bias"):
        before = under_autocast(caching, values)
        for layer in (plain, caching):
            with torch.no_grad():
                layer.get_parameter(name).add_(1)
        assert same(under_autocast(caching, values), under_autocast(plain, values))
        assert not torch.equal(under_autocast(caching, values), before)
    for layer in (plain, caching):
        layer.weight.data = torch.full_like(layer.weight, 0.5)
    assert same(under_autocast(caching, values), under_autocast(plain, values))


def test_an_unfrozen_layer_caches_nothing_and_trains_as_before() -> None:
    """Unfrozen, frozen and unfrozen again."""
    plain, caching = layers(24, 40)
    values = torch.randn(6, 24)
    under_autocast(caching, values)
    for trains in (True, False, True):
        results = []
        for layer in (plain, caching):
            layer.requires_grad_(trains)
            out = under_autocast(layer, values)
            if trains:
                out.float().square().sum().backward()
                assert layer.weight.grad is not None
                with torch.no_grad():
                    layer.weight.sub_(0.01 * layer.weight.grad)
                layer.zero_grad()
            results.append(out.detach())
        assert same(*results)
        assert (caching._cache.weight is None) == trains


def test_gradients_flow_through_a_frozen_layer() -> None:
    """A frozen block may be above a trainable one."""
    plain, caching = layers(24, 40)
    gradients = []
    for layer in (plain, caching):
        values = torch.ones(4, 24, requires_grad=True)
        under_autocast(layer, values).float().square().sum().backward()
        assert values.grad is not None
        gradients.append(values.grad)
    assert same(*gradients)


def test_a_copy_has_a_cache_of_its_own() -> None:
    plain, caching = layers(24, 40)
    values = torch.randn(3, 24)
    under_autocast(caching, values)
    copied = copy.deepcopy(caching)
    assert copied._cache is not caching._cache
    with torch.no_grad():
        copied.weight.zero_()
    assert same(under_autocast(caching, values), under_autocast(plain, values))
    assert torch.equal(under_autocast(copied, values), caching.bias.bfloat16().expand(3, 40))
    assert list(copied.state_dict()) == ["weight", "bias"]


def test_only_plain_linear_layers_are_replaced() -> None:
    class Own(nn.Linear):
        """A subclass, as libraries define them."""

    model = nn.ModuleDict({"own": Own(2, 2), "plain": nn.Linear(2, 2), "norm": nn.LayerNorm(2)})
    cache_frozen_casts(model)
    assert [type(module) for module in model.values()] == [Own, FrozenLinear, nn.LayerNorm]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sharded_weights_are_not_cached(tmp_path: Path, stage: int) -> None:
    """ZeRO stage 3 would save no memory otherwise."""
    setup = setup_here(tiny_recipe(tmp_path))
    model = build_model(setup.recipe, load_encoder_config(setup.recipe.model), setup.data)
    engine = ZeroRedundancy(accelerator_here(), ProcessGroup(), model, setup.recipe.optimizer, stage)
    assert any(isinstance(module, FrozenLinear) for module in engine.model.modules()) == (stage < 3)
