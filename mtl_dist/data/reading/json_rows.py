"""Reading of JSON files: an object on each line, or one array of objects."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import IO, Any

from mtl_dist.data.reading.lines import DecodedFile
from mtl_dist.data.reading.values import Block, Wanted
from mtl_dist.errors import UserError, did_you_mean

_BLOCK_ROWS = 1024
_SPACE = " \t\r\n"
_SPACES = re.compile(f"[{_SPACE}]*")
_NAMES_FROM_ROWS = 1000
_MAX_NAMES = 1000
_EXPECTED = "a file has one object on each line, or is one array of objects"
Values = tuple[list[Any], Callable[[int], int]]
"""Values that follow each other, and a function that gives the line where one of them begins."""


class JsonFile:
    """The rows of an open JSON file, in blocks; `name` begins error messages."""

    def __init__(self, file: IO[bytes], name: str, encoding: str) -> None:
        self._name = name
        self._text = DecodedFile(file, name, encoding)

    @property
    def columns(self) -> list[str]:
        """Keys of the first rows, in the order in which they first occur."""
        rows = chain.from_iterable(rows for rows, _ in self._rows())
        return list(dict.fromkeys(chain.from_iterable(islice(rows, _NAMES_FROM_ROWS))))

    def check_columns(self, wanted: Wanted) -> None:
        """Reads until each wanted column has occurred. Raises UserError for one that no row has."""
        unseen = wanted.names
        known: dict[str, None] = {}
        for rows, _ in self._rows():
            unseen = [name for name in unseen if not any(name in row for row in rows)]
            if not unseen:
                return
            if len(known) < _MAX_NAMES:
                known |= dict.fromkeys(chain.from_iterable(rows))
        if known:
            raise UserError(f"{self._name}: no column {unseen[0]!r}{did_you_mean(unseen[0], known)}")

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Yields the wanted columns, block by block; a row without a key has null. Raises UserError."""
        for number, (rows, line_of) in enumerate(self._rows()):

            def place(row: int, line_of: Callable[[int], int] = line_of) -> str:
                return f"{self._name} line {line_of(row)}"

            if number == 0 and len(rows) == 1 and any(isinstance(rows[0].get(name), list) for name in wanted.names):
                raise UserError(f"{place(0)}: an object of lists; write one object for each row")
            columns = [wanted.python_column(name, [row.get(name) for row in rows], place) for name in wanted.names]
            yield Block(wanted.batch(columns), place)

    def _rows(self) -> Iterator[Values]:
        """Objects of the file. Raises UserError for a value that is none, and for an object with a key twice."""
        for values, line_of in self._values():
            if set(map(type, values)) != {dict}:
                index, value = next((index, value) for index, value in enumerate(values) if type(value) is not dict)
                found = f"the key {value.key!r} occurs twice" if isinstance(value, _KeyedTwice) else "no JSON object"
                raise UserError(f"{self._name} line {line_of(index)}: {found}")
            yield values, line_of

    def _values(self) -> Iterator[Values]:
        blocks = self._text.blocks()
        begin = next(blocks, "")
        while not begin.strip(_SPACE) and (text := next(blocks, "")):
            begin += text
        whole = chain([begin], blocks)
        if begin.startswith("[", _skip(begin, 0)):
            yield from self._array("".join(whole))
        else:
            yield from self._values_of_lines(self._text.lines(whole))

    def _values_of_lines(self, blocks: Iterable[list[str]]) -> Iterator[Values]:
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

    def _array(self, text: str) -> Iterator[Values]:
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
                    raise self._invalid(self._text.line_at(text, getattr(error, "pos", position)), error) from error
                values.append(value)
                position = _skip(text, position)
                closed = text.startswith("]", position)
                if not closed:
                    if not text.startswith(",", position):
                        raise UserError(
                            f"{self._name} line {self._text.line_at(text, position)}: no comma or ] behind a value"
                        )
                    position = _skip(text, position + 1)
            yield values, lambda row, starts=starts: self._text.line_at(text, starts[row])
        rest = _skip(text, position + 1)
        if rest != len(text):
            raise UserError(f"{self._name} line {self._text.line_at(text, rest)}: more behind the array; {_EXPECTED}")

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
    found = _SPACES.match(text, position)
    return found.end() if found else position
