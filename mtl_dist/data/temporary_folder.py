"""Temporary folders in the cache folder, removed when they are done with, or by a later start if that was killed."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PREFIX = ".writing-"
_LOCK = "lock"
"""File in a temporary folder that its process holds a lock on; processes on other machines see that too."""


@contextmanager
def temporary_folder(root: Path) -> Iterator[Path]:
    """Yields a new folder in `root`, which is removed in the end. Raises OSError.

    Also removes the temporary folders that killed processes have left in `root`.
    """
    _remove_abandoned(root)
    # Cleanup can fail where rows are still memory-mapped, on NFS, and must not hide what ended the block.
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=root, ignore_cleanup_errors=True) as name, _locked(Path(name)):
        yield Path(name)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock on a file in `folder`, which has its name only when it is locked."""
    new = folder / f"{_LOCK}.new"
    with new.open("wb") as file:
        if _try_to_lock(file):
            new.rename(folder / _LOCK)
        yield


def _remove_abandoned(root: Path) -> None:
    """Removes the temporary folders in `root` that no process holds the lock of."""
    for lock in root.glob(f"{PREFIX}*/{_LOCK}"):
        # Another user's folder is closed to this one, and another process may be faster.
        with suppress(OSError), lock.open("r+b") as file:
            if _try_to_lock(file):
                shutil.rmtree(lock.parent, ignore_errors=True)


def _try_to_lock(file: IO[bytes]) -> bool:
    """Locks an open file unless another process has; False also where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
