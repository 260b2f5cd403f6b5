"""Tensors on their way to a device and back, behind what the device still has to do, so that the host goes on.

Of the devices, CUDA's (and ROCm's, which torch calls so too) work behind the host; on the others nothing here differs
from plain copies.
"""

import os
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"


def is_async(device: torch.device) -> bool:
    """Whether `device` takes its work in a queue, so that to look at a result is to wait for all that is queued."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. From pinned memory, without which a copy waits for the queue."""
    if is_async(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_device_batched(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """As `sent`, of tensors of one type in a single copy: each by itself takes longer to begin than to make."""
    pieces = to_device(torch.cat([tensor.flatten() for tensor in tensors]), device).split(
        [tensor.numel() for tensor in tensors]
    )
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


class AsyncScalar:
    """A number that a device makes. Who asks for it waits for what was queued before it, and for nothing behind it."""

    def __init__(self, number: Tensor) -> None:
        """`number` has no dimensions."""
        self.is_ready = not is_async(number.device)
        """Whether it can be had without waiting."""
        self._event: torch.cuda.Event | None = None
        self._host = number
        if not self.is_ready:
            self._host = number.to("cpu", non_blocking=True)  # pinned
            self._event = torch.cuda.Event()
            self._event.record()

    @cached_property
    def value(self) -> float:
        """The number itself."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._host)


def choose_kernels(device: torch.device, deterministic: bool) -> None:
    """Has torch take deterministic kernels or the fastest ones, before its first work on `device`; CPUs have no other.

    Of operations without a deterministic kernel torch then raises RuntimeError.
    """
    if device.type != "cuda":
        return
    torch.use_deterministic_algorithms(deterministic)
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False  # for finding mistakes, and slow
    _settle_cublas(device)


def _settle_cublas(device: torch.device) -> None:
    """Shows torch once that cuBLAS has its workspaces from a variable, for which it looks at the first product.

    Left there, torch 2.11 parses it anew in every product, and takes ten times as long to start one. It gives every
    handle of cuBLAS a workspace of its own in any case, by which results are the same each time (NVIDIA's manual of
    cuBLAS, "Results reproducibility").
    """
    ours = WORKSPACES not in os.environ and torch.version.hip is None
    os.environ.setdefault(WORKSPACES, ":4096:8")
    _multiply(device)
    if ours:
        del os.environ[WORKSPACES]
        try:
            _multiply(device)
        except RuntimeError as error:
            if WORKSPACES not in str(error):
                raise
            os.environ[WORKSPACES] = ":4096:8"  # for a torch that looks each time


def _multiply(device: torch.device) -> None:
    """In the thread of forwards and in that of backwards, each of which has a handle of cuBLAS."""
    one = torch.ones(8, 8, device=device, requires_grad=True)
    torch.nn.functional.linear(one, one, one[0]).sum().backward()
