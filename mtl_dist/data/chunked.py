"""Work on all rows of a split, piece by piece, so that memory does not grow with them."""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar, cast

import datasets
import numpy as np

from mtl_dist.errors import UserError

CHUNK_ROWS = 1 << 18
"""Rows of a piece."""

T = TypeVar("T")
R = TypeVar("R")


def chunk_slices(rows: int) -> Iterator[slice]:
    """The pieces of so many rows."""
    return (slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS))


class _Refused(Exception):
    """A piece was."""


def map_chunks(
    rows: datasets.Dataset,
    check: Callable[[datasets.Dataset, slice], T],
    combine: Callable[[Iterable[T]], R],
) -> R:
    """What `combine` makes of `check` for each piece of `rows`, which is told its place in the whole.

    Where a piece is refused, the whole is checked at once: for the row's number and how many are like it, and because
    a piece can be too little to judge by.
    """

    def checked(part: slice) -> T:
        try:
            return check(cast(datasets.Dataset, rows.select(range(part.start, part.stop))), part)
        except UserError as error:
            raise _Refused from error

    if len(rows) > CHUNK_ROWS:
        with suppress(_Refused):
            return combine(checked(part) for part in chunk_slices(len(rows)))
    return combine([check(rows, slice(0, len(rows)))])


def concatenate_on_disk(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """One array of all `arrays`, [n] each and of one type; where there are several, as a mapped file without a name.

    Raises UserError where the folder for temporary files takes no more.
    """
    left = iter(arrays)
    first, second = next(left), next(left, None)
    if second is None:
        return first
    try:
        # Written as a file, for on a full disk writing to a mapped one kills the process.
        with tempfile.TemporaryFile() as file:
            for array in (first, second):
                file.write(array.tobytes())
            for array in left:
                file.write(array.tobytes())
            file.flush()
            return np.memmap(file, first.dtype, mode="r") if file.tell() else first
    except OSError as error:
        raise UserError(f"TMPDIR: cannot write {tempfile.gettempdir()} ({error.strerror or error})") from error
