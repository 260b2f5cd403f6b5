"""Which rows each task has, and how tasks share them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_dist.config.data_recipe import ReadConfig, SourceConfig, SplitConfig
from mtl_dist.config.recipe import Recipe, TaskConfig
from mtl_dist.config.sources import builder_of, example_sets, source_of, splits_by_recipe, text_of

OWN = {
    "path": "csv",
    "name": "x",
    "data_files": {"train": ["a.csv"], "test": ["b.csv"]},
    "read": ReadConfig(delimiter=";"),
    "split": SplitConfig(validation=0.1),
    "max_rows": 5,
}
T = SourceConfig(path="hub/t", text=["title", "body"], max_rows=7)


def recipe_of(**tasks: TaskConfig) -> Recipe:
    return Recipe(sources={"t": T, "u": SourceConfig(path="hub/u")}, tasks=tasks)


def summary(recipe: Recipe) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    return [(one.name, one.key, tuple(one.text), tuple(one.tasks)) for one in example_sets(recipe)]


@pytest.mark.parametrize(
    ("text", "columns"), [({}, ["text"]), ({"text": "body"}, ["body"]), ({"text": ["p", "q"]}, ["p", "q"])]
)
def test_the_source_of_a_task_with_keys_of_its_own(text: dict[str, Any], columns: list[str]) -> None:
    recipe = recipe_of(a=TaskConfig(**OWN, **text))
    assert source_of(recipe, "a") == SourceConfig(**OWN, text=columns)
    assert text_of(recipe, "a") == columns
    assert summary(recipe) == [("a", "tasks.a", tuple(columns), ("a",))]


def test_the_text_of_a_source_is_that_of_its_tasks_unless_they_have_their_own() -> None:
    recipe = recipe_of(a=TaskConfig(source="t"), b=TaskConfig(source="t", text=["title"]))
    assert source_of(recipe, "a") == T
    assert source_of(recipe, "b") == T.model_copy(update={"text": ["title"]})
    assert (text_of(recipe, "a"), text_of(recipe, "b")) == (["title", "body"], ["title"])
    assert recipe.sources["t"].text == ["title", "body"]


def test_tasks_of_one_source_and_text_are_one_set_in_the_order_of_their_first_tasks() -> None:
    recipe = recipe_of(
        a=TaskConfig(source="u"),
        b=TaskConfig(source="t", label="x"),
        c=TaskConfig(path="hub/u"),  # the same data set, named again: a source of its own
        d=TaskConfig(source="t", text=["title", "body"], label="y"),  # as the source has it
        e=TaskConfig(source="u"),
    )
    assert summary(recipe) == [
        ("u", "sources.u", ("text",), ("a", "e")),
        ("t", "sources.t", ("title", "body"), ("b", "d")),
        ("c", "tasks.c", ("text",), ("c",)),
    ]
    shared = example_sets(recipe)[1]
    assert shared.source == T
    assert shared.tasks == {"b": recipe.tasks["b"], "d": recipe.tasks["d"]}
    assert [shared.key_of(task) for task in shared.tasks] == ["tasks.b", "tasks.d"]


def test_tasks_with_keys_of_their_own_never_share_rows() -> None:
    assert summary(recipe_of(a=TaskConfig(**OWN), b=TaskConfig(**OWN))) == [
        ("a", "tasks.a", ("text",), ("a",)),
        ("b", "tasks.b", ("text",), ("b",)),
    ]


def test_two_choices_of_text_in_one_source_are_two_sets() -> None:
    recipe = recipe_of(
        a=TaskConfig(source="t", text=["title"]),
        b=TaskConfig(source="t"),
        c=TaskConfig(source="t", text=["body", "title"]),  # another pair than (title, body)
        d=TaskConfig(source="t", text=["title"], label="y"),
    )
    assert summary(recipe) == [
        ("t (title)", "sources.t", ("title",), ("a", "d")),
        ("t (title, body)", "sources.t", ("title", "body"), ("b",)),
        ("t (body, title)", "sources.t", ("body", "title"), ("c",)),
    ]
    assert [one.source.text for one in example_sets(recipe)] == [["title"], ["title", "body"], ["body", "title"]]


def test_names_of_sets_tell_a_comma_in_a_column_from_two_columns() -> None:
    recipe = recipe_of(a=TaskConfig(source="t", text=["x, y"]), b=TaskConfig(source="t", text=["x", "y"]))
    assert [name for name, *_ in summary(recipe)] == ['t ("x, y")', "t (x, y)"]


COLUMNS = st.text(st.sampled_from('xy ,"()\\\n'), max_size=4)


@given(st.lists(st.tuples(st.sampled_from(["t", "u", None]), st.lists(COLUMNS, min_size=1, max_size=2)), max_size=8))
def test_names_of_sets_are_unique(choices: list[tuple[str | None, list[str]]]) -> None:
    tasks = {
        f"a{number}": TaskConfig(path="hub/x", text=text) if source is None else TaskConfig(source=source, text=text)
        for number, (source, text) in enumerate(choices)
    }
    sets = example_sets(recipe_of(**tasks))
    assert len({one.name for one in sets}) == len(sets)
    firsts = [next(iter(one.tasks)) for one in sets]
    assert firsts == sorted(firsts, key=list(tasks).index)
    assert {name for one in sets for name in one.tasks} == tasks.keys()
    for one in sets:
        for name, task in one.tasks.items():
            assert list(one.text) == task.text == one.source.text
            assert task == tasks[name]
    held = [(task.source or name, tuple(task.text or ())) for one in sets for name, task in one.tasks.items()]
    assert len(sets) == len(set(held))


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        ({}, {}, None),
        ({}, {"test": 0.1}, None),
        ({"train": ["a"]}, {}, ("train",)),
        ({"test": ["a"], "train": ["a"]}, {}, ("train", "test")),
        ({"train": ["a"]}, {"test": 0.1, "validation": 0.1}, ("train", "validation", "test")),
        ({"train": ["a"], "test": ["b"]}, {"validation": 0.1}, ("train", "validation", "test")),
    ],
)
def test_splits_that_the_recipe_tells(
    files: dict[str, list[str]], split: dict[str, float], expected: tuple[str, ...] | None
) -> None:
    source = SourceConfig(path="hub/t", data_files=files, split=SplitConfig.model_validate(split))
    assert splits_by_recipe(source) == expected


@pytest.mark.parametrize(
    ("file", "builder"),
    [
        ("a.csv", "csv"),
        ("data/A.TSV", "csv"),
        ("a.csv.gz", "csv"),
        ("a.b.jsonl.zst", "json"),
        ("*.ndjson", "json"),
        ("a.json", "json"),
        ("a.parquet", "parquet"),
        ("a.pq", "parquet"),
        ("a.feather", "arrow"),
        ("a.arrow", "arrow"),
        ("a.txt", "text"),
        ("a.gz", None),
        ("a.csv.gz.gz", "csv"),
        ("a.xlsx", None),
        ("csv", None),
        ("json", None),
        (".csv", None),
        ("owner/name", None),
        ("owner/name-v1.5", None),
        ("", None),
    ],
)
def test_the_ending_of_a_file_tells_its_path(file: str, builder: str | None) -> None:
    assert builder_of(file) == builder
