"""Checks of columns of strings: texts that are not empty, and the refusal of rows that are not as they should be.

Rows count from 0. Masks are bool arrays of shape [rows].
"""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from mtl_dist.errors import UserError


def refuse_rows(location: str, bad: np.ndarray, describe: Callable[[int], str]) -> None:
    """Raises UserError for the first row of the mask `bad`, if any; `describe(row)` is what is wrong with a row."""
    count = int(np.count_nonzero(bad))
    if count:
        row = int(bad.argmax())
        more = f"; {count - 1} more like it" if count > 1 else ""
        raise UserError(f"{location} row {row} (from 0): {describe(row)}{more}")


def have_text(columns: Sequence[pa.ChunkedArray]) -> np.ndarray:
    """Mask of the rows whose columns all have more than white space."""
    usable = np.ones(len(columns[0]), dtype=bool)
    for column in columns:
        empty = pc.or_(pc.equal(column, ""), pc.utf8_is_space(column))
        usable &= ~mask_of(pc.fill_null(empty, True))
    return usable


def mask_of(values: pa.ChunkedArray) -> np.ndarray:
    """Mask of a column of booleans without nulls."""
    return values.to_numpy().astype(bool)


def text_hashes(columns: Sequence[Sequence[str | None]]) -> np.ndarray:
    """64-bit hash of the text of each row, [rows] uint64; its columns are joined by a null character, null is empty."""
    rows = zip(*columns, strict=True)
    hashes = [xxhash.xxh3_64_intdigest("\0".join(text or "" for text in row).encode()) for row in rows]
    return np.array(hashes, dtype=np.uint64)
