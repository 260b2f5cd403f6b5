"""Dropout that costs little on a CPU, where torch draws each number of a mask by itself.

Masks come 64 bits at a time from SFC64, 16 bits for each element: of 65,536 elements, a whole number is kept, and the
rest scaled by just that, so that the mean stays. On other devices dropout is torch's.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 1 << 16
_EACH = 4
"""Elements served by 64 bits."""


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


def seed_dropout_masks(seed: int) -> None:
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


class _MaskAndScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return _product(values, mask, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _product(gradients[0], mask, ctx.scale), None, None


def fast_dropout(values: Tensor, p: float) -> Tensor:
    """`values` with each element zero with probability `p`, to 1 in 65,536, and the others scaled up. On the CPU."""
    kept = max(1, round((1 - p) * _LEVELS))
    count = values.numel()
    levels = _BITS.draw(-(-count // _EACH)).view("<u2")[:count]
    mask = torch.from_numpy(levels < kept).view(values.shape)
    return _MaskAndScale.apply(values, mask, _LEVELS / kept)


class FastDropout(nn.Dropout):
    """`nn.Dropout`, with masks as `fast_dropout` makes them on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        return fast_dropout(input, self.p)


def use_fast_dropout(model: nn.Module) -> None:
    """Gives `model` masks as `fast_dropout` makes them; nothing else about it changes."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FastDropout  # in place, for others may hold it
