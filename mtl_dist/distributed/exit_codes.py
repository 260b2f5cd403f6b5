"""Exit codes of a run's processes, recorded in files for the process that started their launcher.

`accelerate launch` exits with 1 whatever its processes exited with, but a cluster job has to know whether its run
failed or was asked to stop. So each process records its exit code in a folder that is made anew for every start, on its
own machine. Imports no torch, so that a process can record its exit code from the beginning.
"""

import os
import sys
from collections.abc import Collection
from pathlib import Path

from mtl_dist.errors import Interrupted, TrainingError, UserError

VARIABLE = "MTL_DIST_EXIT_RECORDS"
"""Environment variable with the folder's path; without it nothing is recorded."""
LOST_CONTACT = "lost contact"
"""Recorded in place of an exit code by a process that only knows that another one is gone."""


def record_exit_code(code: int | str) -> None:
    """Records this process's exit code, or LOST_CONTACT, as the last thing before it ends; the last call counts."""
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return
    try:
        (Path(folder) / os.environ.get("RANK", "0")).write_text(str(code), encoding="utf-8")
    except OSError as error:  # not fatal: the launcher's exit code, 1, is used instead
        print(f"warning: the exit code {code} is not recorded in {folder}: {error.strerror}", file=sys.stderr)


def recorded_exit_codes(folder: Path) -> list[str]:
    """Exit codes, or LOST_CONTACT, that the processes of one start have recorded, sorted by rank as text."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())]


def combined_exit_code(
    records: Collection[str], processes: int, asked: bool, launcher_code: int, lost_code: int
) -> int:
    """The exit code of one launcher's `processes`, some of which may have died without a record.

    `asked`: whether they were asked to stop from outside, after which a process that dies without a record may be
    started again. `launcher_code` is the launcher's own. `lost_code` is returned if all processes only lost contact
    with those of other machines.
    """
    if launcher_code == 0 or (len(records) == processes and set(records) == {"0"}):
        return 0
    for failure in (UserError.exit_code, TrainingError.exit_code):
        if str(failure) in records:
            return failure
    stopped = str(Interrupted.exit_code)
    if asked or (len(records) == processes and stopped in records and set(records) <= {"0", stopped, LOST_CONTACT}):
        return Interrupted.exit_code
    if len(records) == processes and set(records) == {LOST_CONTACT}:
        return lost_code
    return TrainingError.exit_code
