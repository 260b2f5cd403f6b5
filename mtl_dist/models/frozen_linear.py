"""Linear layers that cast a frozen weight once instead of in every forward pass.

Under autocast every forward pass casts each weight again, which takes a quarter of the time of a frozen block on a CPU.
The cached cast takes two bytes per parameter and gives the same bits. On a CPU with bf16 it is kept in oneDNN's packed
layout, as torch's own compiler does with the weights of a frozen graph.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mtl_dist.models.replace import replace_modules, share_state

_ONEDNN: Any = torch.ops.mkldnn


class _CastCache:
    """The weight and bias of a layer as they were cast last. A copy of the layer starts with an empty cache."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.key: tuple[Any, ...] | None = None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def __deepcopy__(self, memo: object) -> "_CastCache":
        return _CastCache()


class FrozenLinear(nn.Linear):
    """`nn.Linear` that caches what autocast makes of its weight, for as long as the weight is frozen."""

    def __init__(self, layer: nn.Linear) -> None:
        """Takes over the parameters, hooks and mode of `layer`."""
        nn.Module.__init__(self)
        share_state(layer, self)
        self._cache = _CastCache()

    def forward(self, input: Tensor) -> Tensor:
        device = input.device.type
        # autocast leaves float64 alone
        is_cast = torch.is_autocast_enabled(device) and self.weight.dtype != torch.float64
        if self.weight.requires_grad or not is_cast:
            self._cache.clear()
            return super().forward(input)
        dtype = torch.get_autocast_dtype(device)
        # Packed weights have no backward, which a frozen block above a trainable one needs.
        packed = device == "cpu" and dtype == torch.bfloat16 and not input.requires_grad and _can_pack()
        weight, bias = self._cast_parameters(dtype, packed)
        if packed:
            return _ONEDNN._linear_pointwise(input.to(dtype), weight, bias, "none", [], "")
        return linear(input, weight, bias)

    @torch.no_grad()
    def _cast_parameters(self, dtype: torch.dtype, packed: bool) -> tuple[Tensor, Tensor | None]:
        cache, weight, bias = self._cache, self.weight, self.bias
        # Loading a checkpoint copies into the parameter, which changes its version.
        key = (dtype, packed, weight._version, weight.data_ptr(), None if bias is None else bias._version)
        if cache.key != key or cache.weight is None:
            cache.weight = weight.detach().to(dtype)
            if packed:
                cache.weight = _ONEDNN._reorder_linear_weight(cache.weight)
            cache.bias = None if bias is None else bias.detach().to(dtype)
            cache.key = key
        return cache.weight, cache.bias


def _can_pack() -> bool:
    """Whether oneDNN multiplies bf16 on this CPU."""
    return torch.backends.mkldnn.is_available() and _ONEDNN._is_mkldnn_bf16_supported()


def cache_frozen_casts(model: nn.Module) -> None:
    """Replaces the linear layers of `model` by FrozenLinear. Only for models whose parameters are not sharded."""
    replace_modules(model, lambda module: FrozenLinear(module) if type(module) is nn.Linear else None)
