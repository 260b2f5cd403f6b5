"""Checks of whole columns, with pyarrow and numpy: strings, encodings, and texts that are not empty.

Rows count from 0. Masks are bool arrays of shape [rows].
"""

import json
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtl_dist.errors import UserError


def refuse_rows(location: str, bad: np.ndarray, describe: Callable[[int], str]) -> None:
    """Raises UserError for the first row of the mask `bad`, if any; `describe(row)` is what is wrong with a row."""
    found = np.flatnonzero(bad)
    if len(found):
        more = f"; {len(found) - 1} more like it" if len(found) > 1 else ""
        raise UserError(f"{location} row {found[0]} (from 0): {describe(int(found[0]))}{more}")


def rows_with_text(location: str, columns: list[str], rows: datasets.Dataset, empty_text: str) -> np.ndarray:
    """Mask of the rows whose text columns all have more than white space.

    Raises UserError for a value that is not a string or not UTF-8, and for an empty text if `empty_text` is "error".
    """
    usable = np.ones(len(rows), dtype=bool)
    for name in columns:
        usable &= _has_text(location, name, rows[:][name])
    if empty_text == "error":
        refuse_rows(location, ~usable, lambda row: "text is empty; data.empty_text=skip leaves such rows out")
    return usable


def _has_text(location: str, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Mask of the rows whose value in one text column has more than white space."""
    refuse_rows(
        location,
        _not_strings(column),
        lambda row: f"text column {name!r} holds {python_value(column, row)!r}, no string",
    )
    refuse_invalid_utf8(location, name, column)
    column = column.cast(pa.large_string())
    empty = pc.or_(pc.equal(column, ""), pc.utf8_is_space(column))
    return ~mask_of(pc.fill_null(empty, True))


def _not_strings(column: pa.ChunkedArray) -> np.ndarray:
    """Mask of the rows whose value is neither null nor a string."""
    if is_string(column.type):
        return np.zeros(len(column), dtype=bool)
    valid = mask_of(column.is_valid())
    if isinstance(column.type, pa.JsonType):
        # `datasets` stores a column of mixed types as JSON, where strings begin with a quote.
        return valid & ~json_matches(column, '"')
    return valid


def refuse_invalid_utf8(location: str, name: str, column: pa.ChunkedArray) -> None:
    """Raises UserError for strings that are not UTF-8: readers do not check them, and any later use would fail."""
    if not is_string(column.type):
        return
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
        bad = np.array([value is not None and not _is_utf8(value) for value in values])
        refuse_rows(location, bad, lambda row: f"column {name!r} holds bytes that are not UTF-8")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def mask_of(values: pa.ChunkedArray) -> np.ndarray:
    """Mask of a column of booleans without nulls."""
    return values.to_numpy().astype(bool)


def python_value(column: pa.ChunkedArray, row: int) -> Any:
    """Value of one row as it is in the file, for messages; a JSON value is decoded."""
    value = column[row].as_py()
    return json.loads(value) if isinstance(column.type, pa.JsonType) else value


def is_string(kind: pa.DataType) -> bool:
    """Whether an arrow type is one of strings."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def json_matches(column: pa.ChunkedArray, pattern: str) -> np.ndarray:
    """Mask of the rows of a JSON column whose encoded value begins with the regular expression `pattern`."""
    stored = pa.chunked_array([chunk.storage for chunk in column.chunks])
    return mask_of(pc.fill_null(pc.match_substring_regex(stored, f"^{pattern}"), False))
