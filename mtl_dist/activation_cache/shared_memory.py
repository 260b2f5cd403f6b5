"""Bytes that all processes of a machine see: without a name, so that nothing is left behind however they end."""

import mmap
import os
import tempfile
from pathlib import Path

from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError
from mtl_dist.io import reporting_write_errors


def shared_bytes(size: int, processes: ProcessGroup, folder: Path | None) -> mmap.mmap:
    """`size` zero bytes, the same ones for every process of this machine; taken up only as far as they are written.

    In memory, or in a file of `folder` that has no name any more. Every rank calls this. Raises UserError, on every
    rank, where there cannot be such bytes.
    """
    if processes.world_size == 1 and folder is None:
        return mmap.mmap(-1, size)
    local = processes.is_local_main
    handle = processes.together(lambda: _make(size, folder) if local else -1)
    try:
        # Ranks of a machine are numbered in a row, from its first one on.
        owners = processes.all_gather((os.getpid(), handle))
        pid, number = owners[processes.rank - processes.local_rank]
        return processes.together(lambda: _open(f"/proc/{pid}/fd/{number}" if not local else None, handle, size))
    finally:
        # All have opened it by now: `together` has waited for them.
        if handle >= 0:
            os.close(handle)


def _make(size: int, folder: Path | None) -> int:
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
        # All of it now: a disk that is full later would end the process in the middle of a write.
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        raise UserError(f"cache.folder: cannot write {size} bytes to {folder}: {error.strerror}") from error
    return handle


def _open(path: str | None, handle: int, size: int) -> mmap.mmap:
    if path is None:
        return mmap.mmap(handle, size)
    with reporting_write_errors(Path(path)):
        other = os.open(path, os.O_RDWR)
        try:
            return mmap.mmap(other, size)
        finally:
            os.close(other)
