"""JSON lines and arrays, and JSON that is refused with its line."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.data.reading.table import TableFile
from mtl_dist.errors import UserError
from tests.utils.tables import read_columns, table_of


def lines_of(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def refusal(table: TableFile) -> str:
    with pytest.raises(UserError) as error:
        read_columns(table, ["text"], ["label"])
    return str(error.value)


@pytest.mark.parametrize("write", [lines_of, json.dumps, lambda rows: json.dumps(rows, indent=1)])
def test_values_are_strings_as_they_are_written(write: Any, tmp_path: Path) -> None:
    labels = ["007", "2021-01-01", "NaN", "", " ", None, 1, -3, 10**30, 1.0, -0.0, 0.1, 1e16, float("nan"), True, False]
    table = table_of(tmp_path / "a.json", write([{"label": label, "text": "1"} for label in labels]))
    assert table.columns() == ["label", "text"]
    assert table.class_names() == {}
    numbers = ["1", "-3", str(10**30), "1.0", "0.0", "0.1", "10000000000000000.0", None, "true", "false"]
    expected = ["007", "2021-01-01", "NaN", None, None, None, *numbers]
    assert read_columns(table, ["text"], ["label"]) == {"text": ["1"] * len(labels), "label": expected}


def test_texts_stay_as_they_are(tmp_path: Path) -> None:
    texts = ["a\nb", "", " \u2028", "\0", "é😀", "2021-01-01", None]
    table = table_of(tmp_path / "a.jsonl", "\ufeff\n \n" + lines_of([{"text": text} for text in texts]) + "\r\n")
    assert read_columns(table, ["text"]) == {"text": texts}


def test_a_row_without_a_key_has_null(tmp_path: Path) -> None:
    rows = [{"text": "a"}] * 5000 + [{"label": "x", "more": {"text": 1}}]
    table = table_of(tmp_path / "a.jsonl", lines_of(rows))
    assert read_columns(table, ["text"], ["label"]) == {"text": ["a"] * 5000 + [None], "label": [None] * 5000 + ["x"]}
    assert table.columns() == ["text"]


def test_columns_are_the_keys_in_order_of_their_first_rows(tmp_path: Path) -> None:
    rows = [{"b": 1}, {"a": 1, "b": 2}, *[{"b": 1}] * 997, {"c": 1}, {"d": 1}]
    for content in (lines_of(rows), json.dumps(rows)):
        assert table_of(tmp_path / "a.json", content).columns() == ["b", "a", "c"]


@pytest.mark.parametrize("content", ["", "\n \n", "[]", " [\n] \n"])
def test_a_file_may_have_no_rows(content: str, tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.json", content)
    assert table.columns() == []
    assert read_columns(table, ["text"], ["label"]) == {"text": [], "label": []}


EXPECTED = "a file has one object on each line, or is one array of objects"
GOOD = '{"text": "a", "label": "x"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'{GOOD}\n\n{{"text": "b"\n', f"line 3: no valid JSON (Expecting ',' delimiter, column 13); {EXPECTED}"),
        (f"{GOOD} {GOOD}\n", f"line 1: more than one JSON value; {EXPECTED}"),
        (f"{GOOD},\n{GOOD}\n", f"line 1: more than one JSON value; {EXPECTED}"),
        (
            json.dumps({"text": "a"}, indent=1),
            "line 1: no valid JSON (Expecting property name enclosed in double quotes",
        ),
        (f'{GOOD}\n["a"]\n', "line 2: no JSON object"),
        (f'{GOOD}\n"a"\n', "line 2: no JSON object"),
        (f'{GOOD}\n{{"text": "a", "b": 1, "text": "c"}}', "line 2: the key 'text' occurs twice"),
        (f'{GOOD}\n{{"text": 5}}', "line 2: text column 'text' holds 5, no string"),
        (f'{GOOD}\n{{"text": true}}', "line 2: text column 'text' holds True, no string"),
        (f'{GOOD}\n{{"text": ["a"]}}', "line 2: text column 'text' holds ['a'], no string"),
        (f'{GOOD}\n{{"label": ["a"]}}', "line 2: column 'label' holds ['a'], no single value"),
        (f'{GOOD}\n{{"label": {{"a": 1}}}}', "line 2: column 'label' holds {'a': 1}, no single value"),
        (f'{GOOD}\n{{"label": -Infinity}}', "line 2: column 'label' holds -inf"),
        (f'{GOOD}\n{{"label": 1e999}}', "line 2: column 'label' holds inf"),
        (f'{GOOD}\n{{"text": "\\ud800"}}', "line 2: 'text' has half of a surrogate pair"),
        (f'{GOOD}\n{{"text": "a\tb"}}', "line 2: no valid JSON (Invalid control character at, column 12)"),
        (f"{GOOD}\n" + "[" * 100_000, "line 2: no valid JSON (maximum recursion depth exceeded"),
        (
            '{"text": ["a"], "label": ["x"]}',
            "line 1: an object of lists; write one object for each row",
        ),
        ('{"texts": "a", "label": "b"}', "no column 'text'; did you mean texts?"),
        ('{"text": "a"}\n' * 3000, "no column 'label'; choose from text"),
        (f"[{GOOD},\n{GOOD}\n{GOOD}]", "line 3: no comma or ] behind a value"),
        (f"[{GOOD},\n", f"line 2: no valid JSON (Expecting value, column 1); {EXPECTED}"),
        (f"[{GOOD},\n]", "line 2: no valid JSON (Expecting value"),
        (f"[{GOOD}\n", "line 2: no comma or ] behind a value"),
        ("[", "line 1: no valid JSON (Expecting value"),
        (f"[{GOOD},\n\n7]", "line 3: no JSON object"),
        (f'[{GOOD},\n{{"text":\n 7}}]', "line 2: text column 'text' holds 7, no string"),
        (f"[{GOOD}]\n[{GOOD}]", f"line 2: more behind the array; {EXPECTED}"),
    ],
)
def test_what_is_no_table_is_refused_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    found = refusal(table_of(tmp_path / "a.json", content)).removeprefix("a.json").lstrip(": ")
    assert found.startswith(message)
    assert "\n" not in found


def test_a_fault_far_down_is_found_at_its_line(tmp_path: Path) -> None:
    rows = [{"text": "a\nb", "label": 1}] * 9000
    table = table_of(tmp_path / "a.jsonl", lines_of(rows).replace("\n", "\n\n") + '{"text": 1}')
    assert refusal(table) == "a.jsonl line 18001: text column 'text' holds 1, no string"
    table = table_of(tmp_path / "a.json", json.dumps([*rows, {"text": 1}], indent=0))
    assert refusal(table) == f"a.json line {2 + 4 * 9000}: text column 'text' holds 1, no string"
    table = table_of(tmp_path / "a.json", json.dumps(rows, indent=0))
    places = [place(row) for batch, place in table.blocks(["text"], []) for row in range(batch.num_rows)][::1000]
    assert places == [f"a.json line {2 + 4 * row}" for row in range(0, 9000, 1000)]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.jsonl", lines_of([{"text": "a" * 1000, "label": "x"}]) * 20_000)
    tracemalloc.start()
    try:
        assert sum(batch.num_rows for batch in table.batches(["text"], ["label"])) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
