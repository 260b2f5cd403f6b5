"""Search for the delimiter of a CSV file in its first lines."""

import csv
import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from mtl_dist.errors import UserError

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

NONE = "\0"
"""Delimiter of a file of one column: a character that no text file may contain."""
_CANDIDATES = ",;\t|"
_RECORDS = 20


def find_delimiter(name: str, lines: Sequence[str], quotechar: str | None) -> str:
    """The delimiter of the CSV file whose first lines are `lines`; NONE if its first line has none.

    A delimiter that occurs in the first record outside of quotes is the one; of several, the one that divides all of
    the first records into the same number of fields. Raises UserError if that leaves no or several delimiters.
    """
    header = _without_quoted("".join(lines).lstrip("\r\n"), quotechar)
    header = re.split(r"[\r\n]", header, maxsplit=1)[0]
    present = [one for one in _CANDIDATES if one in header]
    if len(present) == 1:
        return present[0]
    even = [one for one in present or _CANDIDATES if _divides_evenly(lines, one, quotechar)]
    if present and len(even) == 1:
        return even[0]
    if not present and not even:
        return NONE
    shown = " ".join(repr(one) for one in present or even)
    where = "the first line" if present else "every line but the first"
    raise UserError(f"{name} line 1: {where} could be divided by {shown}; set read.delimiter")


def csv_reader(lines: Iterable[str], delimiter: str, quotechar: str | None) -> "CsvReader":
    """Python's reader of CSV, in its strict mode."""
    if quotechar is None:
        return csv.reader(lines, strict=True, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    return csv.reader(lines, strict=True, delimiter=delimiter, quotechar=quotechar)


def _without_quoted(text: str, quotechar: str | None) -> str:
    """The text without its quoted fields, which begin at a line's begin or behind a candidate."""
    if quotechar is None:
        return text
    quote = re.escape(quotechar)
    return re.sub(rf"(?<![^{_CANDIDATES}\r\n]){quote}(?:[^{quote}]|{quote}{quote})*{quote}", "", text)


def _divides_evenly(lines: Sequence[str], delimiter: str, quotechar: str | None) -> bool:
    """Whether the first records all have the same number of fields, more than one; not the header if that has one."""
    records: list[list[str]] = []
    try:
        records.extend(islice(filter(None, csv_reader(lines, delimiter, quotechar)), _RECORDS))
    except csv.Error as error:
        if "unexpected end of data" not in str(error):  # where `lines` end within a record
            return False
    widths = {len(record) for record in records}
    if records and len(records[0]) == 1:
        widths = {len(record) for record in records[1:]}
    return len(widths) == 1 and widths != {1}
