from pathlib import Path
from typing import Any

import pytest

from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import ExampleSetConfig, example_sets
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
    with_class_names,
    write,
)


def test_class_names_of_the_feature_keep_their_order_in_every_split(tmp_path: Path) -> None:
    train = with_class_names(["zebra", "ant"], ["a", "b"], [0, 1])
    test = with_class_names(["ant", "zebra"], ["a", "b"], [0, 1])
    examples = checked(a_task(tmp_path, train, test, "parquet"))
    assert names_of(examples) == ("zebra", "ant")
    assert contents(examples) == {"train": [("a", "zebra"), ("b", "ant")], "test": [("a", "ant"), ("b", "zebra")]}


@pytest.mark.parametrize("column", ["own names", "strings"])
def test_labels_of_the_recipe_take_precedence(tmp_path: Path, column: str) -> None:
    rows: Any = {
        "own names": with_class_names(["ant", "zebra"], ["a", "b"], [0, 1]),
        "strings": [row("a", "ant"), row("b", "zebra")],
    }[column]
    examples = checked(a_task(tmp_path, rows, rows, "parquet", labels=["zebra", "ant", "owl"]))
    assert names_of(examples) == ("zebra", "ant", "owl")
    assert contents(examples)["test"] == [("a", "ant"), ("b", "zebra")]
    assert examples.class_counts["t"]["train"].tolist() == [1, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_with_empty_text_are_skipped_and_counted(tmp_path: Path, kind: str) -> None:
    train = [row("", 1), row("a", 0), row(" \t", 9), row(None, 0), row("b", 1)]
    examples = checked(a_task(tmp_path, train, [row("c", 1), row("", None)], kind), "skip")
    assert contents(examples) == {"train": [("a", "0"), ("b", "1")], "test": [("c", "1")]}
    assert examples.splits["train"].rows.tolist() == [1, 4]
    assert examples.warnings == (
        "tasks.t: 3 of 5 train rows have no text and are left out",
        "tasks.t: 1 of 2 test rows have no text and are left out",
    )


def test_split_without_text_is_refused(tmp_path: Path) -> None:
    task = a_task(tmp_path, GOOD, [row(" ", 0), row("", 1)])
    assert refusal(task, "skip") == "tasks.t: the test split has no rows with text"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path, kind: str) -> None:
    train = [row("a", None), row("b", "n"), row("c", " "), row("d", "y"), row("", None)]
    examples = checked(a_task(tmp_path, train, [row("w", "y"), row("v", "n"), row("x", "")], kind), "skip")
    assert contents(examples)["train"] == [("b", "n"), ("d", "y")]
    assert examples.missing == {"t": {"train": 2, "test": 1}}
    assert {split: counts.tolist() for split, counts in examples.class_counts["t"].items()} == {
        "train": [1, 1],
        "test": [1, 1],
    }


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_without_a_label_are_refused_where_the_recipe_says_so(tmp_path: Path, split: str) -> None:
    rows = {"train": GOOD, "test": GOOD} | {split: [*GOOD, row("c", None), row("d", "")]}
    task = a_task(tmp_path, rows["train"], rows["test"], missing="error")
    message = f"tasks.t: {split} row 2 (from 0): has no label; missing: skip leaves it out; 1 more like it"
    assert refusal(task) == message


def shared(folder: Path, rows: dict[str, list[dict[str, Any]]], **source: Any) -> ExampleSetConfig:
    """The example set of a source with the tasks team and mood."""
    files = {split: write(folder / f"{split}.json", of) for split, of in rows.items()}
    recipe = {
        "sources": {"tickets": {"path": "json", "data_files": files, **source}},
        "tasks": {name: {"source": "tickets", "label": name} for name in ("team", "mood")},
    }
    (config,) = example_sets(Recipe.model_validate(recipe))
    return config


def ticket(text: str, team: Any, mood: Any) -> dict[str, Any]:
    return {"text": text, "team": team, "mood": mood}


TICKETS = [
    ticket("a", "x", None),
    ticket("b", None, 1),
    ticket("c", None, None),
    ticket("d", "y", 2),
    ticket("e", "x", 1),
]


def test_rows_of_a_shared_source_have_labels_for_each_of_its_tasks(tmp_path: Path) -> None:
    examples = checked_set(shared(tmp_path, {"train": TICKETS, "test": TICKETS[3:]}))
    assert contents(examples, "team")["train"] == [("a", "x"), ("b", None), ("d", "y"), ("e", "x")]
    assert contents(examples, "mood")["train"] == [("a", None), ("b", "1"), ("d", "2"), ("e", "1")]
    assert examples.splits["train"].rows.tolist() == [0, 1, 3, 4]
    assert examples.missing == {"team": {"train": 2, "test": 0}, "mood": {"train": 2, "test": 0}}
    assert examples.class_counts["team"]["train"].tolist() == [2, 1]
    assert examples.class_counts["mood"]["train"].tolist() == [2, 1]


@pytest.mark.parametrize("split", ["train", "test"])
def test_training_or_test_split_without_a_label_of_some_task_is_refused(tmp_path: Path, split: str) -> None:
    rows = {"train": TICKETS, "test": TICKETS} | {split: [ticket("a", "x", None), ticket("d", "y", None)]}
    with pytest.raises(UserError) as error:
        checked_set(shared(tmp_path, rows))
    assert str(error.value) == f"tasks.mood: the {split} split has no rows with a label"


def test_validation_split_without_a_label_of_some_task_is_absent_for_it(tmp_path: Path) -> None:
    rows = {"train": TICKETS, "validation": [ticket("a", "x", None), ticket("d", "y", None)], "test": TICKETS}
    examples = checked_set(shared(tmp_path, rows))
    assert list(examples.class_counts["team"]) == ["train", "validation", "test"]
    assert list(examples.class_counts["mood"]) == ["train", "test"]
    assert examples.missing["mood"]["validation"] == 2
    without = {**rows, "validation": [ticket("a", None, None)]}
    assert list(checked_set(shared(tmp_path, without)).splits) == ["train", "test"]


def test_shares_of_the_training_rows_are_splits_of_their_own(tmp_path: Path) -> None:
    rows = [ticket(f"text {n}", "xy"[n % 2], n % 3 if n % 5 else None) for n in range(200)]
    config = shared(tmp_path, {"train": rows}, split={"validation": 0.2, "test": 0.3})
    examples = checked_set(config)
    numbers = {split: part.rows.tolist() for split, part in examples.splits.items()}
    assert list(numbers) == ["train", "validation", "test"]
    assert sorted(row for of in numbers.values() for row in of) == list(range(200))
    assert all(20 < len(of) < 130 for of in numbers.values())
    for split, of in numbers.items():
        assert contents(examples, "team")[split] == [(f"text {n}", "xy"[n % 2]) for n in of]
        assert examples.missing["mood"][split] == sum(n % 5 == 0 for n in of)
    # A run that does not read the validation rows does not train on them either.
    assert checked_set(config, ("train", "test")).splits["train"].rows.tolist() == numbers["train"]
    assert checked_set(config, ("test",)).splits["test"].rows.tolist() == numbers["test"]


def test_share_that_no_row_falls_into_is_refused(tmp_path: Path) -> None:
    config = shared(tmp_path, {"train": TICKETS, "test": TICKETS}, split={"validation": 0.001})
    with pytest.raises(UserError) as error:
        checked_set(config)
    assert str(error.value) == "sources.tickets.split.validation: none of the 5 rows falls into it; raise the share"


def test_class_of_which_only_held_out_rows_are_is_a_class(tmp_path: Path) -> None:
    rows = [ticket(f"text {n}", "xy"[n % 2], n % 2) for n in range(60)]
    held_out = checked_set(shared(tmp_path, {"train": rows}, split={"test": 0.5})).splits["test"].rows
    rows[held_out[0]]["team"] = "rare"
    examples = checked_set(shared(tmp_path, {"train": rows}, split={"test": 0.5}))
    assert names_of(examples, "team") == ("rare", "x", "y")
    assert examples.class_counts["team"]["train"][0] == 0
    assert examples.class_counts["team"]["test"][0] == 1


MANY = [row(f"text {number}", number % 2) for number in range(100)]


def test_max_rows_samples_reproducibly_and_larger_samples_contain_smaller_ones(tmp_path: Path) -> None:
    drawn = {
        count: checked(a_task(tmp_path, MANY, MANY, max_rows=count)).splits["train"].rows.tolist()
        for count in (10, 40, 41, 100, 1000)
    }
    assert {count: len(rows) for count, rows in drawn.items()} == {10: 10, 40: 40, 41: 41, 100: 100, 1000: 100}
    assert set(drawn[10]) < set(drawn[40]) < set(drawn[41]) < set(drawn[100])
    assert all(rows == sorted(rows) for rows in drawn.values())
    # Runs of earlier versions have drawn these.
    assert drawn[10] == [2, 16, 26, 54, 55, 73, 75, 86, 93, 95]


def test_max_rows_affects_neither_the_test_split_nor_the_classes(tmp_path: Path) -> None:
    examples = checked(a_task(tmp_path, MANY, MANY, max_rows=1))
    assert len(examples.splits["test"].rows) == 100
    assert names_of(examples) == ("0", "1")
    assert sorted(examples.class_counts["t"]["train"].tolist()) == [0, 1]


def test_max_rows_counts_only_rows_with_text_and_a_label(tmp_path: Path) -> None:
    train = [row("", 0), row("x", None)] * 25 + MANY
    examples = checked(a_task(tmp_path, train, MANY, max_rows=60), "skip")
    rows, labels = examples.splits["train"].rows, examples.splits["train"].labels["t"]
    assert len(rows) == 60
    assert min(rows) >= 50
    assert all(train[at]["label"] == label for at, label in zip(rows, labels, strict=True))


def test_label_that_is_none_of_many_classes_is_refused_with_some_of_them(tmp_path: Path) -> None:
    rows = [row("a cat", "c0"), row("a dog", "c1")]
    message = refusal(a_task(tmp_path, rows, [row("x", "z" * 9999)], labels=[f"c{index}" for index in range(2000)]))
    assert len(message) < 400
