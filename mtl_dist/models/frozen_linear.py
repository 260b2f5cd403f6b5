"""Linear layers that cast a frozen weight once, and not in every forward.

Under autocast each forward casts every weight anew, which of a frozen block on a CPU is a quarter of its time. What is
kept here takes two bytes a parameter, and gives the same bits. On a CPU with bf16 it is kept in the order in which
oneDNN multiplies it, as torch's own compiler keeps the weights of a frozen graph.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_ONEDNN: Any = torch.ops.mkldnn


class _Kept:
    """A layer's weight and bias as they were cast last; a copy of the layer begins with none."""

    def __init__(self) -> None:
        self.key: tuple[Any, ...] | None = None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def __deepcopy__(self, memo: object) -> "_Kept":
        return _Kept()


class FrozenLinear(nn.Linear):
    """`nn.Linear`, which while its weight is frozen keeps it as autocast wants it."""

    _kept: _Kept

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        casts = torch.is_autocast_enabled(kind) and self.weight.dtype != torch.float64  # which autocast leaves alone
        if self.weight.requires_grad or not casts:
            self._kept.key = self._kept.weight = self._kept.bias = None
            return super().forward(input)
        dtype = torch.get_autocast_dtype(kind)
        # Its own order is for products that no gradient passes: a frozen block may stand above one that trains.
        packed = kind == "cpu" and dtype == torch.bfloat16 and not input.requires_grad and _packs()
        weight, bias = self._cast(dtype, packed)
        if packed:
            return _ONEDNN._linear_pointwise(input.to(dtype), weight, bias, "none", [], "")
        return linear(input, weight, bias)

    @torch.no_grad()
    def _cast(self, dtype: torch.dtype, packed: bool) -> tuple[Tensor, Tensor | None]:
        kept, weight, bias = self._kept, self.weight, self.bias
        # Loading a checkpoint writes into the parameter, which its version tells.
        key = (dtype, packed, weight._version, weight.data_ptr(), None if bias is None else bias._version)
        if kept.key != key or kept.weight is None:
            kept.weight = weight.detach().to(dtype)
            if packed:
                kept.weight = _ONEDNN._reorder_linear_weight(kept.weight)
            kept.bias = None if bias is None else bias.detach().to(dtype)
            kept.key = key
        return kept.weight, kept.bias


def _packs() -> bool:
    """Whether this CPU multiplies bf16 by oneDNN."""
    return torch.backends.mkldnn.is_available() and _ONEDNN._is_mkldnn_bf16_supported()


def cache_frozen_casts(model: nn.Module) -> None:
    """Has the linear layers of `model` keep what they cast while they are frozen. For whole parameters only."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FrozenLinear  # in place, for others may hold it
            module.__dict__["_kept"] = _Kept()
