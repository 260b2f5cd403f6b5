"""Where in a text file of data the fault is that its reader has stumbled over: readers name no row, or a wrong one.

Only called once something is wrong, for it reads line by line.
"""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INT64 = range(-(2**63), 2**63)


def find_fault(builder: str, pattern: str, columns: list[str]) -> str | None:
    """The first line at fault of the local files of a split, in words; None if none is, or they are not such files.

    `builder` is json (one object a line; rows count from 0) or csv; `columns` are those that are read.
    """
    if builder not in ("json", "csv") or "://" in pattern:
        return None
    types: dict[str, type] = {}
    row = 0
    for path, number, line in _lines(pattern):
        place = f"row {row} (from 0)" if builder == "json" else f"line {number} of {path}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            return f"{place}: byte {error.start} of its line is not UTF-8"
        if builder == "json" and text.strip():
            if row == 0 and text.lstrip().startswith("["):
                return None  # one array over many lines
            if fault := _fault_of_object(text, columns, types):
                return f"{place}: {fault}"
            row += 1
    return None


def _lines(pattern: str) -> Iterator[tuple[str, int, bytes]]:
    """File, number from 1 and content of each line."""
    for path in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                yield path, number, line


def _fault_of_object(text: str, columns: list[str], types: dict[str, type]) -> str | None:
    """`types` are those of the columns so far, and are added to."""
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = found  # of the outermost object at last
        return dict(found)

    try:
        value = json.loads(text, object_pairs_hook=keep)
    except (ValueError, RecursionError) as error:
        return f"no valid JSON ({error})"
    if not isinstance(value, dict):
        return "no JSON object"
    keys = [key for key, _ in pairs]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        return f"the key {twice!r} occurs twice"
    for name in columns:
        if fault := _fault_of_value(name, value.get(name), types):
            return fault
    return None


def _fault_of_value(name: str, value: Any, types: dict[str, type]) -> str | None:
    if isinstance(value, str) and not value.isprintable():
        try:
            value.encode()
        except UnicodeEncodeError:
            return f"{name!r} has half of a surrogate pair"
    if isinstance(value, int) and value not in INT64:
        return f"{name!r} is {value}, beyond 64 bits"
    kind = types.setdefault(name, type(value)) if value is not None else None
    if kind is not None and type(value) is not kind:
        return f"{name!r} is {value!r}, no {kind.__name__} as in the rows before"
    return None
