"""Simulated stop signals at a chosen place of a run."""

import signal

import pytest

from mtl_dist.distributed.preemption import StopRequest


def stop_at_check(patch: pytest.MonkeyPatch, check: int) -> None:
    """Simulates SIGTERM at the n-th check for stop requests, which follow each step and precede evaluation batches."""
    checks = 0

    def made(self: StopRequest) -> bool:
        nonlocal checks
        checks += 1
        self.signal = signal.SIGTERM if checks >= check else None
        return self.signal is not None

    patch.setattr(StopRequest, "made", property(made))
