import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtl_dist.config.recipe import Recipe
from mtl_dist.data import chunked, leaks
from mtl_dist.data.dataset import DataBundle, RowPool
from tests.unit.data.test_dataset import prepared, refusal
from tests.utils.tiny import tiny_recipe

Rows = list[tuple[str, Any, Any]]
"""Text, label of task a and label of task b."""

TRAIN: Rows = [("t0", 0, "x"), ("t1", 1, "y"), ("t2", 0, None), ("t3", 1, "x"), ("t3", 1, "y"), ("t4", None, "y")]
TEST: Rows = [("t1", 0, "x"), ("t3", 1, "y"), ("new", 1, "x"), ("t1", 0, "y")]
OTHER_TRAIN: Rows = [("o0", 0, None), ("new", 1, None), ("o1", 1, None)]
OTHER_TEST: Rows = [("t4", 0, None), ("o9", 1, None)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    """A source with the tasks a and b, and the task c with rows of its own."""
    files: dict[str, str] = {}
    rows = {"train": TRAIN, "test": TEST, "other.train": OTHER_TRAIN, "other.test": OTHER_TEST}
    for name, of in rows.items():
        lines = [json.dumps({"text": text, "a": a, "b": b}) + "\n" for text, a, b in of]
        (tmp_path / f"{name}.json").write_text("".join(lines), encoding="utf-8")
        files[name] = str(tmp_path / f"{name}.json")
    base = tiny_recipe(folder, f"data.cache_dir={tmp_path / 'cache'}").model_dump()
    base["sources"] = {"s": {"path": "json", "data_files": {split: files[split] for split in ("train", "test")}}}
    base["tasks"] = {
        "a": {"source": "s", "label": "a"},
        "b": {"source": "s", "label": "b"},
        "c": {
            "path": "json",
            "data_files": {split: files[f"other.{split}"] for split in ("train", "test")},
            "label": "a",
        },
    }
    return Recipe.model_validate(base)


FOUND = (
    "sources.s: 3 of 4 test rows have a text that is also in train",
    "sources.s: 1 of 4 test rows have a text that is also in train of c",
    "tasks.c: 1 of 2 test rows have a text that is also in train of s",
)


def test_equal_texts_within_and_across_example_sets_are_counted_by_row(recipe: Recipe) -> None:
    assert prepared(recipe)[0].warnings == FOUND
    assert prepared(recipe)[0].warnings == FOUND  # from the cache


def test_leaks_are_found_in_every_chunk(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 2)
    assert prepared(recipe)[0].warnings == FOUND


def test_leaks_are_refused_where_the_recipe_says_so(recipe: Recipe) -> None:
    recipe.data.leaks = "error"
    assert refusal(recipe) == f"{FOUND[0]}; data.leaks: drop leaves out such training rows, and warn only counts them"


def numbers(pool: RowPool) -> list[int]:
    return list(range(pool.size)) if pool.rows is None else pool.rows.tolist()


def pools_of(data: DataBundle) -> dict[str, list[int]]:
    return {pool.name: numbers(pool) for pool in data.pools}


def test_pools_have_all_rows_of_an_example_set_or_those_with_a_label_of_a_task(recipe: Recipe) -> None:
    assert pools_of(prepared(recipe)[0]) == {"s": [0, 1, 2, 3, 4, 5], "c": [0, 1, 2]}
    recipe.sampling.rows = "per_task"
    data, _ = prepared(recipe)
    assert pools_of(data) == {"a": [0, 1, 2, 3, 4], "b": [0, 1, 3, 4, 5], "c": [0, 1, 2]}
    assert [pool.tasks for pool in data.pools] == [("a",), ("b",), ("c",)]


def test_dropped_rows_are_in_no_pool_and_in_no_count(recipe: Recipe) -> None:
    before = prepared(recipe)[0]
    recipe.data.leaks = "drop"
    data, _ = prepared(recipe)
    assert pools_of(data) == {"s": [0, 2], "c": [0, 2]}
    assert [pool.size for pool in data.pools] == [2, 2]
    assert data.tasks["a"].class_counts["train"].tolist() == [2, 0]
    assert data.tasks["b"].class_counts["train"].tolist() == [1, 0]
    assert data.tasks["c"].class_counts["train"].tolist() == [1, 1]
    assert (before.tasks["b"].missing, data.tasks["b"].missing) == ({"train": 1, "test": 0},) * 2
    assert data.tasks["a"].missing == {"train": 0, "test": 0}
    assert data.warnings == (
        "tasks.a: no training row has the label 1",
        "tasks.b: no training row has the label y",
        "sources.s: 4 train rows are left out, whose texts are also in other splits",
        "tasks.c: 1 train rows are left out, whose texts are also in other splits",
    )
    recipe.sampling.rows = "per_task"
    assert pools_of(prepared(recipe)[0]) == {"a": [0, 2], "b": [0], "c": [0, 2]}


def test_digest_depends_on_the_dropped_rows(recipe: Recipe) -> None:
    before = prepared(recipe)[0].digest
    recipe.data.leaks = "drop"
    assert prepared(recipe)[0].digest != before


def test_task_without_training_rows_after_dropping_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text, "a": 1 - number % 2}) + "\n" for number, (text, _, _) in enumerate(OTHER_TRAIN)]
    (tmp_path / "other.test.json").write_text("".join(lines), encoding="utf-8")
    recipe.data.leaks = "drop"
    assert refusal(recipe) == "tasks.c: data.leaks: drop leaves no training row; all texts are in other splits too"


@pytest.mark.parametrize("content", ["", "{}", '{"sets": 3, "found": []}', None])
def test_result_that_cannot_be_read_is_computed_again(recipe: Recipe, tmp_path: Path, content: str | None) -> None:
    prepared(recipe)
    (counts,) = (tmp_path / "cache" / leaks.FOLDER).glob("*/counts.json")
    if content is None:
        counts.unlink()
    else:
        counts.write_text(content, encoding="utf-8")
    assert prepared(recipe)[0].warnings == FOUND


def test_rows_of_the_result_are_mapped(recipe: Recipe, tmp_path: Path) -> None:
    prepared(recipe)
    (found,) = (tmp_path / "cache" / leaks.FOLDER).iterdir()
    opened = leaks.open_leaks(found)
    assert opened is not None
    assert all(isinstance(rows, np.memmap) for rows in opened.rows)
    assert [rows.tolist() for rows in opened.rows] == [[1, 3, 4, 5], [1]]


def test_of_many_classes_without_training_rows_only_some_are_named(recipe: Recipe) -> None:
    recipe.tasks["a"].labels = {str(index): f"c{index}" for index in range(2000)}
    line = prepared(recipe)[0].warnings[0]
    names = ", ".join(f"c{index}" for index in range(2, 12))
    assert line == f"tasks.a: no training row has the label {names} and 1988 more"
