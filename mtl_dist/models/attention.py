"""Attention for transformers' `sdpa` encoders: torch's fused kernel, or matmul and softmax where those are faster.

On a GPU the values of a mask are never read by the host, because that would synchronise with the device.
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
"""Name under which `attention` is registered with transformers."""
MAX_UNFUSED_TOKENS = 128
"""Greatest number of tokens for which, in bf16 on a CPU, the backward pass of torch's fused attention is slower than
that of matmul and softmax; measured by `python -m benchmarks.attention`."""


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
    """Attention with the arguments and results of transformers' `sdpa`, and with `fast_dropout` on a CPU.

    torch has no fused CPU kernel for attention with dropout, and its kernel without dropout can be slow. `query`,
    `key` and `value` are [n, heads, tokens, head_size]; the result is [n, tokens, heads, head_size].
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
    """transformers' `sdpa_mask`, which drops a mask that hides no token; on a GPU such a mask is kept.

    Whether it hides any token could only be told by waiting for the device.
    """
    mask = named.get("attention_mask")
    if mask is not None and is_async(mask.device):
        named["allow_is_bidirectional_skip"] = False
    return sdpa_mask(*arguments, **named)


AttentionInterface.register(ATTENTION_NAME, attention)
AttentionMaskInterface.register(ATTENTION_NAME, attention_mask)


def use_fast_attention(encoder: PreTrainedModel) -> None:
    """Sets the attention of `encoder` to `attention` if it is `sdpa`."""
    if encoder.config._attn_implementation == "sdpa":
        encoder.set_attn_implementation(ATTENTION_NAME)
