"""Checks of whole columns in chunks of rows, so that memory does not grow with the size of a split."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar, cast

import datasets
import numpy as np

from mtl_dist.errors import UserError

CHUNK_ROWS = 1 << 18
"""Rows per chunk."""

T = TypeVar("T")
R = TypeVar("R")


def chunk_slices(rows: int) -> Iterator[slice]:
    """Consecutive slices of at most CHUNK_ROWS rows, which together cover `rows` rows."""
    return (slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS))


class _ChunkRefused(Exception):
    """Raised when the check of a single chunk raises UserError."""


def map_chunks(
    rows: datasets.Dataset,
    check: Callable[[datasets.Dataset, slice], T],
    combine: Callable[[Iterable[T]], R],
) -> R:
    """Calls `check` with each chunk of `rows` and its position in them, and combines the results.

    If a chunk is refused, all rows are checked at once: the message then has the row's number in the whole split and
    the number of rows like it, and some properties, such as the type of a column, cannot be judged by one chunk.
    """

    def checked(chunk: slice) -> T:
        try:
            return check(cast(datasets.Dataset, rows.select(range(chunk.start, chunk.stop))), chunk)
        except UserError as error:
            raise _ChunkRefused from error

    if len(rows) > CHUNK_ROWS:
        with suppress(_ChunkRefused):
            return combine(checked(chunk) for chunk in chunk_slices(len(rows)))
    return combine([check(rows, slice(0, len(rows)))])


def concatenate_on_disk(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Concatenates arrays of shape [n] and one dtype; several of them into an unnamed temporary file, memory-mapped.

    Raises UserError if the folder for temporary files cannot be written.
    """
    left = iter(arrays)
    first, second = next(left), next(left, None)
    if second is None:
        return first
    try:
        # Not written through the memory map: on a full disk, that would kill the process with SIGBUS.
        with tempfile.TemporaryFile() as file:
            for array in (first, second):
                file.write(array.tobytes())
            for array in left:
                file.write(array.tobytes())
            file.flush()
            return np.memmap(file, first.dtype, mode="r") if file.tell() else first
    except OSError as error:
        raise UserError(f"TMPDIR: cannot write {tempfile.gettempdir()} ({error.strerror or error})") from error
