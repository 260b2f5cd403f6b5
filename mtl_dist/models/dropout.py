"""Fast dropout on CPUs, where torch draws every element of a mask separately.

Masks are drawn 64 bits at a time from SFC64, 16 bits for each element. An element is kept if its 16 bits are below
a threshold, a whole number out of 65,536, and scaled by exactly the inverse of that share, so that the mean is
preserved. On other devices dropout is torch's own.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtl_dist.models.replace import replace_modules, share_state

_LEVELS = 1 << 16
"""Number of values that the random bits of an element can have."""
_ELEMENTS_PER_DRAW = 4
"""Elements served by 64 random bits."""


class _MaskGenerator:
    """Random bits for all dropout masks of this process."""

    def __init__(self) -> None:
        self._seed = 0
        self._generator: np.random.SFC64 | None = None

    def seed(self, seed: int) -> None:
        self._seed = seed
        self._generator = None

    def draw(self, count: int) -> np.ndarray:
        """`count` random unsigned 64-bit integers."""
        if self._generator is None:  # created on first use: a frozen model draws no mask
            self._generator = np.random.SFC64(self._seed)
        return self._generator.random_raw(count)


_MASK_GENERATOR = _MaskGenerator()


def seed_dropout_masks(seed: int) -> None:
    """Seeds the dropout masks on the CPU: from here on, masks depend on `seed` and the number of masks drawn before."""
    _MASK_GENERATOR.seed(seed)


_BITS_OF_ONE = {
    torch.bfloat16: (torch.int16, 0x3F80),
    torch.float16: (torch.int16, 0x3C00),
    torch.float32: (torch.int32, 0x3F800000),
    torch.float64: (torch.int64, 0x3FF0000000000000),
}
"""For each floating-point type, the integer type of the same size, and the integer that has the bits of 1.0."""


def _mask_and_scale(values: Tensor, mask: Tensor, scale: float) -> Tensor:
    """`values * mask * scale` for a boolean mask, three times as fast as torch's product of mixed types."""
    integers, one = _BITS_OF_ONE[values.dtype]
    return (values * mask.to(integers).mul_(one).view(values.dtype)).mul_(scale)


class _MaskAndScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return _mask_and_scale(values, mask, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return _mask_and_scale(gradients[0], mask, ctx.scale), None, None


def fast_dropout(values: Tensor, p: float) -> Tensor:
    """Dropout of `values`, which are on the CPU: zeroes elements with probability `p`, rounded to 1/65,536."""
    threshold = max(1, round((1 - p) * _LEVELS))
    count = values.numel()
    levels = _MASK_GENERATOR.draw(-(-count // _ELEMENTS_PER_DRAW)).view("<u2")[:count]
    mask = torch.from_numpy(levels < threshold).view(values.shape)
    return _MaskAndScale.apply(values, mask, _LEVELS / threshold)


class FastDropout(nn.Dropout):
    """`nn.Dropout` that computes `fast_dropout` on CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        return fast_dropout(input, self.p)


def use_fast_dropout(model: nn.Module) -> None:
    """Replaces the dropout modules of `model` by FastDropout."""
    replace_modules(model, _as_fast_dropout)


def _as_fast_dropout(module: nn.Module) -> FastDropout | None:
    if type(module) is not nn.Dropout:
        return None
    fast = FastDropout()
    share_state(module, fast)
    return fast
