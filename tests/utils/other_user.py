"""Commands as another user, one without a name or a home folder; starting them needs root."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.utils.disks import disks_unavailable

ROOT = Path(__file__).parents[2]
UID = 12345
"""A user id that no passwd file knows."""
# Hides the folder that keeps others from the interpreter behind an empty one that holds only the interpreter.
_OPENED = """
set -e; closed=$1; base=$2; shift 2
if [ -n "$closed" ]; then
    mount --bind "$base" /mnt; mount -t tmpfs -o mode=755 none "$closed"; mkdir -p "$base"; mount --move /mnt "$base"
fi
exec setpriv --reuid {uid} --regid {uid} --clear-groups "$@"
"""


def other_user_unavailable() -> str | None:
    """Reason why no command can be run as another user here, or None."""
    return disks_unavailable() or (None if shutil.which("setpriv") else "there is no setpriv (Debian: util-linux)")


def run_as_other_user(
    *arguments: str, variables: Mapping[str, str], cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs Python with `arguments` as UID, with no variables but `variables` and those that every run needs."""
    base = Path(sys.base_prefix).resolve()
    closed = [folder for folder in reversed(base.parents) if not folder.stat().st_mode & 0o001]
    command = ["unshare", "--mount", "bash", "-c", _OPENED.format(uid=UID), "bash"]
    command += [str(closed[0]) if closed else "", str(base), sys.executable, *arguments]
    return run_in_environment(command, variables, cwd)


def run_in_environment(
    command: list[str], variables: Mapping[str, str], cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Runs `command` with `variables`, and otherwise only what every run needs."""
    needed = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment = {"PATH": os.environ["PATH"], "WANDB_MODE": "offline", **needed, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A temporary folder that other users can read, which pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="mtl_dist-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def folder_of_other_user(path: Path) -> Path:
    """Makes `path`, owned by UID; returns it."""
    path.mkdir()
    os.chown(path, UID, UID)
    return path
