from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from mtl_dist.config.recipe import TaskConfig
from mtl_dist.data.sources import load_rows
from tests.utils.task_rows import GOOD, KINDS, a_task, checked, contents, refusal, row, with_class_names, write


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [(0, 1), ("no", "yes")])
def test_every_file_format_is_read_as_the_same_rows(tmp_path: Path, kind: str, names: tuple[Any, Any]) -> None:
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


def test_only_the_columns_of_the_task_are_loaded(tmp_path: Path) -> None:
    rows = [{"b": "x", "other": 1, "a": "y", "label": 0}, {"b": "x", "other": 1, "a": "y", "label": 1}]
    task = a_task(tmp_path, rows, rows, text=["a", "b"])
    assert load_rows("tasks.t", task, "train").column_names == ["a", "b", "label"]


def test_glob_pattern_reads_all_matching_files(tmp_path: Path) -> None:
    for number, rows in enumerate([GOOD[:1], GOOD[1:]]):
        write(tmp_path / f"part{number}.json", rows)
    pattern = str(tmp_path / "part*.json")
    task = TaskConfig(path="json", data_files={"train": pattern, "test": pattern})
    assert contents(checked(task))["train"] == [("a cat", "0"), ("a dog", "1")]


def test_folder_laid_out_as_a_hub_dataset_with_a_configuration(tmp_path: Path) -> None:
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


def test_csv_keeps_words_that_pandas_reads_as_missing_values(tmp_path: Path) -> None:
    examples = checked(a_task(tmp_path, [row("NA", "None"), row("null", "NA")], [row("nan", "NA")], "csv"))
    assert contents(examples) == {"train": [("NA", "None"), ("null", "NA")], "test": [("nan", "NA")]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": ["txt"]}, "tasks.t.text: the train split has no column 'txt'; did you mean text?"),
        ({"text": ["text", "b"]}, "tasks.t.text: the train split has no column 'b'; choose from text, label"),
        ({"label": "labels"}, "tasks.t.label: the train split has no column 'labels'; did you mean label?"),
    ],
)
def test_missing_column_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    assert refusal(a_task(tmp_path, GOOD, **fields)) == message


def test_column_missing_from_the_test_split_alone_is_refused(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [{"text": "a", "lable": 0}])
    assert refusal(task) == "tasks.t.label: the test split has no column 'label'; did you mean lable?"


NO_ROWS = {"json": ["", "\n"], "csv": ["", "text,label\n"], "parquet": [pa.table({"text": [""], "label": [0]})[:0]]}


@pytest.mark.parametrize(("kind", "content"), [(kind, content) for kind in KINDS for content in NO_ROWS[kind]])
@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_rows_is_refused(tmp_path: Path, kind: str, content: str | pa.Table, split: str) -> None:
    task = a_task(tmp_path, **({"train": GOOD, "test": GOOD} | {split: content}), kind=kind)
    assert refusal(task) == f"tasks.t: the {split} split has no rows"


def test_missing_file_is_refused(tmp_path: Path) -> None:
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
def test_unreadable_file_is_an_error_of_one_line_without_other_output(
    tmp_path: Path, kind: str, content: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(a_task(tmp_path, content, GOOD, kind))
    assert message.startswith(f"tasks.t: {why}")
    assert len(message.splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_loading_restores_the_settings_of_datasets(tmp_path: Path) -> None:
    datasets.logging.set_verbosity_warning()
    datasets.enable_progress_bars()
    checked(a_task(tmp_path, GOOD))
    refusal(a_task(tmp_path, "broken"))
    assert datasets.logging.get_verbosity() == datasets.logging.WARNING
    assert not datasets.are_progress_bars_disabled()


def test_unreachable_dataset_is_refused(tmp_path: Path) -> None:
    message = refusal(TaskConfig(path=str(tmp_path / "absent")))
    assert message.startswith("tasks.t: cannot load the train split: ")
    assert len(message.splitlines()) == 1
