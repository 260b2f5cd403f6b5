import json
from pathlib import Path

import pyarrow as pa
import pytest

from tests.utils.task_rows import GOOD, Rows, a_task, checked, contents, refusal, row, with_class_names


def test_integer_labels_of_a_csv_file_stay_integers_beside_a_skipped_row_without_label(tmp_path: Path) -> None:
    examples = checked(a_task(tmp_path, "text,label\na,0\n,\nb,1\n", GOOD, "csv"), "skip")
    assert contents(examples)["train"] == [("a", "0"), ("b", "1")]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()], ids=str)
def test_labels_of_every_arrow_integer_type_are_accepted(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": ["a", "b"], "label": pa.array([1, 0], kind)})
    assert contents(checked(a_task(tmp_path, table, table, "parquet")))["test"] == [("a", "1"), ("b", "0")]


INVALID_LABELS = [
    ("json", [*GOOD, row("c", None)], "train row 2 (from 0): label is null; leave out rows that have none"),
    ("csv", [*GOOD, row("c", None)], "train row 2 (from 0): label is null; leave out rows that have none"),
    ("json", [row("a", ""), row("b", "x")], "train row 0 (from 0): label is empty; leave out rows that have none"),
    (
        "parquet",
        [row("a", None), row("b", None)],
        "train row 0 (from 0): label is null; leave out rows that have none; 1 more like it",
    ),
    ("json", [row("a", 0), row("b", "x")], "train row 1 (from 0): label 'x': use integers only, or strings only"),
    ("json", [row("a", "x"), row("b", 3)], "train row 1 (from 0): label 3: use integers only, or strings only"),
    (
        "json",
        [row("a", 0.0), row("b", 1.0)],
        "train row 0 (from 0): label 0.0 is neither an integer nor a string; 1 more like it",
    ),
    (
        "json",
        [row("a", True), row("b", False)],
        "train row 0 (from 0): label True is neither an integer nor a string; 1 more like it",
    ),
    (
        "parquet",
        [row("a", [0]), row("b", [1])],
        "train row 0 (from 0): label [0] is neither an integer nor a string; 1 more like it",
    ),
    (
        "json",
        [row("a", 0), row("b", -1), row("c", -2)],
        "train row 1 (from 0): label -1 is no class index: these count from 0, and there are 3 rows; 1 more like it",
    ),
    (
        "parquet",
        [row("a", 0), row("b", 7_000_000_000)],
        "train row 1 (from 0): label 7000000000 is no class index: these count from 0, and there are 2 rows",
    ),
]


@pytest.mark.parametrize(("kind", "train", "message"), INVALID_LABELS)
def test_invalid_label_is_refused(tmp_path: Path, kind: str, train: Rows, message: str) -> None:
    assert refusal(a_task(tmp_path, train, GOOD, kind)) == f"tasks.t: {message}"


MIXED_TYPES = [
    ('{"text": "c", "label": "1"}', "'label' is '1', no int as in the rows before"),
    ('{"label": "x", "text": "c", "label": 1}', "the key 'label' occurs twice"),
]


@pytest.mark.parametrize(("line", "message"), MIXED_TYPES)
def test_row_that_makes_a_reader_fall_back_to_mixed_types_is_named(tmp_path: Path, line: str, message: str) -> None:
    train = "".join(f"{json.dumps(one)}\n" for one in GOOD) + line
    assert refusal(a_task(tmp_path, train)) == f"tasks.t: train row 2 (from 0): {message}"


def test_numeric_strings_in_a_json_array_are_read_as_numbers(tmp_path: Path) -> None:
    """In a JSON array, lines are not rows, so the line that the reader converted cannot be found."""
    examples = checked(a_task(tmp_path, json.dumps([row("a", 0), row("b", "1")])))
    assert contents(examples)["train"] == [("a", "0"), ("b", "1")]


@pytest.mark.parametrize("label", [0.5, 1e20])
def test_float_that_turns_a_column_into_floats_is_named(tmp_path: Path, label: float) -> None:
    message = f"tasks.t: train row 2 (from 0): label {label} is neither an integer nor a string"
    assert refusal(a_task(tmp_path, [*GOOD, row("c", label)])) == message


BESIDE_SKIPPED_ROWS = [
    # The JSON reader stores such a column as JSON in all rows.
    ("json", [row("a", 0), row("", "x"), row("b", 1)], "row 1 (from 0): label 'x': use integers only, or strings only"),
    (
        "json",
        [row("", None), row("a", 0), row("b", "x")],
        "row 2 (from 0): label 'x': use integers only, or strings only",
    ),
    (
        "csv",
        [row("a", 0.5), row("", None), row("b", 1)],
        "row 0 (from 0): label 0.5 is neither an integer nor a string",
    ),
]


@pytest.mark.parametrize(("kind", "train", "message"), BESIDE_SKIPPED_ROWS)
def test_labels_of_a_wrong_type_are_named_beside_skipped_rows(
    tmp_path: Path, kind: str, train: Rows, message: str
) -> None:
    assert refusal(a_task(tmp_path, train, GOOD, kind), "skip").startswith(f"tasks.t: train {message}")


def test_integer_label_beyond_those_of_the_training_split_is_refused(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [*GOOD, row("c", 2), row("d", 9)])
    assert refusal(task) == "tasks.t: test row 2 (from 0): label 2 is out of range 0..1; 1 more like it"


@pytest.mark.parametrize("label", [-1, 2])
def test_integer_label_outside_the_classes_of_the_recipe_is_refused(tmp_path: Path, label: int) -> None:
    task = a_task(tmp_path, [*GOOD, row("c", label)], labels=["no", "yes"])
    assert refusal(task) == f"tasks.t: train row 2 (from 0): label {label} is out of range 0..1"


def test_hidden_labels_of_a_hub_split_are_refused(tmp_path: Path) -> None:
    train = with_class_names(["no", "yes"], ["a", "b"], [0, 1])
    test = with_class_names(["no", "yes"], ["a", "b"], [-1, -1])
    message = "tasks.t: test row 0 (from 0): label -1 is out of range 0..1; 1 more like it"
    assert refusal(a_task(tmp_path, train, test, "parquet")) == message


def test_string_label_missing_from_the_training_split_is_refused(tmp_path: Path) -> None:
    task = a_task(tmp_path, [row("a", "bad"), row("b", "good")], [row("c", "bad"), row("d", "goood")])
    message = "tasks.t: test row 1 (from 0): label 'goood' is not one of the classes; did you mean good?"
    assert refusal(task) == message


def test_label_of_a_skipped_row_is_not_checked(tmp_path: Path) -> None:
    rows = [row("a", "no"), row(" ", "other"), row("b", "yes")]
    examples = checked(a_task(tmp_path, rows, rows), "skip")
    assert examples.labels == ("no", "yes")
    assert contents(examples)["test"] == [("a", "no"), ("b", "yes")]
    named = with_class_names(["no", "yes"], ["a", "", "b"], [0, -1, 1])
    assert contents(checked(a_task(tmp_path, named, named, "parquet"), "skip"))["test"] == [("a", "no"), ("b", "yes")]
