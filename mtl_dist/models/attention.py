"""Attention as transformers' `sdpa` by the way that is fast here: by its parts where torch has no good kernel.

On a GPU nobody looks at a mask, which would be to wait for the device.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mtl_dist.device import is_async
from mtl_dist.models.dropout import fast_dropout

ATTENTION_NAME = "mtl_dist_sdpa"
"""The name under which transformers knows `attention`."""
MAX_UNFUSED_TOKENS = 128
"""Tokens up to which the gradient of torch's fused attention takes longer in bf16 on a CPU than that of its parts;
`python -m benchmarks.attention`."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' `sdpa`, whose arguments these are, save that dropout is `fast_dropout` on a CPU.

    torch has no fused kernel for attention with dropout there either, and without it a slow one. Shapes are
    [n, heads, tokens, head size].
    """
    plain = getattr(module, "is_causal", True) is False and key.shape[1] == query.shape[1]
    slow = query.requires_grad and query.dtype == torch.bfloat16 and query.shape[2] <= MAX_UNFUSED_TOKENS
    fused = dropout == 0 and not slow
    if fused or query.device.type != "cpu" or not plain or others.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    scores = torch.matmul(query, key.transpose(-2, -1))
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = torch.softmax(scores, dim=-1)
    states = torch.matmul(fast_dropout(weights, dropout) if dropout else weights, value)
    return states.transpose(1, 2).contiguous(), None


def attention_mask(*arguments: Any, **named: Any) -> Tensor | None:
    """transformers' `sdpa_mask`, which drops a mask that hides nothing. Where to look means to wait, the mask stays."""
    mask = named.get("attention_mask")
    if mask is not None and is_async(mask.device):
        named["allow_is_bidirectional_skip"] = False
    return sdpa_mask(*arguments, **named)


AttentionInterface.register(ATTENTION_NAME, attention)
AttentionMaskInterface.register(ATTENTION_NAME, attention_mask)


def use_fast_attention(encoder: PreTrainedModel) -> None:
    """Has `encoder` compute its attention here, if it would by `sdpa`."""
    if encoder.config._attn_implementation == "sdpa":
        encoder.set_attn_implementation(ATTENTION_NAME)
