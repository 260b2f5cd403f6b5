"""Rules of sources, of the tasks that use them, and of sampling from them."""

import math
from typing import Any

import pytest

from mtl_dist.config.data_recipe import ReadConfig, SourceConfig, SplitConfig
from mtl_dist.config.recipe import Recipe, TaskConfig
from mtl_dist.config.validation import check_recipe
from tests.utils.recipes import message


def shared(**changes: Any) -> Recipe:
    """Tasks a and b on the rows of the source t, which holds out rows, and c on a data set of its own."""
    source: dict[str, Any] = {
        "path": "csv",
        "data_files": {"train": ["t.csv"]},
        "split": SplitConfig(validation=0.1, test=0.2),
    }
    return Recipe(
        sources={"t": SourceConfig(**{**source, **changes})},
        tasks={"a": TaskConfig(source="t", label="x"), "b": TaskConfig(source="t"), "c": TaskConfig(path="hub/c")},
    )


def test_tasks_with_a_source() -> None:
    check_recipe(shared())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "tasks.a.path: missing; or name a source: t"),
        (
            {"data_files": {"train": ["a.TSV.gz", "b.csv"]}},
            "tasks.a.path: missing; its files end like those of path: csv",
        ),
        ({"data_files": {"train": ["a.csv"], "test": ["b.json"]}}, "tasks.a.path: missing; or name a source: t"),
        ({"data_files": {"train": ["a"]}}, "tasks.a.path: missing; or name a source: t"),
        ({"path": "t.csv"}, "tasks.a.path: t.csv is a file; write path: csv, data_files: t.csv"),
        ({"path": "x/t.jsonl.gz"}, "tasks.a.path: x/t.jsonl.gz is a file; write path: json, data_files: x/t.jsonl.gz"),
        ({"source": "T"}, "tasks.a.source: no source 'T'; choose from t"),
        ({"source": "tt"}, "tasks.a.source: no source 'tt'; did you mean t?"),
        ({"source": ""}, "tasks.a.source: no source ''; choose from t"),
        *(
            (
                {"source": "t", field: value},
                f"tasks.a.{field}: the rows come from the source t; set sources.t.{field}, or tasks.a.source: null",
            )
            for field, value in {
                "path": "csv",
                "name": "x",
                "data_files": {"test": ["x.csv"]},
                "read": ReadConfig(delimiter=";"),
                "split": SplitConfig(test=0.1),
                "max_rows": 5,
            }.items()
        ),
    ],
)
def test_where_a_tasks_rows_are(fields: dict[str, Any], expected: str) -> None:
    recipe = shared()
    recipe.tasks["a"] = TaskConfig(**fields)
    assert message(recipe) == expected


def test_a_source_that_no_task_uses_is_no_mistake() -> None:
    """An override can give a task other rows, and cannot take a source away."""
    recipe = shared()
    recipe.tasks = {"c": recipe.tasks["c"]}
    check_recipe(recipe)


TEST_HINT = "; name one, or hold out rows, e.g. split: {test: 0.2}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data_files": {}}, "data_files: missing; path csv reads files"),
        ({"path": "t.csv", "data_files": {}}, "path: t.csv is a file; write path: csv, data_files: t.csv"),
        ({"split": SplitConfig()}, f"data_files: no file for the split test{TEST_HINT}"),
        ({"path": "hub/x", "split": SplitConfig()}, f"data_files: no file for the split test{TEST_HINT}"),
        ({"split": SplitConfig(validation=0.1)}, f"data_files: no file for the split test{TEST_HINT}"),
        (
            {"data_files": {"validation": ["v"]}, "split": SplitConfig(test=0.1)},
            "data_files: no file for the split train",
        ),
        (
            {"data_files": {"train": ["a"], "val": ["b"]}},
            "data_files: no split 'val'; choose from train, validation, test",
        ),
        ({"data_files": {"train": ["a"], "tets": ["b"]}}, "data_files: no split 'tets'; did you mean test?"),
        (
            {"path": "hub/x", "data_files": {"train": ["a"], "dev": ["b"]}},
            "data_files: no split 'dev'; choose from train, validation, test",
        ),
        *(
            (
                {"data_files": {"train": ["a"], split: ["b"]}},
                f"split.{split}: there are files for this split too; leave out one of both",
            )
            for split in ("validation", "test")
        ),
        ({"path": "json", "read": ReadConfig(delimiter=";")}, "read.delimiter: goes with path csv, not json"),
        ({"path": "text", "read": ReadConfig(quotechar=None)}, "read.quotechar: goes with path csv, not text"),
        ({"path": "json", "read": ReadConfig(header=False)}, "read.header: goes with path csv, not json"),
        (
            {"path": "parquet", "read": ReadConfig(encoding="cp1252")},
            "read.encoding: goes with path csv or json or text, not parquet",
        ),
        (
            {"path": "hub/x", "data_files": {}, "read": ReadConfig(header=False)},
            "read.header: goes with path csv, not hub/x",
        ),
    ],
)
def test_mistake_in_a_source(changes: dict[str, Any], expected: str) -> None:
    """In one that tasks share, in one that no task uses, and in that of a task."""
    recipe = shared(**changes)
    assert message(recipe) == f"sources.t.{expected}"
    unused = recipe.model_copy(update={"tasks": {"c": recipe.tasks["c"]}})
    assert message(unused) == f"sources.t.{expected}"
    own = {field: getattr(recipe.sources["t"], field) for field in ("path", "data_files", "read", "split")}
    assert message(Recipe(tasks={"a": TaskConfig(**own)})) == f"tasks.a.{expected}"


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "hub/x", "data_files": {}},  # the data set itself says which splits it has
        {"path": "hub/x", "data_files": {}, "split": SplitConfig()},
        {"split": SplitConfig(test=0.1, by="customer")},
        {"split": SplitConfig(test=0.1, stratify="label")},
        {"data_files": {"train": ["a"], "test": ["b"]}, "split": SplitConfig(validation=0.1)},
        {"read": ReadConfig(delimiter=";", encoding="cp1252", quotechar=None, header=False)},
        {"path": "json", "read": ReadConfig(encoding="utf-16")},
        {"path": "text", "read": ReadConfig(encoding="utf-16")},
    ],
)
def test_valid_source(changes: dict[str, Any]) -> None:
    check_recipe(shared(**changes))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ({"validation": 0.5, "test": 0.5}, "validation and test leave no rows to train on; their sum is below 1"),
        ({"validation": 0.9, "test": 0.2}, "validation and test leave no rows to train on; their sum is below 1"),
        ({"by": "x"}, "by goes with the share of validation or test"),
        ({"stratify": "x"}, "stratify goes with the share of validation or test"),
        ({"test": 0.1, "by": "x", "stratify": "y"}, "by and stratify cannot both hold; give one of them"),
    ],
)
def test_mistake_in_a_split(split: dict[str, Any], expected: str) -> None:
    recipe = shared()
    recipe.sources["t"].split = SplitConfig.model_construct(**split)
    assert message(recipe) == f"sources.t.split: {expected}"


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_share_out_of_range(split: str, share: float) -> None:
    recipe = shared()
    setattr(recipe.sources["t"].split, split, share)
    assert message(recipe) == f"sources.t.split.{split}: {share} is not above 0 and below 1"


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ({"delimiter": "ab"}, "read.delimiter: 'ab' is not one character"),
        ({"delimiter": "\n"}, "read.delimiter: '\\n' is not one character; quote it, e.g. \"|\""),
        ({"delimiter": ""}, "read.delimiter: '' is not one character; quote it, e.g. \"|\""),
        ({"delimiter": "\0"}, "read.delimiter: '\\x00' is not one character"),
        ({"quotechar": ""}, "read.quotechar: '' is not one character; quote it, e.g. \"|\""),
        ({"quotechar": "''"}, "read.quotechar: \"''\" is not one character"),
        ({"quotechar": ";", "delimiter": ";"}, "read: delimiter and quotechar are both ';'"),
        ({"delimiter": '"'}, "read: delimiter and quotechar are both '\"'"),
        ({"encoding": "latin-15x"}, "read.encoding: no encoding 'latin-15x'; e.g. utf-8, cp1252, utf-16"),
        ({"encoding": ""}, "read.encoding: no encoding ''; e.g. utf-8, cp1252, utf-16"),
        ({"encoding": "base64"}, "read.encoding: no encoding 'base64'; e.g. utf-8, cp1252, utf-16"),
        ({"encoding": "utf-8\0"}, "read.encoding: no encoding 'utf-8\\x00'; e.g. utf-8, cp1252, utf-16"),
    ],
)
def test_mistake_in_how_files_are_read(read: dict[str, Any], expected: str) -> None:
    recipe = shared()
    recipe.sources["t"].read = ReadConfig.model_construct(**read)
    assert message(recipe) == f"sources.t.{expected}"


def test_evaluation_on_validation_needs_validation_rows_in_every_source() -> None:
    recipe = shared()
    recipe.evaluation.split = "validation"
    check_recipe(recipe)
    recipe.sources["t"].split.validation = None
    hint = "; name one, or hold out rows, e.g. split: {validation: 0.2}"
    assert message(recipe) == f"sources.t.data_files: no file for the split validation{hint}"
    recipe.evaluation.split = None
    check_recipe(recipe)


@pytest.mark.parametrize("kind", ["source", "task"])
@pytest.mark.parametrize("name", ["a.b", "", "a\n", "a b", "a/b", "ä", "a (x)"])
def test_names_are_plain(kind: str, name: str) -> None:
    recipe = shared()
    if kind == "source":
        recipe.sources[name] = recipe.sources["t"]
    else:
        recipe.tasks[name] = recipe.tasks["a"]
    assert message(recipe) == f"{kind}s: {name!r} is no name for a {kind}; use letters, digits, _ and -"


def test_a_source_and_a_task_with_other_rows_have_different_names() -> None:
    recipe = shared()
    recipe.tasks["t"] = TaskConfig(source="t", label="y")
    check_recipe(recipe)
    recipe.tasks["t"] = TaskConfig(path="hub/t")
    assert message(recipe) == "sources.t: a task with other rows has this name; rename one of both"
    recipe.sources["u"] = recipe.sources["t"]
    recipe.tasks["t"] = TaskConfig(source="u")
    assert message(recipe) == "sources.t: a task with other rows has this name; rename one of both"
    for task in ("a", "b"):
        recipe.tasks[task].source = "u"
    check_recipe(recipe)  # the source t has no rows in this run


def test_a_batch_has_room_for_each_group_of_tasks_that_share_rows() -> None:
    recipe = shared()
    recipe.batch_size = 2
    check_recipe(recipe)
    recipe.batch_size = 1
    assert message(recipe) == "batch_size: 1 is smaller than its 2 groups of tasks with rows of their own"
    recipe.sampling.batches = "one_task"
    check_recipe(recipe)
    recipe.sampling.batches, recipe.sampling.rows, recipe.batch_size = "mixed", "per_task", 2
    assert message(recipe) == "batch_size: 2 is smaller than its 3 tasks"
    recipe.sampling.rows = "shared"
    recipe.tasks["b"].text = ["title"]  # other texts, so rows of its own
    assert message(recipe) == "batch_size: 2 is smaller than its 3 tasks"


def test_tasks_that_share_rows_have_one_weight() -> None:
    recipe = shared()
    recipe.sampling.strategy = "weighted"
    recipe.sampling.weights = {"a": 2.0, "b": 2.0, "c": 1.0}
    check_recipe(recipe)
    recipe.sampling.weights["b"] = 1.0
    expected = "sampling.weights: a and b share rows, and so one weight; or set sampling.rows: per_task"
    assert message(recipe) == expected
    recipe.sampling.rows = "per_task"
    check_recipe(recipe)
    recipe.sampling.rows = "shared"
    recipe.tasks["b"].text = ["title"]
    check_recipe(recipe)
