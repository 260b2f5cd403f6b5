from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest

from tests.utils.task_rows import GOOD, KINDS, Rows, a_task, checked, contents, refusal, row

STRING_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", STRING_TYPES, ids=str)
def test_every_arrow_string_type_is_accepted(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["a", "b"]).cast(kind), "label": pa.array(["no", "yes"]).cast(kind)})
    assert contents(checked(a_task(tmp_path, table, table, "parquet")))["test"] == [("a", "no"), ("b", "yes")]


@pytest.mark.parametrize("column", ["text", "label"])
def test_bytes_that_are_not_utf8_are_refused_with_their_row(tmp_path: Path, column: str) -> None:
    task = a_task(tmp_path, [row("a", "x"), row("b", "y"), row("c", "z")])
    path = Path(task.data_files["train"])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"b"' if column == "text" else b'"y"', b'"\xff"')
    path.write_bytes(b"".join(lines))
    message = f"tasks.t: train row 1 (from 0): column {column!r} holds bytes that are not UTF-8"
    assert refusal(task) == message


WRONG_TEXTS = [
    ("json", [row("a", 0), row(5, 1)], "train row 1 (from 0): text column 'text' holds 5, no string"),
    ("json", [row("a", 0), row(["b"], 1)], "train row 1 (from 0): text column 'text' holds ['b'], no string"),
    ("csv", [row("1", 0), row("2", 1)], "train row 0 (from 0): text column 'text' holds 1, no string; 1 more like it"),
    ("parquet", [row(None, 0), row(2.5, 1)], "train row 1 (from 0): text column 'text' holds 2.5, no string"),
    (
        "parquet",
        [row(b"a", 0), row(b"b", 1)],
        "train row 0 (from 0): text column 'text' holds b'a', no string; 1 more like it",
    ),
]


@pytest.mark.parametrize("empty_text", ["error", "skip"])
@pytest.mark.parametrize(("kind", "train", "message"), WRONG_TEXTS)
def test_text_of_another_type_is_refused(
    tmp_path: Path, kind: str, train: Rows, message: str, empty_text: Literal["error", "skip"]
) -> None:
    assert refusal(a_task(tmp_path, train, GOOD, kind), empty_text) == f"tasks.t: {message}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", " \t\u2003", None])
def test_empty_text_is_refused_by_default(tmp_path: Path, kind: str, text: str | None) -> None:
    task = a_task(tmp_path, GOOD, [*GOOD, row(text, 0), row(text, 1)], kind)
    message = "test row 2 (from 0): text is empty; data.empty_text=skip leaves such rows out; 1 more like it"
    assert refusal(task) == f"tasks.t: {message}"


@pytest.mark.parametrize("text", [["a", "b"], ["b", "a"]])
def test_sentence_pair_with_one_empty_text_counts_as_empty(tmp_path: Path, text: list[str]) -> None:
    rows = [{"a": "x", "b": "y", "label": 0}, {"a": "x", "b": "", "label": 1}, {"a": "x", "b": "z", "label": 1}]
    task = a_task(tmp_path, rows, rows, text=text)
    assert refusal(task).startswith("tasks.t: train row 1 (from 0): text is empty")
    assert checked(task, "skip").splits["test"].rows.tolist() == [0, 2]
