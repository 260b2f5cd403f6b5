"""Texts from a file of any length, row by row: plain text, JSON lines or CSV.

Rows are checked as `sources` checks those of a run, and what is wrong is said with file and line.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from mtl_dist.errors import UserError, did_you_mean

FORMATS = ("text", "jsonl", "csv")
ENDINGS = {".txt": "text", ".text": "text", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
csv.field_size_limit(2**31 - 1)  # the limit is there for memory; a text may be longer than its 131072 characters


@dataclass(frozen=True)
class TextSource:
    """How rows are read from an open file."""

    name: str
    """Of the file, for messages."""
    kind: str
    """One of FORMATS."""
    columns: Sequence[str]
    """One, or two for a pair."""
    empty: Literal["error", "skip"] = "error"
    """Whether a row without text is refused, or comes as None."""

    def rows(self, file: IO[bytes]) -> Iterator[tuple[str, ...] | None]:
        """The texts of each row, in order. Raises UserError for the first row that cannot be used."""
        reader = {"text": self._plain, "jsonl": self._objects, "csv": self._records}[self.kind]
        for line, values in reader(_Lines(self.name, file)):
            texts = tuple(self._checked(line, name, value) for name, value in zip(self.columns, values, strict=True))
            if all(texts):
                yield texts
            elif self.empty == "skip":
                yield None
            else:
                raise self._fault(line, "text is empty; data.empty_text=skip leaves such rows out")

    def _fault(self, line: int, what: str) -> UserError:
        return UserError(f"{self.name} line {line}: {what}")

    def _checked(self, line: int, name: str, value: Any) -> str:
        """A text as it is, or nothing where it is missing or white space alone."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._fault(line, f"text column {name!r} holds {value!r}, no string")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._fault(line, f"{name!r} has half of a surrogate pair") from None
        return value if value.strip() else ""

    def _plain(self, lines: "_Lines") -> Iterator[tuple[int, Sequence[Any]]]:
        for text in lines:
            yield lines.number, [text.rstrip("\r\n")]

    def _objects(self, lines: "_Lines") -> Iterator[tuple[int, Sequence[Any]]]:
        for text in lines:
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise self._fault(lines.number, f"no valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise self._fault(lines.number, "no JSON object")
            for name in self.columns:
                if name not in row:
                    raise self._fault(lines.number, f"no column {name!r}{did_you_mean(name, row)}")
            yield lines.number, [row[name] for name in self.columns]

    def _records(self, lines: "_Lines") -> Iterator[tuple[int, Sequence[Any]]]:
        reader = csv.reader(lines, strict=True)
        places, width, line = [0], 1, 1
        while (record := self._next(reader, line)) is not None:
            if line == 1:
                width = len(record)
                for name in self.columns:
                    if name not in record:
                        raise self._fault(line, f"no column {name!r}{did_you_mean(name, record)}")
                places = [record.index(name) for name in self.columns]
            elif record:  # an empty line is no record
                if len(record) != width:
                    raise self._fault(line, f"{len(record)} fields, and {width} columns")
                yield line, [record[place] for place in places]
            line = lines.number + 1

    def _next(self, reader: Iterator[list[str]], line: int) -> list[str] | None:
        try:
            return next(reader, None)
        except csv.Error as error:
            raise self._fault(line, f"no valid CSV ({error})") from error


class _Lines(Iterator[str]):
    """The lines of a file as text, counted; a byte order mark is left out."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self.number = 0
        self._name = name
        self._lines = iter(file)

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            what = f"byte {error.start} of its line is not UTF-8"
            raise UserError(f"{self._name} line {self.number}: {what}") from error
