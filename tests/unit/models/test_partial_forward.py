"""Partial forward passes against whole ones, for every kind of encoder."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from mtl_dist.models.multitask import MultitaskTransformer, PrefixState, SentenceTransformer
from tests.utils.tiny import KINDS, tiny_config

LAYERS = 5
CASES = [*((kind, {}) for kind in KINDS), ("deberta-v2", {"conv_kernel_size": 3})]


def model_of(kind: str, special: dict[str, int], pooling: str = "mean") -> MultitaskTransformer:
    torch.manual_seed(3)
    config = AutoConfig.for_model(kind, **tiny_config(kind, layers=LAYERS), **special)
    encoder = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return MultitaskTransformer(SentenceTransformer(encoder, pooling), {"a": ("x", "y"), "b": ("x", "y", "z")})


def texts() -> tuple[Tensor, Tensor]:
    """Token ids and mask of four texts of different lengths."""
    ids = torch.randint(5, 50, (4, 12), generator=torch.Generator().manual_seed(5))
    mask = (torch.arange(12) < torch.tensor([12, 7, 9, 1])[:, None]).long()
    return torch.where(mask.bool(), ids, 1), mask


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
@pytest.mark.parametrize(("kind", "special"), CASES)
def test_the_two_parts_equal_the_whole_forward_pass(kind: str, special: dict[str, int], pooling: str) -> None:
    model = model_of(kind, special, pooling).eval()
    ids, mask = texts()
    depths = list(range(1, LAYERS + 1))
    names = list(dict(model.named_parameters()))
    with torch.no_grad():
        whole = model(ids, mask, "b")
        together = model.run_prefix(depths, ids, mask)
        for depth in depths:
            alone = model.run_prefix([depth], ids, mask)[depth]
            assert torch.equal(alone, together[depth])
            assert torch.equal(model(ids, mask, "b", prefix=PrefixState(depth, alone)), whole)
    assert list(dict(model.named_parameters())) == names
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_states_of_padding_do_not_matter() -> None:
    """The activation cache stores states without padding and pads them with zeros."""
    model = model_of("bert", {}).eval()
    ids, mask = texts()
    with torch.no_grad():
        states = model.run_prefix([2], ids, mask)[2]
        padded = states * mask.unsqueeze(-1)
        assert not torch.equal(padded, states)
        assert torch.equal(
            model(ids, mask, "a", prefix=PrefixState(2, padded)), model(ids, mask, "a", prefix=PrefixState(2, states))
        )


def test_gradients_from_a_depth_on_equal_those_of_the_whole_forward_pass() -> None:
    """Blocks before that depth have none."""
    model = model_of("bert", {}).eval()
    ids, mask = texts()
    model(ids, mask, "a").logsumexp(-1).sum().backward()
    whole = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    model(ids, mask, "a", prefix=PrefixState(3, model.run_prefix([3], ids, mask)[3])).logsumexp(-1).sum().backward()
    above = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any(".layer.3." in name for name in above)
    assert not any(".layer.2." in name or "embeddings" in name for name in above)
    for name, gradient in above.items():
        assert torch.equal(gradient, whole[name])


def test_blocks_outside_the_part_are_not_run(tmp_path: Path) -> None:
    model = model_of("bert", {}).eval()
    ids, mask = texts()
    ran: list[int] = []
    blocks = model.sentence_transformer.encoder.get_submodule("encoder.layer")
    for index, block in enumerate(blocks.children()):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.run_prefix([1, 3], ids, mask)
    assert ran == [0, 1, 2]
    ran.clear()
    model(ids, mask, "a", prefix=PrefixState(3, torch.zeros(4, 12, 16)))
    assert ran == [3, 4]
