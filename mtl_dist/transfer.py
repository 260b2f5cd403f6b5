"""Tensors on their way to a device and back, behind what the device still has to do, so that the host goes on.

Of the devices, CUDA's (and ROCm's, which torch calls so too) work behind the host; on the others nothing here differs
from plain copies.
"""

from functools import cached_property

import torch
from torch import Tensor


def works_behind(device: torch.device) -> bool:
    """Whether `device` takes its work in a queue, so that to look at a result is to wait for all that is queued."""
    return device.type == "cuda"


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. From pinned memory, without which a copy waits for the queue."""
    if works_behind(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def sent_together(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """As `sent`, of tensors of one type in a single copy: each by itself takes longer to begin than to make."""
    pieces = sent(torch.cat([tensor.flatten() for tensor in tensors]), device).split(
        [tensor.numel() for tensor in tensors]
    )
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


class Arriving:
    """A number that a device makes. Who asks for it waits for what was queued before it, and for nothing behind it."""

    def __init__(self, number: Tensor) -> None:
        """`number` has no dimensions."""
        self.is_here = not works_behind(number.device)
        """Whether it can be had without waiting."""
        self._event: torch.cuda.Event | None = None
        self._host = number
        if not self.is_here:
            self._host = number.to("cpu", non_blocking=True)  # pinned
            self._event = torch.cuda.Event()
            self._event.record()

    @cached_property
    def value(self) -> float:
        """The number itself."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._host)
