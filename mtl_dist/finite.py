"""Search for NaN and infinite values in weights."""

from collections.abc import Iterable

import torch
from torch import Tensor


def find_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """`NAME holds NaN` or `NAME holds an infinite value` for the first such tensor; None if all values are finite.

    One pass over the values, at the speed of the memory.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.is_meta:
            continue
        # NaN and inf survive a sum; a sum of finite values may overflow, so only the values themselves are decisive.
        if torch.isfinite(tensor.detach().sum()) or torch.isfinite(tensor).all():
            continue
        return f"{name} holds {'NaN' if torch.isnan(tensor).any() else 'an infinite value'}"
    return None
