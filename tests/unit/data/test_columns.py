from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pytest

from mtl_dist.data.columns import text_hashes
from tests.utils.task_rows import GOOD, KINDS, Rows, a_task, checked, contents, refusal, row

STRING_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", STRING_TYPES, ids=str)
def test_every_arrow_string_type_is_accepted(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["a", "b"]).cast(kind), "label": pa.array(["no", "yes"]).cast(kind)})
    assert contents(checked(a_task(tmp_path, table, table, "parquet")))["test"] == [("a", "no"), ("b", "yes")]


WRONG_TEXTS = [
    ("json", [row("a", 0), row(5, 1)], "line 2: text column 'text' holds 5, no string"),
    ("json", [row("a", 0), row(["b"], 1)], "line 2: text column 'text' holds ['b'], no string"),
    ("parquet", [row(None, 0), row(2.5, 1)], "row 1 (from 0): text column 'text' holds 2.5, no string"),
]


@pytest.mark.parametrize("empty_text", ["error", "skip"])
@pytest.mark.parametrize(("kind", "train", "message"), WRONG_TEXTS)
def test_text_of_another_type_is_refused(
    tmp_path: Path, kind: str, train: Rows, message: str, empty_text: Literal["error", "skip"]
) -> None:
    assert refusal(a_task(tmp_path, train, GOOD, kind), empty_text) == f"tasks.t: {tmp_path}/train.{kind} {message}"


def test_numbers_in_a_text_column_of_csv_are_texts(tmp_path: Path) -> None:
    task = a_task(tmp_path, [row("01", 0), row("2", 1)], GOOD, "csv")
    assert contents(checked(task))["train"] == [("01", "0"), ("2", "1")]


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


def test_text_hashes_never_change() -> None:
    """Splits by shares depend on them, on every machine and in every version."""
    hashes = text_hashes([["a cat", "", None], ["é", "b", "b"]])
    assert hashes.tolist() == [8075889944653202517, 4102334179918300631, 4102334179918300631]
    assert hashes.dtype == np.uint64
