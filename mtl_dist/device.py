"""Asynchronous copies between host and device, and the choice of deterministic kernels.

CUDA devices (which include ROCm's in PyTorch) work asynchronously. On other devices copies are plain ones.
"""

import os
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
"""Environment variable that PyTorch requires for deterministic cuBLAS kernels."""


def is_async(device: torch.device) -> bool:
    """Whether `device` queues its work, so that reading a result synchronises with everything queued before."""
    return device.type == "cuda"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies `tensor` to `device`, through pinned memory if that is asynchronous: other copies wait for the queue."""
    if is_async(device) and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def to_device_batched(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copies tensors of one type to `device` in a single `to_device`; for small ones, starting a copy dominates."""
    pieces = to_device(torch.cat([tensor.flatten() for tensor in tensors]), device).split(
        [tensor.numel() for tensor in tensors]
    )
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]


class AsyncScalar:
    """A scalar computed on the device.

    Reading `value` synchronises with the work that produced it, but not with work queued later.
    """

    def __init__(self, scalar: Tensor) -> None:
        """`scalar` has no dimensions."""
        self.is_ready = not is_async(scalar.device)
        """Whether `value` is available without waiting."""
        self._event: torch.cuda.Event | None = None
        self._host = scalar
        if not self.is_ready:
            self._host = scalar.to("cpu", non_blocking=True)  # into pinned memory
            self._event = torch.cuda.Event()
            self._event.record()

    @cached_property
    def value(self) -> float:
        """The scalar as a number; waits for the device if it is not ready."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._host)


def choose_kernels(device: torch.device, deterministic: bool) -> None:
    """Selects deterministic kernels or the fastest ones. Called before the first work on `device`; no effect on CPUs.

    With `deterministic`, operations that have no deterministic kernel raise RuntimeError.
    """
    if device.type != "cuda":
        return
    torch.use_deterministic_algorithms(deterministic)
    settings: Any = torch.utils.deterministic
    settings.fill_uninitialized_memory = False  # a slow debugging aid
    _configure_cublas(device)


def _configure_cublas(device: torch.device) -> None:
    """Sets WORKSPACES for the first matrix product only, at which PyTorch checks that it is set.

    While it is set, PyTorch 2.11 parses it in every product, which makes launching one ten times slower. PyTorch gives
    every cuBLAS handle a workspace of its own in any case, which makes results reproducible (NVIDIA's cuBLAS manual,
    "Results reproducibility").
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
            os.environ[WORKSPACES] = ":4096:8"  # this version of PyTorch checks in every product


def _multiply(device: torch.device) -> None:
    """Multiplies in the thread of forwards and in that of backwards, each of which has a cuBLAS handle."""
    one = torch.ones(8, 8, device=device, requires_grad=True)
    torch.nn.functional.linear(one, one, one[0]).sum().backward()
