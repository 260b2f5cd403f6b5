import random
from pathlib import Path

from tests.faults.corruption import CORRUPTION


def test_a_corrupt_checkpoint_is_refused_and_the_older_one_is_used(tmp_path: Path) -> None:
    outcomes = list(CORRUPTION.run(random.Random(1), tmp_path, 40))
    assert len(outcomes) == 40
    assert [outcome for outcome in outcomes if not outcome.passed] == []
