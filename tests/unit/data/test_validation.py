from pathlib import Path
from typing import Any

import pytest

from tests.utils.task_rows import GOOD, KINDS, a_task, checked, contents, refusal, row, with_class_names


def test_class_names_of_the_feature_keep_their_order_in_every_split(tmp_path: Path) -> None:
    train = with_class_names(["zebra", "ant"], ["a", "b"], [0, 1])
    test = with_class_names(["ant", "zebra"], ["a", "b"], [0, 1])
    examples = checked(a_task(tmp_path, train, test, "parquet"))
    assert examples.labels == ("zebra", "ant")
    assert contents(examples) == {"train": [("a", "zebra"), ("b", "ant")], "test": [("a", "ant"), ("b", "zebra")]}


@pytest.mark.parametrize("column", ["own names", "strings", "integers"])
def test_labels_of_the_recipe_take_precedence(tmp_path: Path, column: str) -> None:
    rows: Any = {
        "own names": with_class_names(["ant", "zebra"], ["a", "b"], [0, 1]),
        "strings": [row("a", "ant"), row("b", "zebra")],
        "integers": [row("a", 1), row("b", 0)],
    }[column]
    examples = checked(a_task(tmp_path, rows, rows, "parquet", labels=["zebra", "ant", "owl"]))
    assert examples.labels == ("zebra", "ant", "owl")
    assert contents(examples)["test"] == [("a", "ant"), ("b", "zebra")]
    assert examples.warnings == ("no training row has the label owl",)


def test_splits_with_integer_and_string_labels_are_refused(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [row("c", "1")])
    assert refusal(task) == "tasks.t.label: train has int64 labels and test string ones"


@pytest.mark.parametrize("label", [0, "x"])
def test_single_class_is_refused(tmp_path: Path, label: int | str) -> None:
    task = a_task(tmp_path, [row("a", label), row("b", label)], [row("c", label)])
    message = f"tasks.t.label: all training rows have the label '{label}'; a task has at least two classes"
    assert refusal(task) == message


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_empty_text_are_skipped_and_counted(tmp_path: Path, kind: str) -> None:
    train = [row("", 1), row("a", 0), row(" \t", 9), row(None, 0), row("b", 1)]
    examples = checked(a_task(tmp_path, train, [row("c", 1), row("", None)], kind), "skip")
    assert contents(examples) == {"train": [("a", "0"), ("b", "1")], "test": [("c", "1")]}
    assert examples.splits["train"].rows.tolist() == [1, 4]
    assert examples.warnings == (
        "3 of 5 train rows have no text and are left out",
        "1 of 2 test rows have no text and are left out",
    )


def test_split_without_text_is_refused(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [row(" ", 0), row("", 1)])
    assert refusal(task, "skip") == "tasks.t: the test split has no rows with text"


def test_class_without_training_rows_is_a_warning(tmp_path: Path) -> None:
    train = [row("a", 0), row("b", 3), row("c", 3), row("d", 3)]
    examples = checked(a_task(tmp_path, train, [row("e", 1)]))
    assert examples.labels == ("0", "1", "2", "3")
    assert examples.warnings == ("no training row has the label 1, 2",)


MANY = [row(f"text {number}", number % 2) for number in range(100)]


def test_max_rows_samples_reproducibly_and_larger_samples_contain_smaller_ones(tmp_path: Path) -> None:
    drawn = {
        count: checked(a_task(tmp_path, MANY, MANY, max_rows=count)).splits["train"].rows.tolist()
        for count in (10, 40, 41, 100, 1000)
    }
    assert {count: len(rows) for count, rows in drawn.items()} == {10: 10, 40: 40, 41: 41, 100: 100, 1000: 100}
    assert set(drawn[10]) < set(drawn[40]) < set(drawn[41]) < set(drawn[100])
    assert all(rows == sorted(rows) for rows in drawn.values())
    # The sample is spread over the file, which may be sorted.
    assert min(drawn[10]) < 30 < 70 < max(drawn[10])
    assert checked(a_task(tmp_path, MANY, MANY, max_rows=10)).splits["train"].rows.tolist() == drawn[10]


def test_max_rows_affects_neither_the_test_split_nor_the_classes(tmp_path: Path) -> None:
    examples = checked(a_task(tmp_path, MANY, MANY, max_rows=1))
    assert len(examples.splits["test"].rows) == 100
    assert examples.labels == ("0", "1")
    absent = str(1 - examples.splits["train"].labels[0])
    assert examples.warnings == (f"no training row has the label {absent}",)


def test_max_rows_counts_only_rows_with_text(tmp_path: Path) -> None:
    train = [row("", 0)] * 50 + MANY
    examples = checked(a_task(tmp_path, train, MANY, max_rows=60), "skip")
    assert len(examples.splits["train"].rows) == 60
    assert min(examples.splits["train"].rows) >= 50
    pairs = zip(examples.splits["train"].rows, examples.splits["train"].labels, strict=True)
    assert all(train[at]["label"] == label for at, label in pairs)


def test_of_many_classes_without_training_rows_only_some_are_named(tmp_path: Path) -> None:
    rows = [row("a cat", "c0"), row("a dog", "c1")]
    (line,) = checked(a_task(tmp_path, rows, rows, labels=[f"c{index}" for index in range(2000)])).warnings
    assert line == f"no training row has the label {', '.join(f'c{index}' for index in range(2, 12))} and 1988 more"
    message = refusal(a_task(tmp_path, rows, [row("x", "z" * 9999)], labels=[f"c{index}" for index in range(2000)]))
    assert len(message) < 400
