import random
from pathlib import Path

from tests.faults.hostile import HOSTILE


def test_what_would_run_code_is_refused_and_runs_none(tmp_path: Path) -> None:
    outcomes = list(HOSTILE.run(random.Random(1), tmp_path, 14))
    assert len(outcomes) == 14
    assert [outcome for outcome in outcomes if not outcome.passed] == []
