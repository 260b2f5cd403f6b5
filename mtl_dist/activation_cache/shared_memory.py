"""Memory shared by the processes of a machine. It has no name, so that nothing is left behind however they end."""

import mmap
import os
import tempfile
from pathlib import Path

from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError
from mtl_dist.io import reporting_write_errors


def shared_bytes(size: int, group: ProcessGroup, folder: Path | None) -> mmap.mmap:
    """Maps `size` zero bytes that every process of this machine shares.

    They are in memory, where pages take up space once they are written, or in an unlinked file of `folder`. Every rank
    calls this. Raises UserError on every rank if the bytes cannot be allocated on one of them.
    """
    if group.world_size == 1 and folder is None:
        return mmap.mmap(-1, size)
    handle = -1
    try:
        with group.raise_together():
            if group.is_local_main:
                handle = _create(size, folder)
        # Ranks of a machine are consecutive.
        owners = group.all_gather((os.getpid(), handle))
        pid, number = owners[group.rank - group.local_rank]
        with group.raise_together():
            return mmap.mmap(handle, size) if group.is_local_main else _open(f"/proc/{pid}/fd/{number}", size)
    finally:
        # Every process has opened it by now: raise_together waits for all of them.
        if handle >= 0:
            os.close(handle)


def _create(size: int, folder: Path | None) -> int:
    """Creates the bytes and returns their file descriptor."""
    if folder is None:
        if not hasattr(os, "memfd_create"):
            raise UserError("cache.folder: name one; several processes share memory without a file only on Linux")
        handle = os.memfd_create("mtl_dist")
        os.ftruncate(handle, size)
        return handle
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".prefix-", dir=folder)
        Path(name).unlink()
        # Allocated at once: writing to a mapped file kills the process if the disk is full by then.
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        raise UserError(f"cache.folder: cannot write {size} bytes to {folder}: {error.strerror}") from error
    return handle


def _open(path: str, size: int) -> mmap.mmap:
    """Maps the bytes that another process has created, through `path` in its /proc folder."""
    with reporting_write_errors(Path(path)):
        handle = os.open(path, os.O_RDWR)
        try:
            return mmap.mmap(handle, size)
        finally:
            os.close(handle)
