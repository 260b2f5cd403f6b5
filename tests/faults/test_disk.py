import random
from pathlib import Path

import pytest

from tests.faults.disk import DISK, QUOTA
from tests.utils.disks import why_no_quota, why_not


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_run_on_a_full_or_read_only_disk_loses_nothing_it_had(tmp_path: Path) -> None:
    outcomes = list(DISK.run(random.Random(1), tmp_path, 4))
    assert len(outcomes) == 4
    assert [outcome for outcome in outcomes if not outcome.passed] == []


@pytest.mark.skipif(why_no_quota() is not None, reason=str(why_no_quota()))
def test_a_run_over_its_quota_loses_nothing_it_had(tmp_path: Path) -> None:
    outcomes = list(QUOTA.run(random.Random(1), tmp_path, 4))
    assert len(outcomes) == 4
    assert [outcome for outcome in outcomes if not outcome.passed] == []
