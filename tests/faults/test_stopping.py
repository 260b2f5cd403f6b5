"""A sample of the campaigns on signals, numbers that go problem, and hangs; `make faults` runs them in full.

Each has its negative control: without the mechanism, the campaign fails.
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
def test_sample(tmp_path: Path, name: str, count: int) -> None:
    outcomes = list(CAMPAIGNS[name].run(random.Random(1), tmp_path, count))
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    assert len(outcomes) == count


def without_listening() -> None:
    """A signal does to a process what it does to any other."""
    StopRequest.listen = lambda self: None


def without_skipping() -> None:
    """A gradient is applied, whatever it is."""
    Engine._clip = lambda self: torch.zeros(())


def failed(outcomes: list[Outcome]) -> list[str]:
    return [outcome.outcome for outcome in outcomes if not outcome.passed]


def test_without_listening_the_campaign_on_signals_fails(tmp_path: Path) -> None:
    assert len(failed(list(stopping.signals(random.Random(1), tmp_path, 2, without_listening)))) == 2


def test_without_skipping_the_campaign_on_bad_numbers_fails(tmp_path: Path) -> None:
    assert len(failed(list(numeric.nonfinite(random.Random(1), tmp_path, 2, without_skipping)))) == 2


def test_without_comparing_the_campaign_on_flips_fails(tmp_path: Path) -> None:
    assert len(failed(list(numeric.flips(random.Random(3), tmp_path, 2, compare_every=None)))) == 2


def test_without_a_watchdog_the_campaign_on_hangs_fails(tmp_path: Path) -> None:
    (outcome,) = failed(list(hanging.hangs(random.Random(1), tmp_path, 1, timeout=1e6)))
    assert outcome == "not found in 30 s"
