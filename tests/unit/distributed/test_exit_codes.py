import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtl_dist.distributed.exit_codes import LOST_CONTACT, VARIABLE, combined_exit_code, recorded_exit_codes

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("records", "asked", "launcher", "code"),
    [
        (["0", "0"], False, 0, 0),
        (["0", "0"], False, 1, 0),  # the launcher lost contact with other machines as they ended
        ([], False, 0, 0),  # --help
        (["75", "75"], False, 1, 75),
        (["75", LOST_CONTACT], False, 1, 75),
        (["0", "75"], False, 1, 75),
        (["75"], False, 1, 1),  # the other one crashed, after which the launcher stopped this one
        ([], False, 1, 1),
        ([], True, -15, 75),  # before any process has started
        (["75"], True, 1, 75),
        ([LOST_CONTACT, LOST_CONTACT], True, 1, 75),
        ([LOST_CONTACT, LOST_CONTACT], False, 1, 9),
        ([LOST_CONTACT], False, 1, 1),
        (["1", "75"], True, 1, 1),
        (["75", "2"], True, 1, 2),
        (["1", "2"], False, 1, 2),
        (["1", LOST_CONTACT], False, 1, 1),
    ],
)
def test_the_exit_code_of_two_processes(records: list[str], asked: bool, launcher: int, code: int) -> None:
    assert combined_exit_code(records, 2, asked, launcher, lost_code=9) == code


@pytest.mark.parametrize(("arguments", "code"), [(["optimizer.lrr=1"], "2"), (["--config", "none"], "2")])
def test_a_process_records_its_exit_code(tmp_path: Path, arguments: list[str], code: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), VARIABLE: str(tmp_path), "RANK": "0"}
    command = [sys.executable, "launch/train.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert str(done.returncode) == code
    assert recorded_exit_codes(tmp_path) == [code]


def test_a_process_that_cannot_record_its_exit_code_warns_and_ends(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    environment = os.environ | {"PYTHONPATH": str(ROOT), VARIABLE: str(folder), "RANK": "0"}
    command = [sys.executable, "launch/train.py", "optimizer.lrr=1"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    warning = f"warning: the exit code 2 is not recorded in {folder}: No such file or directory"
    assert done.stderr.splitlines()[-1] == warning
