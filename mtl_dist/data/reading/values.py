"""Conversion of values as a file holds them to columns of strings; null is a missing value."""

import datetime
import decimal
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtl_dist.errors import UserError

STRING = pa.large_string()
Place = Callable[[int], str]
"""Name and place in its file of a row of a block, for messages."""


class Block(NamedTuple):
    """Rows that follow each other in a file."""

    batch: pa.RecordBatch
    """The wanted columns."""
    place: Place
    """Place of a row of the batch."""


@dataclass(frozen=True)
class Wanted:
    """The columns that are read."""

    text: tuple[str, ...]
    """Columns that must hold strings; these stay as they are."""
    values: tuple[str, ...]
    """Columns that may hold numbers, booleans and dates too; blank ones become null."""

    @property
    def names(self) -> list[str]:
        """All names, each once: those of texts, then those of values."""
        return list(dict.fromkeys([*self.text, *self.values]))

    def batch(self, columns: Sequence[pa.Array]) -> pa.RecordBatch:
        """A record batch of string columns in the order of `names`."""
        cleaned = [
            _blank_as_null(column) if name in self.values else column
            for name, column in zip(self.names, columns, strict=True)
        ]
        return pa.record_batch(cleaned, schema=pa.schema([(name, STRING) for name in self.names]))

    def python_column(self, name: str, values: list[Any], place: Place) -> pa.Array:
        """Strings of a column of Python values. Raises UserError, with the place, for a value that is not allowed."""
        if not set(map(type, values)) <= {str, type(None)}:
            values = [self._string(name, value, row, place) for row, value in enumerate(values)]
        try:
            return pa.array(values, STRING)
        except UnicodeEncodeError:
            row = next(row for row, value in enumerate(values) if value and not _is_unicode(value))
            raise UserError(f"{place(row)}: {name!r} has half of a surrogate pair") from None

    def arrow_column(self, name: str, column: pa.Array, classes: Sequence[str] | None, place: Place) -> pa.Array:
        """Strings of an arrow column; integers are class indices if there are `classes`, and -1 is missing.

        Raises UserError, with the place, for a value that is not allowed.
        """
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if _is_string(column.type):
            return _valid_strings(name, column.cast(STRING), place)
        if pa.types.is_null(column.type):
            return column.cast(STRING)
        try:
            encoded = _storage(column).dictionary_encode()
        except pa.ArrowNotImplementedError:  # for lists and structs
            return self.python_column(name, column.to_pylist(), place)
        rows = encoded.indices

        def place_of(index: int) -> str:
            return place(int(np.flatnonzero(pc.equal(rows, index).to_numpy(zero_copy_only=False))[0]))

        try:
            distinct = _python_values(column.type, encoded.dictionary)
        except (OverflowError, ValueError) as error:  # a date of a year that Python's dates do not have
            at = place_of(_first_out_of_range(encoded.dictionary))
            raise UserError(f"{at}: column {name!r} holds a {column.type} that is out of range ({error})") from error
        if classes and pa.types.is_integer(column.type):
            distinct = [_class_name(name, classes, value, place_of, index) for index, value in enumerate(distinct)]
        return self.python_column(name, distinct, place_of).take(rows)

    def _string(self, name: str, value: Any, row: int, place: Place) -> str | None:
        if value is None or isinstance(value, str):
            return value
        if name in self.text:
            raise UserError(f"{place(row)}: text column {name!r} holds {_shown(value)}, no string")
        if isinstance(value, float | np.floating):
            if math.isinf(value):
                raise UserError(f"{place(row)}: column {name!r} holds {value}")
            return None if math.isnan(value) else float_string(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        if isinstance(value, int | decimal.Decimal):
            return str(value)
        raise UserError(f"{place(row)}: column {name!r} holds {_shown(value)}, no single value")


def float_string(value: float | np.floating) -> str:
    """The shortest decimal string of a finite float of its precision; whole numbers in full, with `.0`."""
    return f"{int(value)}.0" if float(value).is_integer() else str(value)


def _blank_as_null(column: pa.Array) -> pa.Array:
    blank = pc.or_(pc.equal(column, ""), pc.utf8_is_space(column))
    return pc.if_else(blank, pa.scalar(None, STRING), column)


def _shown(value: Any) -> str:
    """A value for a message, not longer than a line."""
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _valid_strings(name: str, column: pa.Array, place: Place) -> pa.Array:
    """The column itself. Raises UserError for bytes that are not UTF-8: arrow's readers do not check them."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError:
                raise UserError(f"{place(row)}: column {name!r} holds bytes that are not UTF-8") from None
    return column


def _storage(column: pa.Array) -> pa.Array:
    """A column in a type that can be encoded as a dictionary, with the same values."""
    if isinstance(column, pa.ExtensionArray):
        return column.storage
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column


def _python_values(kind: pa.DataType, distinct: pa.Array) -> list[Any]:
    """Python values of an array without nulls; floats in their own precision, which decides on their digits."""
    if pa.types.is_floating(distinct.type):
        return list(distinct.to_numpy())
    values = distinct.to_pylist()
    # `datasets` stores a column of mixed types as JSON.
    return [json.loads(value) for value in values] if isinstance(kind, pa.JsonType) else values


def _first_out_of_range(values: pa.Array) -> int:
    """Index of the first value that has no Python value."""
    for index, value in enumerate(values):
        try:
            value.as_py()
        except (OverflowError, ValueError):
            return index
    return 0


def _class_name(name: str, classes: Sequence[str], value: int, place: Place, index: int) -> str | None:
    if value == -1:  # how `datasets` writes a missing class
        return None
    if not 0 <= value < len(classes):
        raise UserError(f"{place(index)}: column {name!r} holds class {value}, and there are {len(classes)} classes")
    if not classes[value].strip():
        raise UserError(f"{place(index)}: column {name!r} holds class {value}, which has no name")
    return classes[value]
