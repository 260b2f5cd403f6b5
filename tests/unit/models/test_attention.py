"""Unfused attention against torch's fused kernel, with and without dropout."""

import pytest
import torch
from torch import Tensor, nn

from mtl_dist.models import attention as attention_module
from mtl_dist.models.attention import attention
from mtl_dist.models.dropout import fast_dropout, seed_dropout_masks


def masks() -> dict[str, Tensor | None]:
    """Attention masks of each kind for 3 texts of at most 6 tokens."""
    attended = (torch.arange(6) < torch.tensor([6, 2, 4])[:, None])[:, None, None]
    return {"none": None, "bool": attended.expand(3, 1, 6, 6), "float": torch.where(attended, 0.0, -torch.inf)}


class _Encoder(nn.Module):
    is_causal = False


@pytest.mark.parametrize("mask", masks())
def test_attention_is_softmax_with_dropout(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all weights kept, equals torch's attention; else, the product of dropped weights and values."""
    query, key, value = torch.randn(3, 3, 2, 6, 4, dtype=torch.float64).unbind()
    mask_of_kind = masks()[mask]
    mask_of_kind = mask_of_kind.double() if mask == "float" and mask_of_kind is not None else mask_of_kind
    plain, _ = attention(_Encoder(), query, key, value, mask_of_kind)
    all_kept, _ = attention(_Encoder(), query, key, value, mask_of_kind, dropout=1e-9)
    torch.testing.assert_close(all_kept, plain)
    seed_dropout_masks(5)
    some, _ = attention(_Encoder(), query, key, value, mask_of_kind, dropout=0.4)
    identity = torch.eye(6, dtype=torch.float64).expand(3, 2, 6, 6)
    weights, _ = attention(_Encoder(), query, key, identity, mask_of_kind)
    seed_dropout_masks(5)
    expected = torch.matmul(fast_dropout(weights.transpose(1, 2).contiguous(), 0.4), value).transpose(1, 2)
    torch.testing.assert_close(some, expected)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
@pytest.mark.parametrize(
    ("dtype", "tokens", "trains", "fused"),
    [
        (torch.bfloat16, 6, True, False),
        (torch.bfloat16, 6, False, True),
        (torch.bfloat16, 129, True, True),
        (torch.float32, 6, True, True),
    ],
)
def test_without_dropout_attention_equals_torchs_and_takes_the_faster_kernel(
    mask: str | None, dtype: torch.dtype, tokens: int, trains: bool, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares values and gradients, and whether the fused kernel was called."""
    calls = []
    kernel = attention_module.sdpa_attention_forward
    monkeypatch.setattr(
        attention_module, "sdpa_attention_forward", lambda *given, **named: calls.append(1) or kernel(*given, **named)
    )
    visible = torch.ones(2, 1, tokens, tokens, dtype=torch.bool)
    visible[1, :, :, tokens // 2 :] = False
    shift = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    given = {None: None, "bool": visible, "float": shift}[mask]
    results = []
    for ours in (True, False):
        torch.manual_seed(0)
        parts = [torch.randn(2, 3, tokens, 8, dtype=dtype, requires_grad=trains) for _ in range(3)]
        query, key, value = parts
        way = attention if ours else kernel
        states, _ = way(_Encoder(), query, key, value, given)
        if trains:
            (states.float() * torch.arange(8)).sum().backward()
        results.append([states.detach(), *(part.grad for part in parts if part.grad is not None)])
    assert bool(calls) == fused
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=3e-2, atol=3e-2)
