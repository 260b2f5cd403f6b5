"""Recipes that runs of earlier versions wrote, in checkpoints and in run folders."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from mtl_dist.checkpoint.storage import changed_keys
from mtl_dist.config.earlier import differing_keys, todays_form
from mtl_dist.config.load import parse, parse_recipe_of_run, resolved_yaml
from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import UserError

OLD_TASK = {
    "path": "json",
    "name": None,
    "data_files": {"train": "a.jsonl", "test": "b.jsonl"},
    "text": ["text"],
    "label": "label",
    "labels": ["no", "yes"],
    "weight": 1.0,
    "max_rows": None,
}
OLD_HUB_TASK = {**OLD_TASK, "path": "hub/x", "data_files": {}, "text": ["p", "q"], "labels": None}
NEW_KEYS = {"": ["sources"], "data": ["leaks"], "sampling": ["rows"]}
"""Keys that recipes of version 0.2 (commit 9e1d60c) did not have, by section; those of tasks are left out above."""


def old_recipe() -> dict[str, Any]:
    """A recipe with every key, as version 0.2 wrote it into run folders and checkpoints."""
    recipe = Recipe().model_dump()
    for section, names in NEW_KEYS.items():
        for name in names:
            del (recipe[section] if section else recipe)[name]
    recipe["tasks"] = {"a": copy.deepcopy(OLD_TASK), "b": copy.deepcopy(OLD_HUB_TASK)}
    recipe["evaluation"]["split"] = "test"
    return recipe


TODAY = """
tasks:
  a: {path: json, data_files: {train: a.jsonl, test: b.jsonl}, labels: ["no", "yes"]}
  b: {path: hub/x, text: [p, q]}
"""


def identity_today(tmp_path: Path, *overrides: str) -> dict[str, Any]:
    (tmp_path / "today.yaml").write_text(TODAY)
    return parse(["--config", str(tmp_path / "today.yaml"), *overrides]).recipe.model_dump()


def as_stored(identity: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(identity))


def test_a_run_of_an_earlier_version_resumes_with_the_same_recipe(tmp_path: Path) -> None:
    before = as_stored({**old_recipe(), "data_sha256": "1"})
    assert changed_keys(before, {**identity_today(tmp_path), "data_sha256": "1"}) == []
    assert changed_keys(before, {**identity_today(tmp_path), "data_sha256": "2"}) == ["data_sha256"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("tasks.a.labels=['yes', 'no']", "tasks.a.labels"),  # another order of the classes
        ("tasks.a.labels={'no': 'yes', 'yes': 'no'}", "tasks.a.labels"),
        ("tasks.a.labels=null", "tasks.a.labels"),
        ("tasks.b.labels=[x, y]", "tasks.b.labels"),
        ("tasks.a.data_files.train=[a.jsonl, c.jsonl]", "tasks.a.data_files.train"),
        ("tasks.a.data_files.validation=c.jsonl", "tasks.a.data_files.validation"),
        ("tasks.a.split.validation=0.1", "tasks.a.split.validation"),
        ("tasks.a.read.encoding=cp1252", "tasks.a.read.encoding"),
        ("tasks.a.text=body", "tasks.a.text"),
        ("tasks.b.text=null", "tasks.b.text"),
        ("tasks.a.missing=error", "tasks.a.missing"),
        ("data.leaks=drop", "data.leaks"),
        ("sampling.rows=per_task", "sampling.rows"),
        ("seed=7", "seed"),
    ],
)
def test_what_has_changed_since_an_earlier_version_is_named(tmp_path: Path, override: str, key: str) -> None:
    before = as_stored(old_recipe())
    assert changed_keys(before, identity_today(tmp_path, override)) == [key]
    stored = as_stored(identity_today(tmp_path))
    assert changed_keys(stored, identity_today(tmp_path, override)) == [key]
    assert changed_keys(as_stored(identity_today(tmp_path, override)), identity_today(tmp_path)) == [key]


@pytest.mark.parametrize(
    "override", ["tasks.a.text=text", "evaluation.split=test", "tasks.a.labels={'no': no, 'yes': yes}"]
)
def test_two_ways_to_write_the_same_are_equal(tmp_path: Path, override: str) -> None:
    assert differing_keys(identity_today(tmp_path), identity_today(tmp_path)) == []
    changed = differing_keys(identity_today(tmp_path), identity_today(tmp_path, override))
    assert changed == {"tasks.a.text=text": [], "evaluation.split=test": ["evaluation.split"]}.get(
        override, ["tasks.a.labels"]
    )


def test_the_text_of_a_task_is_that_of_its_source_where_it_names_none() -> None:
    task, source = {"source": "s", "text": None}, {"path": "hub/x", "text": ["p", "q"]}
    before: dict[str, Any] = {"sources": {"s": source}, "tasks": {"a": task}}
    assert differing_keys(before, {**before, "tasks": {"a": {**task, "text": ["p", "q"]}}}) == []
    assert differing_keys(before, {**before, "tasks": {"a": {**task, "text": ["text"]}}}) == ["tasks.a.text"]


def test_the_recipe_of_an_earlier_version_is_read_from_its_run_folder(tmp_path: Path) -> None:
    old = old_recipe()
    old["tasks"]["b"]["data_files"] = {"train": "a", "test": "b", "unsupervised": "c"}  # never read, and refused today
    old["optimizer"]["thaw_warmup_steps"] = old["optimizer"].pop("unfreeze_warmup_steps") + 7
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(old, sort_keys=False))
    recipe = parse_recipe_of_run(path)
    assert recipe.tasks["a"].labels == {"no": "no", "yes": "yes"}
    assert recipe.tasks["a"].data_files == {"train": ["a.jsonl"], "test": ["b.jsonl"]}
    assert recipe.tasks["b"].data_files == {"train": ["a"], "test": ["b"]}
    assert (recipe.tasks["a"].text, recipe.tasks["a"].source, recipe.sources) == (["text"], None, {})
    assert (recipe.evaluation.split, recipe.optimizer.unfreeze_warmup_steps) == ("test", 7)
    again = tmp_path / "again.yaml"
    again.write_text(resolved_yaml(recipe))
    assert parse_recipe_of_run(again) == recipe
    old["optimizer"] = {}
    path.write_text(yaml.safe_dump(old, sort_keys=False))
    with pytest.raises(UserError, match=r"no split 'unsupervised'"):
        parse(["--config", str(path)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tasks: {a: {labels: [[x], y]}}", "tasks.a.labels[0]: ['x'] is not text or a number"),
        ("tasks: {a: {data_files: 5}}", "tasks.a.data_files: 5 is not a file"),
        ("tasks: {a: 5}", "tasks.a: 5 is not a mapping"),
        ("tasks: [a]", "tasks: ['a'] is not a mapping"),
        ("optimizer: 5", "optimizer: 5 is not a mapping"),
    ],
)
def test_a_recipe_in_a_run_folder_that_was_edited_badly(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        parse_recipe_of_run(path)
    assert str(error.value).startswith(f"{path}: {expected}")


@pytest.mark.parametrize("content", [None, 5, "x", ["x"], {}])
def test_what_is_no_recipe_stays_as_it_is(content: Any) -> None:
    assert todays_form(content) == content


@pytest.mark.parametrize(
    "before",
    [{"tasks": 5}, {"tasks": {"a": 5}}, {"tasks": {"a": {"labels": 5}}}, {"sources": [1]}, {"optimizer": None}],
)
def test_contents_of_wrong_types_do_no_harm(before: dict[str, Any]) -> None:
    assert differing_keys(before, before) == []
    assert differing_keys(before, {"seed": 7})[-1:] != []
