"""Which split is measured within a run, and what happens to tasks that have no rows of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError
from mtl_dist.training.build import plan_run
from mtl_dist.training.evaluation_split import evaluation_split
from tests.utils.in_process import metrics_of, run_here, summary_of
from tests.utils.shared_rows import CLASSES, shared_recipe_file, ticket_tables
from tests.utils.tiny import tiny_recipe_file

UNTIL = "phases.1.until={{metric: {}, patience: 2, every_steps: 2}}"
STEERED = "would steer the run by the split that it reports on"
NO_MOOD = "no validation rows for mood: "
MEAN = "phases[1].until.metric is the mean loss of the others"
NO_BEST = "checkpoint.keep_best keeps no best checkpoint for them"


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """Recipe of three tasks on one table; no validation row has a mood. The encoder's weights cannot be read."""
    tables = ticket_tables()
    tables["validation"] = [{**row, "mood": ""} for row in tables["validation"]]
    return shared_recipe_file(tmp_path, tables)


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Recipe of two tasks with files of their own, without weights that can be read."""
    path = tiny_recipe_file(tmp_path)
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"")
    return path


def recipe_of(path: Path, *overrides: str) -> Recipe:
    return parse(["--config", str(path), *overrides]).recipe


def without_validation(path: Path, *tasks: str) -> Path:
    """The recipe with these tasks' validation files left out."""
    recipe = json.loads(path.read_text())
    for task in tasks:
        recipe["tasks"][task]["data_files"].pop("validation", None)
    path.write_text(json.dumps(recipe))
    return path


def planned(path: Path, *overrides: str) -> str:
    """The split of the run, as planned before weights are read."""
    return plan_run(recipe_of(path, *overrides), ProcessGroup(), 1).evaluation_split


def test_null_is_validation_where_any_task_has_it_and_else_test(apart: Path) -> None:
    assert planned(apart) == "validation"
    assert planned(apart, "evaluation.split=test") == "test"
    assert planned(apart, "evaluation.split=validation") == "validation"
    assert planned(without_validation(apart, "mood")) == "validation"
    assert planned(without_validation(apart, "mood", "topic")) == "test"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.split=validation", "evaluation.split: no task has validation rows; give them, "),
        (UNTIL.format("loss"), f"phases[1].until: {STEERED}; give a task validation data, "),
        (UNTIL.format("mood/loss"), f"phases[1].until: {STEERED}; give mood validation data, "),
    ],
)
def test_data_without_validation_rows_do_not_measure_what_needs_them(apart: Path, override: str, message: str) -> None:
    """As of a data set on the hub, whose splits are known only when it is loaded."""
    data = prepare(recipe_of(apart), ProcessGroup())
    tasks = {
        name: replace(task, class_counts={split: task.class_counts[split] for split in ("train", "test")})
        for name, task in data.tasks.items()
    }
    with pytest.raises(UserError) as error:
        evaluation_split(recipe_of(apart, override), replace(data, tasks=tasks))
    assert str(error.value).startswith(message)


def test_a_metric_of_a_task_without_validation_rows_is_refused(recipe_file: Path) -> None:
    with pytest.raises(UserError) as error:
        planned(recipe_file, UNTIL.format("mood/loss"))
    assert str(error.value) == (
        "phases[1].until.metric: task mood has no validation rows; give it some, e.g. split: {validation: 0.1}"
    )


@pytest.mark.parametrize(
    ("overrides", "warnings"),
    [
        ((), []),
        (("evaluation.split=test", "checkpoint.keep_best=loss"), []),
        ((UNTIL.format("team/loss"),), []),
        ((UNTIL.format("loss"),), [f"{NO_MOOD}{MEAN}"]),
        (("checkpoint.keep_best=loss",), [f"{NO_MOOD}{NO_BEST}"]),
        (
            (UNTIL.format("loss"), "checkpoint.keep_best=accuracy"),
            [f"{NO_MOOD}{MEAN}; {NO_BEST}"],
        ),
    ],
)
def test_a_task_without_validation_rows_is_warned_about_once_where_they_would_be_needed(
    recipe_file: Path, overrides: tuple[str, ...], warnings: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="mtl_dist")
    planned(recipe_file, *overrides)
    assert [message for message in caplog.messages if "validation rows" in message] == warnings


def test_such_a_task_is_left_out_within_the_run_and_measured_at_its_end(recipe_file: Path, tmp_path: Path) -> None:
    """The mean that ends a phase, and the best checkpoints, are those of the other tasks."""
    settings = ("checkpoint.keep_best=loss", "checkpoint.keep=1", "checkpoint.every_steps=2", UNTIL.format("loss"))
    run_here(recipe_of(recipe_file, *settings))
    run = tmp_path / "run"
    measured = [line for line in metrics_of(run) if any(key.startswith("eval/") for key in line)]
    assert measured
    for line in measured:
        tasks = {key.split("/")[1] for key in line if key.startswith("eval/")}
        assert tasks == {"team", "urgency"}
    assert {f"test/{task}/loss" for task in CLASSES} <= summary_of(run).keys()
    kept = {int(folder.name.removeprefix("step-")) for folder in (run / "checkpoints").glob("step-*")}
    losses = {line["step"]: {task: line[f"eval/{task}/loss"] for task in ("team", "urgency")} for line in measured}
    best = {min(losses, key=lambda step: losses[step][task]) for task in ("team", "urgency")}
    assert kept == best | {max(losses)}
