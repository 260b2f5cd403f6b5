"""Reading of CSV files with Python's csv module, strictly: what is no valid table is refused with its line."""

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from operator import itemgetter
from typing import IO

import pyarrow as pa

from mtl_dist.config.data_recipe import ReadConfig
from mtl_dist.data.reading.delimiter import csv_reader, find_delimiter
from mtl_dist.data.reading.lines import DecodedFile
from mtl_dist.data.reading.values import STRING, Block, Wanted
from mtl_dist.errors import UserError, did_you_mean

_MIN_RECORDS, _MAX_RECORDS = 64, 2048
_MAX_FIELD = 2**27
"""Characters of a field: far more than a text has, and few enough for the memory if a quote never closes."""
csv.field_size_limit(_MAX_FIELD)
_QUOTES = "a quote within quotes is doubled, and read.quotechar=null takes quotes as they are"


class CsvFile:
    """The records of an open CSV file, in blocks; `name` begins error messages."""

    def __init__(self, file: IO[bytes], name: str, read: ReadConfig, tabs: bool) -> None:
        """Reads the header. `tabs`: whether tabs separate the fields if `read` names no delimiter."""
        self._name = name
        self._has_header = read.header
        self._fault: UserError | None = None
        self._text = DecodedFile(file, name, read.encoding)
        blocks = self._text.lines()
        lines = list(chain.from_iterable(islice(blocks, 2)))  # all of a short file, whose last line is a block
        # As many records as there are lines in the first block, so that long records make no large blocks.
        self._block_records = min(max(_MIN_RECORDS, len(lines)), _MAX_RECORDS)
        delimiter = read.delimiter or ("\t" if tabs else find_delimiter(name, lines, read.quotechar))
        self._reader = csv_reader(chain.from_iterable(chain([lines], blocks)), delimiter, read.quotechar)
        self._first, self._first_line = self._first_record()
        self.columns: list[str] = self._first if read.header else [str(index) for index in range(len(self._first))]
        """Names of the columns, in order."""

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Yields the wanted columns, block by block. Raises UserError."""
        fields = [itemgetter(self._position(name)) for name in wanted.names]
        for records, first_line in self._records():
            self._check_widths(records, first_line)
            filled = list(filter(None, records))  # an empty line is no record
            batch = wanted.batch([pa.array(list(map(field, filled)), STRING) for field in fields])
            yield Block(batch, partial(self._place, records, first_line))

    def _place(self, records: Sequence[list[str]], first_line: int, row: int) -> str:
        """Place of the row `row` of a block, which counts no empty lines."""
        index = [index for index, record in enumerate(records) if record][row]
        return f"{self._name} line {first_line + sum(map(self._lines_of, records[:index]))}"

    def _position(self, name: str) -> int:
        if name not in self.columns:
            raise UserError(f"{self._name}: no column {name!r}{did_you_mean(name, self.columns)}")
        if self.columns.count(name) > 1:
            raise UserError(f"{self._name} line {self._first_line}: several columns have the name {name!r}")
        return self.columns.index(name)

    def _first_record(self) -> tuple[list[str], int]:
        """The first record of the file and its line."""
        while (first := self._read(1))[0] == [[]]:
            pass
        records, line = first
        if not records:
            raise UserError(f"{self._name}: the file is empty; a CSV file begins with the names of its columns")
        return records[0], line

    def _records(self) -> Iterator[tuple[list[list[str]], int]]:
        """Blocks of records and the line where each block begins."""
        if not self._has_header:
            yield [self._first], self._first_line
        while (block := self._read(self._block_records))[0]:
            yield block

    def _read(self, count: int) -> tuple[list[list[str]], int]:
        """The next records, `count` at most, and the line where the first one begins."""
        if self._fault:
            raise self._fault
        first_line = self._reader.line_num + 1
        records: list[list[str]] = []
        try:
            records.extend(islice(self._reader, count))
        except csv.Error as error:
            line = first_line + sum(map(self._lines_of, records))
            self._fault = UserError(f"{self._name} line {line}: {_explained(error)}")
            if not records:  # otherwise after these have been checked
                raise self._fault from error
        return records, first_line

    def _check_widths(self, records: Sequence[list[str]], first_line: int) -> None:
        """Raises UserError for the first record, if any, with more or fewer fields than there are columns."""
        width = len(self.columns)
        if set(map(len, records)) <= {0, width}:
            return
        index = next(index for index, record in enumerate(records) if len(record) not in (0, width))
        line = first_line + sum(map(self._lines_of, records[:index]))
        found = len(records[index])
        first = "header" if self._has_header else "first row"
        hint = ""
        if found == width + 1:
            hint = "; a text with a delimiter needs quotes, and a column of row numbers a name"
        elif found > width:
            hint = "; a text with delimiters needs quotes"
        raise UserError(f"{self._name} line {line}: the {first} has {width} fields, and this row {found}{hint}")

    def _lines_of(self, record: Sequence[str]) -> int:
        """Lines that a record takes in its file."""
        return 1 + sum(map(self._text.line_ends, record))


def _explained(error: csv.Error) -> str:
    message = str(error)
    if "unexpected end of data" in message:
        return f"a quote opens in this row and never closes; {_QUOTES}"
    if "field larger" in message:
        return f"a field of more than {_MAX_FIELD} characters; does a quote open in this row and never close?"
    if "expected after" in message:
        return f"text behind a closing quote, or a quote before it was left open; {_QUOTES}"
    if "new-line character" in message:
        return "a CR inside of a field; a text with line ends needs quotes"
    return f"no valid CSV ({message})"
