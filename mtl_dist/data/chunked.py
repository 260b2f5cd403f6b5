"""Work on whole columns in chunks of rows, so that memory does not grow with the size of a split."""

import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from mtl_dist.errors import UserError

CHUNK_ROWS = 1 << 18
"""Rows per chunk."""


def chunk_slices(rows: int) -> Iterator[slice]:
    """Consecutive slices of at most CHUNK_ROWS rows, which together cover `rows` rows."""
    return (slice(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS))


def rows_where(mask: np.ndarray) -> np.ndarray:
    """Numbers of the rows of a mask, [rows] bool, ascending, [n] int64; on disk where there are many."""
    chunks = chunk_slices(len(mask))
    return concatenate_on_disk(chunk.start + np.flatnonzero(mask[chunk]) for chunk in chunks)


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """Number of rows of each class, [classes] int64, from class indices, [rows] int64; negative ones do not count."""
    counts = np.zeros(classes, dtype=np.int64)
    for chunk in chunk_slices(len(labels)):  # in chunks, because bincount copies a read-only array
        found = np.asarray(labels[chunk])
        counts += np.bincount(found[found >= 0], minlength=classes)
    return counts


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
