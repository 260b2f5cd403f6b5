"""A sample of the campaigns on signals, numbers that go wrong, and hangs; `make faults` runs them in full."""

import random
from pathlib import Path

import pytest

from tests.faults.__main__ import CAMPAIGNS


@pytest.mark.parametrize(("name", "count"), [("signals", 6), ("nonfinite", 4), ("flips", 3), ("hang", 3)])
def test_sample(tmp_path: Path, name: str, count: int) -> None:
    outcomes = list(CAMPAIGNS[name].run(random.Random(1), tmp_path, count))
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    assert len(outcomes) == count
