"""Reading of a table that nothing is known about: how its file is written, and statistics of its columns."""

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from mtl_dist.config.data_recipe import ReadConfig
from mtl_dist.data.reading.files import format_of, open_file
from mtl_dist.data.reading.lines import marked_encoding
from mtl_dist.data.reading.table import TableFile
from mtl_dist.errors import UserError
from mtl_dist.inspection.column_profile import ColumnProfile

_WESTERN = "cp1252"
_DELIMITERS = (",", ";", "\t", "|")
_BLOCK = 1 << 20
_SHOWN = 40


@dataclass
class Scan:
    """A file, how it is read, and its columns."""

    table: TableFile
    notes: list[str] = field(default_factory=list)
    """One line for each choice of how to read the file that its content made necessary."""
    columns: dict[str, ColumnProfile] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Columns that hold more than single values, and what the reader says of them."""

    @property
    def rows(self) -> int:
        """Number of rows of the file."""
        return max((column.rows for column in self.columns.values()), default=0)


def scan(path: str, advance: Callable[[int], None]) -> Scan:
    """Reads a whole file; `advance` is called with each number of rows just read.

    Raises UserError for a file that cannot be read, has no rows, or is of a format that has no columns.
    """
    kind = format_of(path)
    if kind is None or kind == "text":
        raise UserError(f"{path}: is no table by its name; expected .csv, .tsv, .json, .jsonl, .parquet or .arrow")
    found = Scan(TableFile(path, kind))
    if kind in ("csv", "json"):
        found.table = TableFile(path, kind, _encoding(found))
    try:
        found.columns = _profiles(found.table, found.table.columns(), advance)
    except UserError:
        if kind == "csv":
            found.table = TableFile(path, kind, _csv_format(found))
        _profile_each(found, advance)
    if kind == "csv" and (name := _value_as_name(found)) is not None:
        found.notes.append(f"header: false, because the first line has {name!r}, a value of its column")
        found.table = TableFile(path, kind, found.table.read.model_copy(update={"header": False}))
        _profile_each(found, advance)
    if not found.rows:
        raise UserError(f"{path}: has no rows")
    return found


def merged(scans: Sequence[Scan]) -> dict[str, ColumnProfile]:
    """Statistics of the columns that all of several files have, over all their rows."""
    if len(scans) == 1:
        return scans[0].columns
    shared = [name for name in scans[0].columns if all(name in one.columns for one in scans)]
    return {name: _sum([one.columns[name] for one in scans]) for name in shared}


def _sum(parts: Sequence[ColumnProfile]) -> ColumnProfile:
    total = ColumnProfile(parts[0].name)
    for part in parts:
        total.include(part)
    return total


def _encoding(found: Scan) -> ReadConfig:
    """The encoding of a text file: that of its byte order mark, else UTF-8, else Western European."""
    path = found.table.path
    with open_file(path) as file:
        begin = file.read(4)
        if marked := marked_encoding(begin):
            found.notes.append(f"encoding: {marked}, by its first bytes")
            return ReadConfig(encoding=marked)
        decoder = codecs.getincrementaldecoder("utf-8")()
        data, before = begin, b""
        try:
            while data:
                decoder.decode(data)
                before, data = data, file.read(_BLOCK)
            decoder.decode(b"", final=True)
            return ReadConfig()
        except UnicodeDecodeError as error:
            word = _word_at(before[-_SHOWN:] + data, error.object[error.start : error.start + 1])
    found.notes.append(
        f"encoding: {_WESTERN}, because it is not UTF-8 and has e.g. {word!r}; check that it reads right"
    )
    return ReadConfig(encoding=_WESTERN)


def _word_at(data: bytes, byte: bytes) -> str:
    """The word around the first occurrence of a byte, as _WESTERN decodes it."""
    words = [word for word in data.split() if byte in word]
    return (words[0] if words else byte).decode(_WESTERN, "replace")[:_SHOWN]


def _csv_format(found: Scan) -> ReadConfig:
    """Delimiter and quotes of a CSV file: as the reader finds them, else what divides all its rows evenly.

    Raises the reader's error where there is no such choice, or several.
    """
    path, read = found.table.path, found.table.read
    first_error = _fault(path, read)
    if first_error is None:
        return read
    # Between commas, a quote that never closes is a mistake; between tabs, it is a character like any other.
    choices = [*((delimiter, '"') for delimiter in _DELIMITERS), ("\t", None)]
    copies = [read.model_copy(update={"delimiter": one, "quotechar": quotechar}) for one, quotechar in choices]
    fitting = [one for one in copies if _fault(path, one) is None and len(TableFile(path, "csv", one).columns()) > 1]
    if len(fitting) > 1 or not fitting:
        raise first_error
    (choice,) = fitting
    found.notes.append(f"delimiter: {choice.delimiter!r}, the only one that divides all rows into equally many fields")
    if choice.quotechar is None:
        found.notes.append(f"quotechar: null, because with quotes: {str(first_error).removeprefix(path).strip(': ')}")
    return choice


def _fault(path: str, read: ReadConfig) -> UserError | None:
    """The error of reading all rows, or None."""
    table = TableFile(path, "csv", read)
    try:
        for _ in table.batches([], table.columns()[:1]):
            pass
    except UserError as error:
        return error
    return None


def _profile_each(found: Scan, advance: Callable[[int], None]) -> None:
    """Fills in `columns` and, by reading column by column where all together fail, `unreadable`.

    Raises UserError if no column can be read.
    """
    names = list(dict.fromkeys(found.table.columns()))
    try:
        found.columns = _profiles(found.table, names, advance)
        return
    except UserError as error:
        first_error = error
    for name in names:
        try:
            found.columns |= _profiles(found.table, [name], lambda rows: None)
        except UserError as error:
            found.unreadable[name] = str(error)
    if not found.columns:
        raise first_error


def _profiles(table: TableFile, names: Sequence[str], advance: Callable[[int], None]) -> dict[str, ColumnProfile]:
    profiles = {name: ColumnProfile(name) for name in names}
    for batch in table.batches([], names):
        for name, profile in profiles.items():
            profile.add(batch.column(name))
        advance(len(batch))
    return profiles


def _value_as_name(found: Scan) -> str | None:
    """The name of a column that is also one of a few values of this column: the first line is a row, no header."""
    for name, column in islice(found.columns.items(), 100):
        if column.counts and 1 < len(column.counts) <= 100 and column.counts.get(name, 0) > 1:
            return name
    return None
