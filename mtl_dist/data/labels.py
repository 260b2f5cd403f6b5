"""Label columns: their values as integers or strings, and the class index of each row.

Masks are bool arrays of shape [rows]; `usable` is the mask of the rows that are used.
"""

from collections.abc import Callable

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtl_dist.data.columns import is_string, json_matches, mask_of, python_value, refuse_invalid_utf8, refuse_rows
from mtl_dist.errors import UserError, clip, did_you_mean


def label_values(
    location: str, name: str, rows: datasets.Dataset, usable: np.ndarray, find_fault: Callable[[], str | None]
) -> pa.ChunkedArray:
    """The label column as integers or strings; a column with class names (`datasets.ClassLabel`) becomes these names.

    `find_fault` searches the files for the line that made their reader take the column for one of mixed types.

    Raises UserError for a usable row without a label, and for labels that are neither integers nor strings.
    """
    column = rows[:][name]
    refuse_invalid_utf8(location, name, column)
    feature = rows.features[name]
    missing = mask_of(column.is_null(nan_is_null=True))
    if is_string(column.type):
        column = column.cast(pa.string())
        missing |= mask_of(pc.fill_null(pc.equal(column, ""), True))

    def unlabelled(row: int) -> str:
        return f"label is {'empty' if column[row].as_py() == '' else 'null'}; leave out rows that have none"

    refuse_rows(location, missing & usable, unlabelled)
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        values = integers_of(column)
        _refuse_out_of_range(location, values, len(feature.names), usable)
        return pa.chunked_array([pa.array(feature.names).take(pa.array(np.where(usable, values, 0)))])
    if isinstance(column.type, pa.JsonType):
        column = _labels_of_json(location, column, missing, usable, find_fault)
    if pa.types.is_floating(column.type):
        column = _whole_numbers(location, column, missing, usable)
    if not (is_string(column.type) or pa.types.is_integer(column.type)):
        refuse_rows(location, usable, lambda row: f"label {column[row].as_py()!r} is neither an integer nor a string")
    return column


def _labels_of_json(
    location: str,
    column: pa.ChunkedArray,
    missing: np.ndarray,
    usable: np.ndarray,
    find_fault: Callable[[], str | None],
) -> pa.ChunkedArray:
    """The labels of a JSON column, which is what a reader makes of mixed types. Raises UserError if they are mixed."""
    whole = json_matches(column, r"-?\d+$")
    odd = ~whole if whole[np.argmax(usable)] else ~json_matches(column, '"')
    refuse_rows(
        location,
        odd & ~missing,
        lambda row: f"label {python_value(column, row)!r}: use integers only, or strings only",
    )
    # The types are mixed in the file only: the reader made a number of a text such as "1", or dropped the first of two
    # values of one row.
    if found := find_fault():
        raise UserError(f"{location} {found}")
    return pa.chunked_array([[None if gone else python_value(column, row) for row, gone in enumerate(missing)]])


def _whole_numbers(location: str, column: pa.ChunkedArray, missing: np.ndarray, usable: np.ndarray) -> pa.ChunkedArray:
    """Integers that a reader made floats because a label is missing. A column of floats without nulls stays as it is.

    Raises UserError for a usable row whose label is not an integer, or is too large for a float to be exact.
    """
    values = pc.fill_null(column, 0).to_numpy()
    odd = ~missing & ((values != np.floor(values)) | (np.abs(values) >= 2**53))
    refuse_rows(location, odd & usable, lambda row: f"label {values[row]} is neither an integer nor a string")
    if not missing.any():
        return column
    return pa.chunked_array([pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)])


def integers_of(column: pa.ChunkedArray) -> np.ndarray:
    """The values of a column of integers, [rows], with 0 in place of null."""
    return pc.fill_null(column, 0).to_numpy()


def _refuse_out_of_range(location: str, values: np.ndarray, num_labels: int, usable: np.ndarray) -> None:
    bad = ((values < 0) | (values >= num_labels)) & usable
    refuse_rows(location, bad, lambda row: f"label {values[row]} is out of range 0..{num_labels - 1}")


def class_indices(location: str, labels: pa.ChunkedArray, names: tuple[str, ...], usable: np.ndarray) -> np.ndarray:
    """Class index of each row, [rows] int64; undefined where the mask `usable` is not set.

    Raises UserError for a label that is out of range or not one of the class names `names`.
    """
    if not is_string(labels.type):
        values = integers_of(labels)
        _refuse_out_of_range(location, values, len(names), usable)
        return values.astype(np.int64)
    indices = pc.fill_null(pc.index_in(labels, value_set=pa.array(names, labels.type)), -1).to_numpy()

    def unknown(row: int) -> str:
        label = labels[row].as_py()
        return f"label {clip(label)!r} is not one of the classes{did_you_mean(label, names)}"

    refuse_rows(location, (indices < 0) & usable, unknown)
    return indices.astype(np.int64)
