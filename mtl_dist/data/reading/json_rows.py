"""Reading of JSON files: an object on each line, or one array of objects."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import IO, Any

import pyarrow as pa

from mtl_dist.data.reading.lines import line_at, line_blocks
from mtl_dist.data.reading.values import Wanted
from mtl_dist.errors import UserError, did_you_mean

_BLOCK_ROWS = 2048
_SPACE = " \t\r\n"
_NAMES_FROM_ROWS = 1000
_EXPECTED = "a file has one object on each line, or is one array of objects"
Block = tuple[list[Any], Callable[[int], int]]
"""Values, and a function that gives the line where a value of the block begins."""


class JsonFile:
    """The rows of an open JSON file, in blocks; `name` begins error messages."""

    def __init__(self, file: IO[bytes], name: str, encoding: str) -> None:
        self._name = name
        self._lines = line_blocks(file, name, encoding)

    @property
    def columns(self) -> list[str]:
        """Keys of the first rows, in the order in which they first occur."""
        rows = chain.from_iterable(rows for rows, _ in self._rows())
        return list(dict.fromkeys(chain.from_iterable(islice(rows, _NAMES_FROM_ROWS))))

    def batches(self, wanted: Wanted) -> Iterator[pa.RecordBatch]:
        """Yields the wanted columns, block by block; a row without a key has null. Raises UserError."""
        unseen = wanted.names
        known: dict[str, None] = {}
        count = 0
        for rows, line_of in self._rows():
            known |= dict.fromkeys(chain.from_iterable(rows[: max(0, _NAMES_FROM_ROWS - count)]))
            count += len(rows)
            unseen = [name for name in unseen if not any(name in row for row in rows)]

            def place(row: int, line_of: Callable[[int], int] = line_of) -> str:
                return f"{self._name} line {line_of(row)}"

            columns = [wanted.python_column(name, [row.get(name) for row in rows], place) for name in wanted.names]
            yield wanted.batch(columns)
        if count and unseen:
            raise UserError(f"{self._name}: no column {unseen[0]!r}{did_you_mean(unseen[0], known)}")

    def _rows(self) -> Iterator[Block]:
        """Objects of the file. Raises UserError for a value that is none, and for an object with a key twice."""
        for values, line_of in self._values():
            if set(map(type, values)) != {dict}:
                index, value = next((index, value) for index, value in enumerate(values) if type(value) is not dict)
                found = f"the key {value.key!r} occurs twice" if isinstance(value, _KeyedTwice) else "no JSON object"
                raise UserError(f"{self._name} line {line_of(index)}: {found}")
            yield values, line_of

    def _values(self) -> Iterator[Block]:
        first: list[str] = []
        begin = ""
        while not begin and (lines := next(self._lines, None)) is not None:
            first += lines
            begin = next((line.strip(_SPACE) for line in lines if line.strip(_SPACE)), "")
        if begin.startswith("["):
            yield from self._array("".join(chain(first, chain.from_iterable(self._lines))))
        else:
            yield from self._values_of_lines(chain([first], self._lines))

    def _values_of_lines(self, blocks: Iterable[list[str]]) -> Iterator[Block]:
        """Values of a file with one on each line; blank lines are skipped."""
        before = 0
        for lines in blocks:
            values: list[Any] = []
            numbers: list[int] = []
            for number, line in enumerate(lines, before + 1):
                text = line.strip(_SPACE)
                if text:
                    values.append(self._value(text, number))
                    numbers.append(number)
            before += len(lines)
            if values:
                yield values, numbers.__getitem__

    def _value(self, text: str, line: int) -> Any:
        try:
            value, end = _DECODER.raw_decode(text)
        except (ValueError, RecursionError) as error:
            raise self._invalid(line, error) from error
        if end != len(text):
            raise UserError(f"{self._name} line {line}: more than one JSON value; {_EXPECTED}")
        return value

    def _array(self, text: str) -> Iterator[Block]:
        """Values of a file that is one array; the text is in memory, its values are not."""
        position = _skip(text, _skip(text, 0) + 1)
        closed = text.startswith("]", position)
        while not closed:
            values: list[Any] = []
            starts: list[int] = []
            while not closed and len(values) < _BLOCK_ROWS:
                starts.append(position)
                try:
                    value, position = _DECODER.raw_decode(text, position)
                except (ValueError, RecursionError) as error:
                    raise self._invalid(line_at(text[: getattr(error, "pos", position)]), error) from error
                values.append(value)
                position = _skip(text, position)
                closed = text.startswith("]", position)
                if not closed:
                    if not text.startswith(",", position):
                        raise UserError(f"{self._name} line {line_at(text[:position])}: no comma or ] behind a value")
                    position = _skip(text, position + 1)
            yield values, lambda row, starts=starts: line_at(text[: starts[row]])
        rest = _skip(text, position + 1)
        if rest != len(text):
            raise UserError(f"{self._name} line {line_at(text[:rest])}: more behind the array; {_EXPECTED}")

    def _invalid(self, line: int, error: ValueError | RecursionError) -> UserError:
        what = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return UserError(f"{self._name} line {line}: no valid JSON ({what}); {_EXPECTED}")


class _KeyedTwice(dict[str, Any]):
    """An object that has a key twice."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    twice = _KeyedTwice(found)
    keys = [key for key, _ in pairs]
    twice.key = next(key for key in keys if keys.count(key) > 1)
    return twice


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _skip(text: str, position: int) -> int:
    """The first position from `position` that is no white space."""
    while text[position : position + 1] in _SPACE and position < len(text):
        position += 1
    return position
