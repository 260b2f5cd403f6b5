"""Search for the line of a data file that made its reader fail; the readers name no row, or a wrong one.

Only called after a reader has failed, because it parses line by line.
"""

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtl_dist.config.recipe import TaskConfig

INT64 = range(-(2**63), 2**63)


def find_faulty_line_of_split(task: TaskConfig, split: str) -> str | None:
    """Location and fault of the first faulty line of a task's split, as `find_faulty_line` returns them."""
    return find_faulty_line(task.path, "".join(task.data_files.get(split, [])[:1]), [*(task.text or ()), task.label])


def find_faulty_line(builder: str, pattern: str, columns: list[str]) -> str | None:
    """Location and fault of the first faulty line of the local files that match `pattern`.

    `builder` is the reader of `datasets`: json (one object per line; rows count from 0) or csv. `columns` are the
    columns that are used. Returns None if no line is faulty or the files are not local text files.
    """
    if builder not in ("json", "csv") or "://" in pattern:
        return None
    types: dict[str, type] = {}
    row = 0
    for path, number, line in _lines(pattern):
        location = f"row {row} (from 0)" if builder == "json" else f"line {number} of {path}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            return f"{location}: byte {error.start} of its line is not UTF-8"
        if builder == "json" and text.strip():
            if row == 0 and text.lstrip().startswith("["):
                return None  # one JSON array over many lines
            if fault := _fault_of_object(text, columns, types):
                return f"{location}: {fault}"
            row += 1
    return None


def _lines(pattern: str) -> Iterator[tuple[str, int, bytes]]:
    """Yields file name, line number (from 1) and content of each line."""
    for path in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, 1):
                yield path, number, line


def _fault_of_object(text: str, columns: list[str], types: dict[str, type]) -> str | None:
    """Fault of one line of JSON, or None. `types` has the types of the columns in earlier rows and is updated."""
    pairs: list[tuple[str, Any]] = []

    def keep(found: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = found  # the outermost object comes last
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
    """Fault of one value of column `name`, or None."""
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
