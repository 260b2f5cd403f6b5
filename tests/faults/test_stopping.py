"""Samples of the campaigns on signals, nonfinite numbers, flipped bits and hangs; `make faults` runs them in full.

Each campaign has its negative control: it fails if the mechanism that it tests is disabled.
"""

import random
from pathlib import Path

import pytest
import torch

from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.engines.base import Engine
from tests.faults import hanging, numeric, stopping
from tests.faults.__main__ import CAMPAIGNS
from tests.faults.campaign import Outcome


@pytest.mark.parametrize(("name", "count"), [("signals", 6), ("nonfinite", 4), ("flips", 3), ("hang", 3)])
def test_a_sample_of_the_campaign_passes(tmp_path: Path, name: str, count: int) -> None:
    outcomes = list(CAMPAIGNS[name].run(random.Random(1), tmp_path, count))
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    assert len(outcomes) == count


def without_signal_handlers() -> None:
    """Hook: a signal ends the process, because no handler is installed."""
    StopRequest.listen = lambda self: None


def without_skipping() -> None:
    """Hook: the gradient is applied even if it is not finite."""
    Engine._clip = lambda self: torch.zeros(())


def failed(outcomes: list[Outcome]) -> list[str]:
    return [outcome.outcome for outcome in outcomes if not outcome.passed]


def test_without_signal_handlers_the_signals_campaign_fails(tmp_path: Path) -> None:
    assert len(failed(list(stopping.signals(random.Random(1), tmp_path, 2, without_signal_handlers)))) == 2


def test_without_skipped_steps_the_nonfinite_campaign_fails(tmp_path: Path) -> None:
    assert len(failed(list(numeric.nonfinite(random.Random(1), tmp_path, 2, without_skipping)))) == 2


def test_without_replica_comparisons_the_flips_campaign_fails(tmp_path: Path) -> None:
    assert len(failed(list(numeric.flips(random.Random(3), tmp_path, 2, compare_every=None)))) == 2


def test_without_a_watchdog_the_hang_campaign_fails(tmp_path: Path) -> None:
    (outcome,) = failed(list(hanging.hangs(random.Random(1), tmp_path, 1, timeout=1e6)))
    assert outcome == "not found in 30 s"
