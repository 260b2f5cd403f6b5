import random
from pathlib import Path

import pytest

from tests.faults.disk import DISK, QUOTA
from tests.utils.disks import disks_unavailable, quotas_unavailable


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
def test_a_full_or_read_only_disk_loses_no_checkpoint(tmp_path: Path) -> None:
    outcomes = list(DISK.run(random.Random(1), tmp_path, 4))
    assert len(outcomes) == 4
    assert [outcome for outcome in outcomes if not outcome.passed] == []


@pytest.mark.skipif(quotas_unavailable() is not None, reason=str(quotas_unavailable()))
def test_an_exceeded_quota_loses_no_checkpoint(tmp_path: Path) -> None:
    outcomes = list(QUOTA.run(random.Random(1), tmp_path, 4))
    assert len(outcomes) == 4
    assert [outcome for outcome in outcomes if not outcome.passed] == []
