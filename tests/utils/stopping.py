"""Signals that come at a place of a run that a test chooses."""

import signal

import pytest

from mtl_dist.distributed.preemption import StopRequest


def stop_at_check(patch: pytest.MonkeyPatch, round_: int) -> None:
    """Has the signal come in the n-th round of votes: after a step, or before a batch of an evaluation."""
    rounds = 0

    def made(self: StopRequest) -> bool:
        nonlocal rounds
        rounds += 1
        self.signal = signal.SIGTERM if rounds >= round_ else None
        return self.signal is not None

    patch.setattr(StopRequest, "made", property(made))
