from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest

from mtl_dist.config.data_recipe import TaskConfig
from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import example_sets
from mtl_dist.data.sources import open_source
from mtl_dist.errors import UserError
from tests.utils.task_rows import (
    GOOD,
    KINDS,
    a_task,
    checked,
    checked_set,
    contents,
    names_of,
    refusal,
    row,
    set_of,
    with_class_names,
    write,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [(0, 1), ("no", "yes")])
def test_every_file_format_is_read_as_the_same_rows(tmp_path: Path, kind: str, names: tuple[Any, Any]) -> None:
    no, yes = names
    train = [row("a cat", yes), row("b", no), row('quoted "c", d\né', yes)]
    examples = checked(a_task(tmp_path, train, [row("e", yes)], kind))
    assert names_of(examples) == (str(no), str(yes))
    assert contents(examples) == {
        "train": [("a cat", str(yes)), ("b", str(no)), ('quoted "c", d\né', str(yes))],
        "test": [("e", str(yes))],
    }
    assert examples.splits["train"].rows.dtype == examples.splits["train"].labels["t"].dtype == np.int64
    assert examples.warnings == ()


SHARED = {
    "sources": {"tickets": {"path": "json", "data_files": {"train": "?", "test": "?"}, "text": ["a", "b"]}},
    "tasks": {
        "team": {"source": "tickets", "label": "team"},
        "mood": {"source": "tickets", "label": "mood"},
        "short": {"source": "tickets", "text": "a", "label": "mood"},
    },
}


def test_columns_of_all_tasks_of_a_source_are_read_at_once(tmp_path: Path) -> None:
    rows = [{"b": "x", "other": 1, "a": "y", "team": 0, "mood": "m"}] * 2
    recipe = Recipe.model_validate(SHARED)
    files = {split: [write(tmp_path / f"{split}.json", rows)] for split in ("train", "test")}
    recipe.sources["tickets"].data_files = files
    both, short = example_sets(recipe)
    (tmp_path / "out").mkdir()
    table = open_source(both, ["train"]).read(tmp_path / "out").tables["train"]
    assert table.take(np.array([1]), ["a", "b", "team", "mood"]).to_pylist() == [
        {"a": "y", "b": "x", "team": "0", "mood": "m"}
    ]
    with pytest.raises(KeyError):
        table.column("other")
    assert open_source(short, ["train"]).read(tmp_path / "out").tables["train"].column("a").to_pylist() == ["y", "y"]


def test_errors_of_a_shared_source_begin_with_its_key_and_those_of_labels_with_the_task(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(SHARED)
    good = [{"a": "y", "b": "x", "team": n, "mood": n} for n in range(2)]
    cases = (
        ([{**good[0], "b": ""}], "sources.tickets: train row 2 (from 0): text is empty; "),
        ([{**good[0], "mood": 0.5}], "tasks.mood: train row 2 (from 0): label 0.5 is a fractional number; "),
    )
    for rows, message in cases:
        files = {split: [write(tmp_path / f"{split}.json", [*good, *rows])] for split in ("train", "test")}
        recipe.sources["tickets"].data_files = files
        with pytest.raises(UserError) as error:
            checked_set(example_sets(recipe)[0])
        assert str(error.value).startswith(message)


def test_glob_pattern_reads_all_matching_files(tmp_path: Path) -> None:
    for number, rows in enumerate([GOOD[:1], GOOD[1:]]):
        write(tmp_path / f"part{number}.json", rows)
    pattern = str(tmp_path / "part*.json")
    task = TaskConfig.model_validate({"path": "json", "data_files": {"train": pattern, "test": pattern}})
    assert contents(checked(task))["train"] == [("a cat", "0"), ("a dog", "1")]


@pytest.mark.parametrize("kind", KINDS)
def test_shards_may_differ_in_columns_that_no_task_reads(tmp_path: Path, kind: str) -> None:
    write(tmp_path / f"part0.{kind}", [row("a", "x") | {"extra": 1}])
    write(tmp_path / f"part1.{kind}", [row("b", "y") | {"extra": "word"}])
    write(tmp_path / f"part2.{kind}", [{"label": "x", "text": "c"}])
    task = a_task(tmp_path, GOOD, [row("b", "y")], kind)
    task.data_files["train"] = [str(tmp_path / f"part*.{kind}")]
    assert contents(checked(task))["train"] == [("a", "x"), ("b", "y"), ("c", "x")]


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A folder laid out as a hub data set with two configurations, only one of which has validation rows."""
    card = """---
configs:
- config_name: irony
  data_files: [{split: train, path: irony/train.parquet}, {split: test, path: irony/test.parquet}]
- config_name: sentiment
  data_files:
  - {split: train, path: sentiment/train.parquet}
  - {split: validation, path: sentiment/validation.parquet}
  - {split: test, path: sentiment/test.parquet}
---
"""
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    for name, splits in (("irony", ("train", "test")), ("sentiment", ("train", "validation", "test"))):
        (tmp_path / name).mkdir()
        for split in splits:
            rows = with_class_names(["bad", "good"], [f"{split} x", f"{split} y"], [1, 0])
            write(tmp_path / name / f"{split}.parquet", rows)
    return tmp_path


def test_hub_dataset_is_read_with_its_class_names_and_the_splits_that_it_has(hub_folder: Path) -> None:
    found = {}
    for name in ("irony", "sentiment"):
        examples = checked(TaskConfig(path=str(hub_folder), name=name))
        assert names_of(examples) == ("bad", "good")
        assert examples.classes["t"].kind == "class names of the data set"
        found[name] = contents(examples)
    assert found["irony"] == {split: [(f"{split} x", "good"), (f"{split} y", "bad")] for split in ("train", "test")}
    assert list(found["sentiment"]) == ["train", "validation", "test"]


def test_missing_test_split_of_a_hub_dataset_is_refused(hub_folder: Path) -> None:
    card = (hub_folder / "README.md").read_text(encoding="utf-8")
    (hub_folder / "README.md").write_text(card.replace("split: test", "split: tset"), encoding="utf-8")
    message = refusal(TaskConfig(path=str(hub_folder), name="irony"))
    assert message.startswith("tasks.t: cannot load the test split: Unknown split")


def test_shares_of_a_hub_dataset_replace_its_own_splits(hub_folder: Path) -> None:
    rows = with_class_names(["bad", "good"], [f"text {number}" for number in range(60)], [0, 1] * 30)
    write(hub_folder / "irony" / "train.parquet", rows)
    task = TaskConfig.model_validate({"path": str(hub_folder), "name": "irony", "split": {"test": 0.3}})
    found = contents(checked(task))
    assert sorted(text for of in found.values() for text, _ in of) == sorted(rows["text"])
    assert len(found["test"]) > 5


def test_columns_of_a_folder_of_csv_files_are_not_typed_by_guess(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.csv", [row("1", "007"), row("NA", "08")])
    assert contents(checked(TaskConfig(path=str(tmp_path))))["test"] == [("1", "007"), ("NA", "08")]


def test_csv_keeps_words_that_pandas_reads_as_missing_values(tmp_path: Path) -> None:
    examples = checked(a_task(tmp_path, [row("NA", "None"), row("null", "NA")], [row("nan", "NA")], "csv"))
    assert contents(examples) == {"train": [("NA", "None"), ("null", "NA")], "test": [("nan", "NA")]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": ["txt"]}, "tasks.t.text: {} has no column 'txt'; did you mean text?"),
        ({"text": ["text", "b"]}, "tasks.t.text: {} has no column 'b'; choose from text, label"),
        ({"label": "labels"}, "tasks.t.label: {} has no column 'labels'; did you mean label?"),
        ({"split": {"test": 0.5, "by": "user"}}, "tasks.t.split.by: {} has no column 'user'; choose from text, label"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_missing_column_is_refused(tmp_path: Path, kind: str, fields: dict[str, Any], message: str) -> None:
    task = a_task(tmp_path, GOOD, kind=kind, **fields)
    assert refusal(task) == message.format(tmp_path / f"train.{kind}")


def test_column_missing_from_the_test_split_alone_is_refused(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [{"text": "a", "lable": 0}])
    assert refusal(task) == f"tasks.t: {tmp_path}/test.json: no column 'label'; did you mean lable?"


NO_ROWS = {"json": ["", "\n", "[]"], "csv": ["text,label\n"], "parquet": [pa.table({"text": [""], "label": [0]})[:0]]}


@pytest.mark.parametrize(("kind", "content"), [(kind, content) for kind in KINDS for content in NO_ROWS[kind]])
@pytest.mark.parametrize("split", ["train", "test"])
def test_split_without_rows_is_refused(tmp_path: Path, kind: str, content: str | pa.Table, split: str) -> None:
    task = a_task(tmp_path, **({"train": GOOD, "test": GOOD} | {split: content}), kind=kind)
    assert refusal(task) == f"tasks.t: the {split} split has no rows"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD)
    task.data_files["test"] = [str(tmp_path / "tset*.json")]
    assert refusal(task) == f"tasks.t.data_files.test: there is no file {tmp_path}/tset*.json"


UNREADABLE = [
    ("json", '{"text": "a", "label": 0}\n{"text": "b", "la', " line 2: no valid JSON (Unterminated"),
    ("json", '[{"text": "a", "label": 0},\n {"text": "b", "la', " line 2: no valid JSON (Unterminated"),
    ("csv", 'text,label\na,0\n"b,1\n', " line 3: a quote opens in this row and never closes"),
    ("parquet", "text", ": is no valid parquet file ("),
]


@pytest.mark.parametrize(("kind", "content", "why"), UNREADABLE)
def test_unreadable_file_is_an_error_of_one_line_without_other_output(
    tmp_path: Path, kind: str, content: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    message = refusal(a_task(tmp_path, content, GOOD, kind))
    assert message.startswith(f"tasks.t: {tmp_path}/train.{kind}{why}")
    assert len(message.splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_loading_restores_the_settings_of_datasets(hub_folder: Path) -> None:
    datasets.logging.set_verbosity_warning()
    datasets.enable_progress_bars()
    checked(TaskConfig(path=str(hub_folder), name="irony"))
    refusal(TaskConfig(path=str(hub_folder / "absent")))
    assert datasets.logging.get_verbosity() == datasets.logging.WARNING
    assert not datasets.are_progress_bars_disabled()


def test_unreachable_dataset_is_refused(tmp_path: Path) -> None:
    message = refusal(TaskConfig(path=str(tmp_path / "absent")))
    assert message.startswith("tasks.t: cannot load the train split: ")
    assert len(message.splitlines()) == 1


def test_only_the_rows_that_the_asked_splits_come_from_are_read(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, "broken")
    (tmp_path / "out").mkdir()
    assert list(open_source(set_of(task), ["train"]).read(tmp_path / "out").tables) == ["train"]
    held_out = a_task(tmp_path, GOOD, split={"test": 0.5})
    del held_out.data_files["test"]
    assert list(open_source(set_of(held_out), ["test"]).read(tmp_path / "out").tables) == ["train"]


def test_folder_of_csv_files_is_read_strictly(tmp_path: Path) -> None:
    """`datasets` would take the first column for row numbers, and each text for the label of its row."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("label,text\nx,a,1\ny,b,2\n")
    message = refusal(TaskConfig(path=str(tmp_path)))
    assert message.startswith(f"tasks.t: {tmp_path}/train.csv line 2: the header has 2 fields, and this row 3")


def test_folder_of_json_files_keeps_labels_that_look_like_dates(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.json", [row("a", "2021-01-01"), row("b", "2021-01-02")])
    assert names_of(checked(TaskConfig(path=str(tmp_path)))) == ("2021-01-01", "2021-01-02")


def test_folder_whose_card_says_how_its_files_are_written_is_read_so(tmp_path: Path) -> None:
    card = "---\nconfigs:\n- config_name: default\n  sep: '!'\n  data_files:\n"
    card += "".join(f"  - {{split: {split}, path: {split}.csv}}\n" for split in ("train", "test"))
    (tmp_path / "README.md").write_text(f"{card}---\n", encoding="utf-8")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("label!text\n007!a\n08!b\n")
    assert contents(checked(TaskConfig(path=str(tmp_path))))["test"] == [("a", "007"), ("b", "08")]
