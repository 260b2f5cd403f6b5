"""Files about which nothing is known: encodings, delimiters, quotes, headers, columns that are no single values."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtl_dist.config.data_recipe import ReadConfig
from mtl_dist.errors import UserError
from mtl_dist.inspection.table_scan import scan
from tests.utils.tickets import COLUMNS, csv_text, tickets

ROWS = tickets(60)


def columns_of(path: Path) -> tuple[dict[str, dict[str, int] | None], ReadConfig, list[str]]:
    """Values of each column with their rows, how the file was read, and what is said of it."""
    done: list[int] = []
    found = scan(str(path), done.append)
    assert found.rows == max(column.rows for column in found.columns.values()) > 0
    assert sum(done) >= found.rows
    return {name: column.counts for name, column in found.columns.items()}, found.table.read, found.notes


def expected() -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {name: {} for name in COLUMNS}
    for row in ROWS:
        for name in COLUMNS:
            if row[name]:
                counts[name][row[name]] = counts[name].get(row[name], 0) + 1
    return counts


@pytest.mark.parametrize(
    ("delimiter", "encoding", "read", "note"),
    [
        (",", "utf-8", ReadConfig(), None),
        (";", "utf-8", ReadConfig(), None),
        ("\t", "utf-8-sig", ReadConfig(), None),
        (";", "cp1252", ReadConfig(encoding="cp1252"), "'Café'"),
        (",", "utf-16", ReadConfig(encoding="utf-16"), "by its first bytes"),
        (",", "utf-32", ReadConfig(encoding="utf-32"), "by its first bytes"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_csv_file_is_read_as_it_is_written(
    tmp_path: Path, delimiter: str, encoding: str, read: ReadConfig, note: str | None, compressed: bool
) -> None:
    data = csv_text(ROWS, COLUMNS, delimiter).encode(encoding)
    path = tmp_path / f"t.csv{'.gz' if compressed else ''}"
    path.write_bytes(gzip.compress(data) if compressed else data)
    counts, found, notes = columns_of(path)
    assert (counts, found) == (expected(), read)
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def test_the_same_rows_in_other_formats_are_the_same_columns(tmp_path: Path) -> None:
    rows = [{name: value or None for name, value in row.items()} for row in ROWS]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("t.json", "t.jsonl", "t.parquet"):
        assert columns_of(tmp_path / name) == (expected(), ReadConfig(), [])


@pytest.mark.parametrize(
    ("text", "read", "columns"),
    [
        ("a,b;c\n" + "1,x;y\n" * 30 + "3,v\n", ReadConfig(delimiter=","), ["a", "b;c"]),
        ('a\tb\n"one\tx\ntwo\ty\nthree\tx\n', ReadConfig(delimiter="\t", quotechar=None), ["a", "b"]),
        (
            "ham,Come to my house\nspam,Win a prize\nham,I am late\nham,Where are you\n",
            ReadConfig(header=False),
            ["0", "1"],
        ),
        ("only\nx\ny\n", ReadConfig(), ["only"]),
    ],
)
def test_what_the_rows_decide_is_noted(tmp_path: Path, text: str, read: ReadConfig, columns: list[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    counts, found, notes = columns_of(path)
    assert (list(counts), found) == (columns, read)
    assert len(notes) == sum(value != getattr(ReadConfig(), name) for name, value in read)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "the file is empty"),
        ("t.csv", "a,b\n", "has no rows"),
        ("t.jsonl", "", "has no rows"),
        ("t.csv", 'a,b\n"x,1\ny,2\n', "never closes"),
        ("t.csv", "a,b\n1,2\n1,2,3\n", "has 2 fields, and this row 3"),
        ("t.csv", "a,b;c\n" + "1,2;3\n" * 30, "could be divided by"),
        ("t.txt", "a\n", "is no table by its name"),
        ("t.xlsx", "a\n", "is no table by its name"),
        ("t.csv.gz", "a,b\n1,2\n", None),
    ],
)
def test_what_is_no_table_is_refused_in_a_line(tmp_path: Path, name: str, content: str, message: str | None) -> None:
    path = tmp_path / name
    path.write_text(content)
    if message is None:  # not compressed in spite of its name, which a reader of first bytes does not mind
        assert list(columns_of(path)[0]) == ["a", "b"]
        return
    with pytest.raises(UserError, match=message) as error:
        scan(str(path), lambda rows: None)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_columns_of_lists_are_left_out_and_the_others_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"row {index}", "tags": ["a", "b"], "label": index % 2} for index in range(9)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        found = scan(str(tmp_path / name), lambda rows: None)
        assert list(found.columns) == ["text", "label"]
        assert found.columns["label"].counts == {"0": 5, "1": 4}
        assert list(found.unreadable) == ["tags"]
        assert "no single value" in found.unreadable["tags"]
