"""Reads texts from a file of any length, row by row: plain text, JSON lines or CSV.

The checks of a row are those of training data (`data.sources`); an error names file and line.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from mtl_dist.errors import UserError, did_you_mean

FORMATS = ("text", "jsonl", "csv")
ENDINGS = {".txt": "text", ".text": "text", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
csv.field_size_limit(2**31 - 1)  # texts may be longer than the default of 131072 characters


@dataclass(frozen=True)
class TextSource:
    """Format and text columns of an open file."""

    name: str
    """Name of the file, for messages."""
    kind: str
    """One of FORMATS."""
    columns: Sequence[str]
    """Text columns: one, or two for a pair."""
    empty: Literal["error", "skip"] = "error"
    """Whether a row without text is an error, or is yielded as None."""

    def rows(self, file: IO[bytes]) -> Iterator[tuple[str, ...] | None]:
        """The texts of each row, in order. Raises UserError for the first row that cannot be used."""
        reader = {"text": self._plain_lines, "jsonl": self._json_objects, "csv": self._csv_records}[self.kind]
        for line, values in reader(_Lines(self.name, file)):
            texts = tuple(
                self._checked_text(line, name, value) for name, value in zip(self.columns, values, strict=True)
            )
            if all(texts):
                yield texts
            elif self.empty == "skip":
                yield None
            else:
                raise self._error(line, "text is empty; data.empty_text=skip leaves such rows out")

    def _error(self, line: int, what: str) -> UserError:
        return UserError(f"{self.name} line {line}: {what}")

    def _checked_text(self, line: int, name: str, value: Any) -> str:
        """The text unchanged; an empty string where it is missing or only white space. Raises UserError."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._error(line, f"text column {name!r} holds {value!r}, no string")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self._error(line, f"{name!r} has half of a surrogate pair") from None
        return value if value.strip() else ""

    def _plain_lines(self, lines: "_Lines") -> Iterator[tuple[int, Sequence[Any]]]:
        for text in lines:
            yield lines.number, [text.rstrip("\r\n")]

    def _json_objects(self, lines: "_Lines") -> Iterator[tuple[int, Sequence[Any]]]:
        for text in lines:
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise self._error(lines.number, f"no valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise self._error(lines.number, "no JSON object")
            for name in self.columns:
                if name not in row:
                    raise self._error(lines.number, f"no column {name!r}{did_you_mean(name, row)}")
            yield lines.number, [row[name] for name in self.columns]

    def _csv_records(self, lines: "_Lines") -> Iterator[tuple[int, Sequence[Any]]]:
        reader = csv.reader(lines, strict=True)
        positions, width, line = [0], 1, 1
        while (record := self._next(reader, line)) is not None:
            if line == 1:
                width = len(record)
                for name in self.columns:
                    if name not in record:
                        raise self._error(line, f"no column {name!r}{did_you_mean(name, record)}")
                positions = [record.index(name) for name in self.columns]
            elif record:  # an empty line is no record
                if len(record) != width:
                    raise self._error(line, f"{len(record)} fields, and {width} columns")
                yield line, [record[position] for position in positions]
            line = lines.number + 1

    def _next(self, reader: Iterator[list[str]], line: int) -> list[str] | None:
        try:
            return next(reader, None)
        except csv.Error as error:
            raise self._error(line, f"no valid CSV ({error})") from error


class _Lines(Iterator[str]):
    """The lines of a file, decoded from UTF-8 and counted; a byte order mark is dropped."""

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
