import csv
import json
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtl_dist.config.recipe import TaskConfig
from mtl_dist.data.sources import load_rows
from mtl_dist.data.validation import LabeledTask, check_rows
from mtl_dist.errors import UserError

Rows = list[dict[str, Any]]
KINDS = ["json", "csv", "parquet"]


def write(path: Path, rows: Rows | pa.Table | datasets.Dataset | str) -> str:
    """Writes `rows` as the file name's ending says; a string is written as it is."""
    match rows:
        case str():
            path.write_text(rows, encoding="utf-8")
        case datasets.Dataset():
            rows.to_parquet(path)
        case pa.Table():
            pq.write_table(rows, path)
        case _ if path.suffix == ".json":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case _ if path.suffix == ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def row(text: Any, label: Any) -> dict[str, Any]:
    return {"text": text, "label": label}


GOOD = [row("a cat", 0), row("a dog", 1)]


def a_task(folder: Path, train: Any, test: Any = GOOD, kind: str = "json", **fields: Any) -> TaskConfig:
    files = {split: write(folder / f"{split}.{kind}", rows) for split, rows in (("train", train), ("test", test))}
    return TaskConfig(path=kind, data_files=files, **fields)


def checked(task: TaskConfig, empty_text: Literal["error", "skip"] = "error") -> LabeledTask:
    splits = {split: load_rows("tasks.t", task, split) for split in ("train", "test")}
    return check_rows("tasks.t", task, splits, empty_text)


def refusal(task: TaskConfig, empty_text: Literal["error", "skip"] = "error") -> str:
    with pytest.raises(UserError) as error:
        checked(task, empty_text)
    return str(error.value)


def contents(examples: LabeledTask) -> dict[str, list[tuple[str, str]]]:
    """Text and class name of every row that is used."""
    return {
        split: [
            (text, examples.labels[label])
            for text, label in zip(of.columns[of.rows]["text"].to_pylist(), of.labels, strict=True)
        ]
        for split, of in examples.splits.items()
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [(0, 1), ("no", "yes")])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str, names: tuple[Any, Any]) -> None:
    no, yes = names
    train = [row("a cat", yes), row("b", no), row('quoted "c", d\né', yes)]
    examples = checked(a_task(tmp_path, train, [row("e", yes)], kind))
    assert examples.labels == (str(no), str(yes))
    assert contents(examples) == {
        "train": [("a cat", str(yes)), ("b", str(no)), ('quoted "c", d\né', str(yes))],
        "test": [("e", str(yes))],
    }
    assert examples.splits["train"].rows.dtype == examples.splits["train"].labels.dtype == np.int64
    assert examples.warnings == ()


def test_only_the_columns_of_the_task_are_kept(tmp_path: Path) -> None:
    rows = [{"b": "x", "other": 1, "a": "y", "label": 0}, {"b": "x", "other": 1, "a": "y", "label": 1}]
    task = a_task(tmp_path, rows, rows, text=["a", "b"])
    assert load_rows("tasks.t", task, "train").column_names == ["a", "b", "label"]


def test_glob_reads_all_its_files(tmp_path: Path) -> None:
    for number, rows in enumerate([GOOD[:1], GOOD[1:]]):
        write(tmp_path / f"part{number}.json", rows)
    pattern = str(tmp_path / "part*.json")
    task = TaskConfig(path="json", data_files={"train": pattern, "test": pattern})
    assert contents(checked(task))["train"] == [("a cat", "0"), ("a dog", "1")]


def test_folder_in_the_shape_of_a_hub_data_set_with_a_configuration(tmp_path: Path) -> None:
    card = """---
configs:
- config_name: irony
  data_files: [{split: train, path: irony/*.parquet}]
- config_name: sentiment
  data_files: [{split: train, path: sentiment/train.parquet}, {split: test, path: sentiment/test.parquet}]
---
"""
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    for name, texts in (("irony", ["no"]), ("sentiment", ["x", "y"])):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            write(tmp_path / name / f"{split}.parquet", with_class_names(["bad", "good"], texts, [1, 0][: len(texts)]))
    examples = checked(TaskConfig(path=str(tmp_path), name="sentiment"))
    assert examples.labels == ("bad", "good")
    assert contents(examples)["test"] == [("x", "good"), ("y", "bad")]


def with_class_names(names: list[str], texts: list[str], labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


def test_class_names_of_the_column_keep_their_order_in_every_split(tmp_path: Path) -> None:
    train = with_class_names(["zebra", "ant"], ["a", "b"], [0, 1])
    test = with_class_names(["ant", "zebra"], ["a", "b"], [0, 1])
    examples = checked(a_task(tmp_path, train, test, "parquet"))
    assert examples.labels == ("zebra", "ant")
    assert contents(examples) == {"train": [("a", "zebra"), ("b", "ant")], "test": [("a", "ant"), ("b", "zebra")]}


@pytest.mark.parametrize("column", ["own names", "strings", "integers"])
def test_labels_of_the_recipe_come_first(tmp_path: Path, column: str) -> None:
    rows: Any = {
        "own names": with_class_names(["ant", "zebra"], ["a", "b"], [0, 1]),
        "strings": [row("a", "ant"), row("b", "zebra")],
        "integers": [row("a", 1), row("b", 0)],
    }[column]
    examples = checked(a_task(tmp_path, rows, rows, "parquet", labels=["zebra", "ant", "owl"]))
    assert examples.labels == ("zebra", "ant", "owl")
    assert contents(examples)["test"] == [("a", "ant"), ("b", "zebra")]
    assert examples.warnings == ("no training row has the label owl",)


def test_csv_keeps_words_that_pandas_takes_for_missing_values(tmp_path: Path) -> None:
    examples = checked(a_task(tmp_path, [row("NA", "None"), row("null", "NA")], [row("nan", "NA")], "csv"))
    assert contents(examples) == {"train": [("NA", "None"), ("null", "NA")], "test": [("nan", "NA")]}


def test_integer_labels_of_a_csv_file_survive_a_row_left_out_without_one(tmp_path: Path) -> None:
    examples = checked(a_task(tmp_path, "text,label\na,0\n,\nb,1\n", GOOD, "csv"), "skip")
    assert contents(examples)["train"] == [("a", "0"), ("b", "1")]


STRING_TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", STRING_TYPES, ids=str)
def test_every_arrow_type_of_strings_will_do(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": pa.array(["a", "b"]).cast(kind), "label": pa.array(["no", "yes"]).cast(kind)})
    assert contents(checked(a_task(tmp_path, table, table, "parquet")))["test"] == [("a", "no"), ("b", "yes")]


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()], ids=str)
def test_every_type_of_integers_will_do_for_labels(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"text": ["a", "b"], "label": pa.array([1, 0], kind)})
    assert contents(checked(a_task(tmp_path, table, table, "parquet")))["test"] == [("a", "1"), ("b", "0")]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": ["txt"]}, "tasks.t.text: the train split has no column 'txt'; did you mean text?"),
        ({"text": ["text", "b"]}, "tasks.t.text: the train split has no column 'b'; choose from text, label"),
        ({"label": "labels"}, "tasks.t.label: the train split has no column 'labels'; did you mean label?"),
    ],
)
def test_missing_column(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    assert refusal(a_task(tmp_path, GOOD, **fields)) == message


def test_column_that_only_the_test_split_lacks(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [{"text": "a", "lable": 0}])
    assert refusal(task) == "tasks.t.label: the test split has no column 'label'; did you mean lable?"


OTHER_LABELS = [
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


@pytest.mark.parametrize(("kind", "train", "message"), OTHER_LABELS)
def test_label_that_is_none(tmp_path: Path, kind: str, train: Rows, message: str) -> None:
    assert refusal(a_task(tmp_path, train, GOOD, kind)) == f"tasks.t: {message}"


MIXED_IN_THE_FILE = [
    ('{"text": "c", "label": "1"}', "'label' is '1', no int as in the rows before"),
    ('{"label": "x", "text": "c", "label": 1}', "the key 'label' occurs twice"),
]


@pytest.mark.parametrize(("line", "message"), MIXED_IN_THE_FILE)
def test_row_for_which_a_reader_gives_up_a_columns_type(tmp_path: Path, line: str, message: str) -> None:
    train = "".join(f"{json.dumps(one)}\n" for one in GOOD) + line
    assert refusal(a_task(tmp_path, train)) == f"tasks.t: train row 2 (from 0): {message}"


def test_numbers_as_text_in_an_array_of_json_are_numbers(tmp_path: Path) -> None:
    """Where no line is a row, nobody can say which of them the reader has changed."""
    examples = checked(a_task(tmp_path, json.dumps([row("a", 0), row("b", "1")])))
    assert contents(examples)["train"] == [("a", "0"), ("b", "1")]


@pytest.mark.parametrize("label", [0.5, 1e20])
def test_the_float_that_makes_a_column_one_is_named(tmp_path: Path, label: float) -> None:
    message = f"tasks.t: train row 2 (from 0): label {label} is neither an integer nor a string"
    assert refusal(a_task(tmp_path, [*GOOD, row("c", label)])) == message


@pytest.mark.parametrize("column", ["text", "label"])
def test_bytes_that_are_not_utf8_are_named_with_their_row(tmp_path: Path, column: str) -> None:
    task = a_task(tmp_path, [row("a", "x"), row("b", "y"), row("c", "z")])
    path = Path(task.data_files["train"])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"b"' if column == "text" else b'"y"', b'"\xff"')
    path.write_bytes(b"".join(lines))
    message = f"tasks.t: train row 1 (from 0): column {column!r} holds bytes that are not UTF-8"
    assert refusal(task) == message


BESIDE_EMPTY_TEXT = [
    # JSON keeps such a column as JSON for all rows.
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


@pytest.mark.parametrize(("kind", "train", "message"), BESIDE_EMPTY_TEXT)
def test_labels_of_a_wrong_type_beside_rows_that_are_left_out(
    tmp_path: Path, kind: str, train: Rows, message: str
) -> None:
    assert refusal(a_task(tmp_path, train, GOOD, kind), "skip").startswith(f"tasks.t: train {message}")


def test_integer_label_above_those_of_the_training_split(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [*GOOD, row("c", 2), row("d", 9)])
    assert refusal(task) == "tasks.t: test row 2 (from 0): label 2 is out of range 0..1; 1 more like it"


@pytest.mark.parametrize("label", [-1, 2])
def test_integer_label_outside_the_recipes_classes(tmp_path: Path, label: int) -> None:
    task = a_task(tmp_path, [*GOOD, row("c", label)], labels=["no", "yes"])
    assert refusal(task) == f"tasks.t: train row 2 (from 0): label {label} is out of range 0..1"


def test_hidden_labels_of_a_hub_split(tmp_path: Path) -> None:
    train = with_class_names(["no", "yes"], ["a", "b"], [0, 1])
    test = with_class_names(["no", "yes"], ["a", "b"], [-1, -1])
    message = "tasks.t: test row 0 (from 0): label -1 is out of range 0..1; 1 more like it"
    assert refusal(a_task(tmp_path, train, test, "parquet")) == message


def test_string_label_that_training_does_not_have(tmp_path: Path) -> None:
    task = a_task(tmp_path, [row("a", "bad"), row("b", "good")], [row("c", "bad"), row("d", "goood")])
    message = "tasks.t: test row 1 (from 0): label 'goood' is not one of the classes; did you mean good?"
    assert refusal(task) == message


def test_labels_of_another_kind_in_another_split(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [row("c", "1")])
    assert refusal(task) == "tasks.t.label: train has int64 labels and test string ones"


@pytest.mark.parametrize("label", [0, "x"])
def test_one_class_is_none(tmp_path: Path, label: int | str) -> None:
    task = a_task(tmp_path, [row("a", label), row("b", label)], [row("c", label)])
    message = f"tasks.t.label: all training rows have the label '{label}'; a task has at least two classes"
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
def test_text_of_another_type(
    tmp_path: Path, kind: str, train: Rows, message: str, empty_text: Literal["error", "skip"]
) -> None:
    assert refusal(a_task(tmp_path, train, GOOD, kind), empty_text) == f"tasks.t: {message}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", " \t\u2003", None])
def test_empty_text_is_an_error(tmp_path: Path, kind: str, text: str | None) -> None:
    task = a_task(tmp_path, GOOD, [*GOOD, row(text, 0), row(text, 1)], kind)
    message = "test row 2 (from 0): text is empty; data.empty_text=skip leaves such rows out; 1 more like it"
    assert refusal(task) == f"tasks.t: {message}"


@pytest.mark.parametrize("kind", KINDS)
def test_empty_text_is_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    train = [row("", 1), row("a", 0), row(" \t", 9), row(None, 0), row("b", 1)]
    examples = checked(a_task(tmp_path, train, [row("c", 1), row("", None)], kind), "skip")
    assert contents(examples) == {"train": [("a", "0"), ("b", "1")], "test": [("c", "1")]}
    assert examples.splits["train"].rows.tolist() == [1, 4]
    assert examples.warnings == (
        "3 of 5 train rows have no text and are left out",
        "1 of 2 test rows have no text and are left out",
    )


@pytest.mark.parametrize("text", [["a", "b"], ["b", "a"]])
def test_pair_with_one_empty_text_counts_as_empty(tmp_path: Path, text: list[str]) -> None:
    rows = [{"a": "x", "b": "y", "label": 0}, {"a": "x", "b": "", "label": 1}, {"a": "x", "b": "z", "label": 1}]
    task = a_task(tmp_path, rows, rows, text=text)
    assert refusal(task).startswith("tasks.t: train row 1 (from 0): text is empty")
    assert checked(task, "skip").splits["test"].rows.tolist() == [0, 2]


def test_label_of_a_row_that_is_left_out_may_be_anything(tmp_path: Path) -> None:
    rows = [row("a", "no"), row(" ", "other"), row("b", "yes")]
    examples = checked(a_task(tmp_path, rows, rows), "skip")
    assert examples.labels == ("no", "yes")
    assert contents(examples)["test"] == [("a", "no"), ("b", "yes")]
    named = with_class_names(["no", "yes"], ["a", "", "b"], [0, -1, 1])
    assert contents(checked(a_task(tmp_path, named, named, "parquet"), "skip"))["test"] == [("a", "no"), ("b", "yes")]


NO_ROWS = {"json": ["", "\n"], "csv": ["", "text,label\n"], "parquet": [pa.table({"text": [""], "label": [0]})[:0]]}


@pytest.mark.parametrize(("kind", "content"), [(kind, content) for kind in KINDS for content in NO_ROWS[kind]])
@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_rows(tmp_path: Path, kind: str, content: str | pa.Table, split: str) -> None:
    task = a_task(tmp_path, **({"train": GOOD, "test": GOOD} | {split: content}), kind=kind)
    assert refusal(task) == f"tasks.t: the {split} split has no rows"


def test_split_without_rows_that_have_text(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [row(" ", 0), row("", 1)])
    assert refusal(task, "skip") == "tasks.t: the test split has no rows with text"


def test_file_that_is_not_there(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD)
    task.data_files["test"] = str(tmp_path / "tset*.json")
    assert refusal(task) == f"tasks.t.data_files.test: there is no file {tmp_path}/tset*.json"


UNREADABLE = [
    (
        "json",
        '{"text": "a", "label": 0}\n{"text": "b", "la',
        "train row 1 (from 0): no valid JSON (Unterminated",
    ),
    ("json", '[{"text": "a", "label": 0},\n {"text": "b", "la', "cannot load the train split: "),
    (
        "csv",
        'text,label\na,0\n"b,1\n',
        "cannot load the train split: Error tokenizing data. C error: EOF",
    ),
    ("parquet", "text", "cannot load the train split: Parquet"),
]


@pytest.mark.parametrize(("kind", "content", "why"), UNREADABLE)
def test_unreadable_file_is_one_line_and_nothing_else(
    tmp_path: Path, kind: str, content: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(a_task(tmp_path, content, GOOD, kind))
    assert message.startswith(f"tasks.t: {why}")
    assert len(message.splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_settings_of_datasets_as_they_were(tmp_path: Path) -> None:
    datasets.logging.set_verbosity_warning()
    datasets.enable_progress_bars()
    checked(a_task(tmp_path, GOOD))
    refusal(a_task(tmp_path, "broken"))
    assert datasets.logging.get_verbosity() == datasets.logging.WARNING
    assert not datasets.are_progress_bars_disabled()


def test_data_set_that_cannot_be_reached(tmp_path: Path) -> None:
    message = refusal(TaskConfig(path=str(tmp_path / "absent")))
    assert message.startswith("tasks.t: cannot load the train split: ")
    assert len(message.splitlines()) == 1


def test_class_without_training_row_is_a_warning(tmp_path: Path) -> None:
    train = [row("a", 0), row("b", 3), row("c", 3), row("d", 3)]
    examples = checked(a_task(tmp_path, train, [row("e", 1)]))
    assert examples.labels == ("0", "1", "2", "3")
    assert examples.warnings == ("no training row has the label 1, 2",)


MANY = [row(f"text {number}", number % 2) for number in range(100)]


def test_max_rows_draws_the_same_training_rows_and_more_contain_fewer(tmp_path: Path) -> None:
    drawn = {
        count: checked(a_task(tmp_path, MANY, MANY, max_rows=count)).splits["train"].rows.tolist()
        for count in (10, 40, 41, 100, 1000)
    }
    assert {count: len(rows) for count, rows in drawn.items()} == {10: 10, 40: 40, 41: 41, 100: 100, 1000: 100}
    assert set(drawn[10]) < set(drawn[40]) < set(drawn[41]) < set(drawn[100])
    assert all(rows == sorted(rows) for rows in drawn.values())
    # Spread over the file, which may be sorted.
    assert min(drawn[10]) < 30 < 70 < max(drawn[10])
    assert checked(a_task(tmp_path, MANY, MANY, max_rows=10)).splits["train"].rows.tolist() == drawn[10]


def test_max_rows_leaves_the_test_split_and_the_classes_alone(tmp_path: Path) -> None:
    examples = checked(a_task(tmp_path, MANY, MANY, max_rows=1))
    assert len(examples.splits["test"].rows) == 100
    assert examples.labels == ("0", "1")
    absent = str(1 - examples.splits["train"].labels[0])
    assert examples.warnings == (f"no training row has the label {absent}",)


def test_max_rows_counts_rows_with_text_only(tmp_path: Path) -> None:
    train = [row("", 0)] * 50 + MANY
    examples = checked(a_task(tmp_path, train, MANY, max_rows=60), "skip")
    assert len(examples.splits["train"].rows) == 60
    assert min(examples.splits["train"].rows) >= 50
    pairs = zip(examples.splits["train"].rows, examples.splits["train"].labels, strict=True)
    assert all(train[at]["label"] == label for at, label in pairs)
