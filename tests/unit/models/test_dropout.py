"""FastDropout: the statistics of its masks, their seed, and gradients."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from mtl_dist.models import dropout
from mtl_dist.models.attention import ATTENTION_NAME, use_fast_attention
from mtl_dist.models.dropout import FastDropout, fast_dropout, seed_dropout_masks, use_fast_dropout
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from tests.utils.tiny import KINDS, tiny_config

MANY = torch.ones(2_000_001)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_mean_is_preserved_and_elements_are_zero_or_scaled(p: float) -> None:
    seed_dropout_masks(1)
    result = fast_dropout(MANY, p)
    assert result.unique().tolist() == [0.0, pytest.approx(1 / (1 - p), rel=1e-3)]
    deviation = (p / (1 - p) / len(MANY)) ** 0.5  # of the mean
    assert abs(result.mean(dtype=torch.float64).item() - 1) < 5 * deviation


def test_masks_are_not_autocorrelated() -> None:
    """Elements that share a 64-bit draw are dropped independently, and so are elements at larger distances."""
    seed_dropout_masks(2)
    dropped = (fast_dropout(MANY, 0.5) == 0).double() - 0.5
    for distance in (1, 2, 3, 4, 5, 64, 384):
        correlation = 4 * (dropped[distance:] * dropped[:-distance]).mean().item()
        assert abs(correlation) < 5 / len(MANY) ** 0.5


def test_masks_are_a_function_of_the_seed() -> None:
    seed_dropout_masks(3)
    first = [fast_dropout(MANY[:9], 0.5), fast_dropout(MANY[:9], 0.5)]
    seed_dropout_masks(3)
    again = [fast_dropout(MANY[:9], 0.5), fast_dropout(MANY[:9], 0.5)]
    seed_dropout_masks(4)
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], fast_dropout(MANY[:9], 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gradients_have_the_mask_of_the_values(dtype: torch.dtype) -> None:
    values = torch.randn(7, 5, dtype=dtype, requires_grad=True)
    result = FastDropout(0.3)(values)
    result.backward(torch.ones_like(result))
    assert values.grad is not None
    assert result.dtype == dtype
    torch.testing.assert_close(result, values * values.grad)
    assert (values.grad == 0).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_masked_products_have_the_bits_of_torchs(dtype: torch.dtype) -> None:
    """Including the signs of zeros, infinities and NaN."""
    values = torch.cat([torch.randn(4000), torch.tensor([torch.inf, -torch.inf, torch.nan, 1e-30, -0.0])]).to(dtype)
    mask = torch.rand(4005) < 0.7
    expected = torch.ops.aten.native_dropout_backward(values, mask, 10 / 7)
    integers = torch.int16 if dtype.itemsize == 2 else torch.int32 if dtype.itemsize == 4 else torch.int64
    product, nan = dropout._mask_and_scale(values, mask, 10 / 7), expected.isnan()
    assert torch.equal(product.isnan(), nan)
    assert torch.equal(product[~nan].view(integers), expected[~nan].view(integers))


def test_eval_mode_and_p_0_change_nothing() -> None:
    for layer in (FastDropout(0.3).eval(), FastDropout(0.0)):
        assert torch.equal(layer(MANY), MANY)


@pytest.mark.parametrize("kind", KINDS)
def test_fast_dropout_changes_only_the_masks_of_an_encoder(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, **tiny_config(kind))
    model = MultitaskTransformer(SentenceTransformer(AutoModel.from_config(config)), {"a": ("x", "y")})
    fast = copy.deepcopy(model)
    use_fast_dropout(fast)
    use_fast_attention(fast.sentence_transformer.encoder)
    ids, mask = torch.randint(5, 50, (3, 8)), torch.ones(3, 8, dtype=torch.int64)
    mask[1, 3:] = 0
    assert torch.equal(fast.eval()(ids, mask, "a"), model.eval()(ids, mask, "a"))
    fast.train()
    seed_dropout_masks(6)
    first = fast(ids, mask, "a")
    seed_dropout_masks(6)
    assert torch.equal(fast(ids, mask, "a"), first)
    assert not torch.equal(fast(ids, mask, "a"), first)
    fast.save_pretrained(tmp_path)
    assert ATTENTION_NAME not in (tmp_path / "config.json").read_text()
