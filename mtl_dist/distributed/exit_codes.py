"""What each process of a run ended with, told to whoever started the launcher.

`accelerate launch` ends with 1 whatever its processes ended with, and a job must know whether its run failed or was
asked to stop. So each process leaves its code in a folder that is made anew for every start, on its own machine.
Imports no torch, so that a process can leave its code from its first moment on.
"""

import os
import sys
from collections.abc import Collection
from pathlib import Path

from mtl_dist.errors import Interrupted, TrainingError, UserError

VARIABLE = "MTL_DIST_EXIT_RECORDS"
"""Names the folder; without it nothing is recorded."""
LOST_CONTACT = "lost contact"
"""Recorded in place of a code where only another process can know why the run ended."""


def record_exit_code(ending: int | str) -> None:
    """Leaves this process's exit code, or LOST_CONTACT. Called last before it ends; the last call counts."""
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return
    try:
        (Path(folder) / os.environ.get("RANK", "0")).write_text(str(ending), encoding="utf-8")
    except OSError as error:  # the process ends all the same, and its launcher's 1 stands for it
        print(f"warning: the exit code {ending} is not recorded in {folder}: {error.strerror}", file=sys.stderr)


def recorded_exit_codes(folder: Path) -> list[str]:
    """What the processes of one start have recorded."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.iterdir())]


def combined_exit_code(
    records: Collection[str], processes: int, asked: bool, launcher_code: int, lost_code: int
) -> int:
    """The exit code of `processes` that one launcher started, of which some may have died without a record.

    `asked` says whether they were asked to stop from outside: what dies of that without a record may be started again.
    `lost_code` is for processes that only lost those of other machines.
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
