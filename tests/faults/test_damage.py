import random
from pathlib import Path

from tests.faults.damage import DAMAGE


def test_a_damaged_checkpoint_is_refused_and_the_older_one_is_used(tmp_path: Path) -> None:
    outcomes = list(DAMAGE.run(random.Random(1), tmp_path, 40))
    assert len(outcomes) == 40
    assert [outcome for outcome in outcomes if not outcome.passed] == []
