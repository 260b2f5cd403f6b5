"""Large files, written to a disk and read from it past the page cache, with their SHA-256 on the way.

A checkpoint is written once and read only after a failure, so its place in memory is wasted, and finding that place
takes longer than the disk does. What is read again to verify it has to come from the disk in any case. See O_DIRECT in
open(2): buffers, positions and lengths must be whole blocks, and some file systems refuse it. These get plain calls.
"""

import errno
import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

_BUFFER_BYTES = 4 << 20
_BLOCK_BYTES = 4096
"""A multiple of every usual disk's."""
_FLAG = getattr(os, "O_DIRECT", 0)  # macOS has none


def write_hashed(path: Path, content: Iterable[memoryview]) -> str:
    """Writes a new file of these bytes, flushed; returns their SHA-256 as they were in memory. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    buffer = _buffer()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    with _direct(handle), ThreadPoolExecutor(1) as beside:
        for filled in _gathered(content, buffer):
            hashing = beside.submit(digest.update, buffer[:filled])
            _write(handle, buffer[: -(-filled // _BLOCK_BYTES) * _BLOCK_BYTES])
            hashing.result()
            size += filled
        os.ftruncate(handle, size)
        os.fsync(handle)
    return digest.hexdigest()


def read_hashed(path: Path) -> str:
    """The SHA-256 of what the disk has of a file. Raises OSError."""
    digest = hashlib.sha256()
    buffer, hashed = _buffer(), _buffer()
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with _direct(handle), ThreadPoolExecutor(1) as beside:
        hashing = beside.submit(digest.update, b"")
        while size := _read(handle, buffer):
            hashing.result()
            buffer, hashed = hashed, buffer
            hashing = beside.submit(digest.update, hashed[:size])
        hashing.result()
    return digest.hexdigest()


def _buffer() -> memoryview:
    """Begins at a block; its memory is freed with the last view of it."""
    return memoryview(mmap.mmap(-1, _BUFFER_BYTES))


@contextmanager
def _direct(handle: int) -> Iterator[None]:
    """Around calls on an open file, direct ones where there are any; closes it."""
    try:
        _set_direct(handle, True)
        yield
    finally:
        os.close(handle)


def _gathered(content: Iterable[memoryview], buffer: memoryview) -> Iterator[int]:
    """Fills the buffer again and again; gives how many bytes are in it, all of them but at the end."""
    filled = 0
    for piece in content:
        start = 0
        while start < len(piece):
            size = min(len(piece) - start, len(buffer) - filled)
            buffer[filled : filled + size] = piece[start : start + size]
            start, filled = start + size, filled + size
            if filled == len(buffer):
                yield filled
                filled = 0
    if filled:
        yield filled


def _write(handle: int, content: memoryview) -> None:
    start = 0
    while start < len(content):
        try:
            start += os.write(handle, content[start:])
        except OSError as error:
            _without_direct(handle, error)


def _read(handle: int, buffer: memoryview) -> int:
    """Fills the buffer, or as much of it as the file has left; returns how much."""
    size = 0
    while size < len(buffer):
        try:
            more = os.readv(handle, [buffer[size:]])
        except OSError as error:
            _without_direct(handle, error)
            continue
        if not more:
            break
        size += more
    return size


def _without_direct(handle: int, error: OSError) -> None:
    """Goes on with plain calls where a direct one was refused: at the end of a quota, say, within a block."""
    if error.errno != errno.EINVAL or not fcntl.fcntl(handle, fcntl.F_GETFL) & _FLAG:
        raise error
    _set_direct(handle, False)


def _set_direct(handle: int, wanted: bool) -> None:
    flags = fcntl.fcntl(handle, fcntl.F_GETFL) & ~_FLAG
    try:
        fcntl.fcntl(handle, fcntl.F_SETFL, flags | _FLAG if wanted else flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
