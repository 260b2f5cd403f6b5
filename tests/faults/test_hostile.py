import random
from pathlib import Path

from tests.faults.hostile import HOSTILE


def test_files_that_would_run_code_are_refused_and_do_not_run_it(tmp_path: Path) -> None:
    outcomes = list(HOSTILE.run(random.Random(1), tmp_path, 14))
    assert len(outcomes) == 14
    assert [outcome for outcome in outcomes if not outcome.passed] == []
