"""Dropout that costs little on a CPU, where torch draws each number of a mask by itself.

Masks come 64 bits at a time from SFC64, 16 bits for each element: of 65,536 elements, a whole number is kept, and the
rest scaled by just that, so that the mean stays. On other devices dropout is torch's.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mtl_dist.transfer import works_behind

ATTENTION = "mtl_dist_sdpa"
"""The name under which transformers knows `attention`."""
_LEVELS = 1 << 16
_EACH = 4
"""Elements served by 64 bits."""
SHORT = 128
"""Tokens up to which the gradient of torch's fused attention takes longer in bf16 on a CPU than that of its parts;
`python -m benchmarks.attention`."""


class _Bits:
    """The source of all masks of this process."""

    def __init__(self) -> None:
        self._seed = 0
        self._generator: np.random.SFC64 | None = None

    def start(self, seed: int) -> None:
        self._seed = seed
        self._generator = None

    def draw(self, count: int) -> np.ndarray:
        """`count` numbers of 64 bits."""
        if self._generator is None:  # made at the first mask, for a frozen model has none
            self._generator = np.random.SFC64(self._seed)
        return self._generator.random_raw(count)


_BITS = _Bits()


def seed_masks(seed: int) -> None:
    """From here on, masks on the CPU are a function of `seed` and of how many were drawn since."""
    _BITS.start(seed)


_ONES = {
    torch.bfloat16: (torch.int16, 0x3F80),
    torch.float16: (torch.int16, 0x3C00),
    torch.float32: (torch.int32, 0x3F800000),
    torch.float64: (torch.int64, 0x3FF0000000000000),
}
"""By type of the values, the integers of its size, and the one whose bits are those of 1.0."""


def _product(values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """`values * mask * scale`, mask being of bool. torch takes three times as long where types are mixed."""
    integers, one = _ONES[values.dtype]
    return (values * mask.to(integers).mul_(one).view(values.dtype)).mul_(scale)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return _product(values, mask, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _product(gradients[0], mask, ctx.scale), None, None


def dropped(values: Tensor, p: float) -> Tensor:
    """`values` with each element zero with probability `p`, to 1 in 65,536, and the others scaled up. On the CPU."""
    kept = max(1, round((1 - p) * _LEVELS))
    count = values.numel()
    levels = _BITS.draw(-(-count // _EACH)).view("<u2")[:count]
    mask = torch.from_numpy(levels < kept).view(values.shape)
    return _Dropped.apply(values, mask, _LEVELS / kept)


class FastDropout(nn.Dropout):
    """`nn.Dropout`, with masks as `dropped` makes them on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        return dropped(input, self.p)


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
    """Attention as transformers' `sdpa`, whose arguments these are, save that dropout is `dropped` on a CPU.

    torch has no fused kernel for attention with dropout there either, and without it a slow one. Shapes are
    [n, heads, tokens, head size].
    """
    plain = getattr(module, "is_causal", True) is False and key.shape[1] == query.shape[1]
    slow = query.requires_grad and query.dtype == torch.bfloat16 and query.shape[2] <= SHORT
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
    states = torch.matmul(dropped(weights, dropout) if dropout else weights, value)
    return states.transpose(1, 2).contiguous(), None


def attention_mask(*arguments: Any, **named: Any) -> Tensor | None:
    """transformers' `sdpa_mask`, which drops a mask that hides nothing. Where to look means to wait, the mask stays."""
    mask = named.get("attention_mask")
    if mask is not None and works_behind(mask.device):
        named["allow_is_bidirectional_skip"] = False
    return sdpa_mask(*arguments, **named)


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, attention_mask)


def make_dropout_fast(model: nn.Module, encoder: PreTrainedModel) -> None:
    """Gives `model`, which holds `encoder`, masks as `dropped` makes them; nothing else about it changes."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FastDropout  # in place, for others may hold it
    if encoder.config._attn_implementation == "sdpa":
        encoder.set_attn_implementation(ATTENTION)
