"""A run folder read back, compared with what was written and with how a run truncates its own file."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.errors import UserError
from mtl_dist.report.records import Lines, RunRecord, read_run
from mtl_dist.training.run_folder import trim_metrics
from tests.utils.report_folders import TASKS, lines_of_run, recipe_of_run, setup_of_run, summary_of_run, write_run


def numbers(record: RunRecord) -> dict[str, list[tuple[int, float]]]:
    return {key: list(series) for key, series in record.lines.columns.items()}


def test_numbers_of_training_steps_are_those_of_the_file(tmp_path: Path) -> None:
    written = lines_of_run()
    record = read_run(write_run(tmp_path / "run", lines=written))
    steps = [line for line in written if "train/loss" in line]
    for key in ("train/loss", "train/mood/loss", "perf/padding", "optim/lr/heads.topic", "optim/lr/blocks.1"):
        assert numbers(record)[key] == [(line["step"], line[key]) for line in steps if key in line]
    assert set(numbers(record)) == {key for line in steps for key in line} - {"step", "phase", "plan/digest"}
    assert record.lines.units == {"heads": ("heads.topic", "heads.mood"), "all": tuple(setup_of_run()["units"])}


def test_evaluations_have_figures_and_confusions_by_task(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path / "run"))
    assert [(one.step, one.split) for one in record.lines.evaluations.values()] == [
        (4, "eval"),
        (8, "eval"),
        (8, "test"),
    ]
    last = record.last_evaluation()
    assert last is not None
    end = lines_of_run()[-1]
    for task in TASKS:
        assert last.figures[task] == {name: end[f"test/{task}/{name}"] for name in ("loss", "accuracy", "macro_f1")}
        assert last.confusions[task] == end[f"test/{task}/confusion"]
    assert list(record.measured("mood", "accuracy")) == [(4, 0.5), (8, 0.75)]


def test_null_is_not_a_number(tmp_path: Path) -> None:
    lines = lines_of_run()
    lines[2]["train/loss"] = lines[2]["optim/grad_norm"] = None
    record = read_run(write_run(tmp_path / "run", lines=lines))
    assert math.isnan(record.column("train/loss").values[2])
    assert list(record.column("optim/grad_norm").steps)[2] == 3


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 8)), max_size=4))
def test_repeated_steps_count_as_in_a_file_that_was_truncated(
    tmp_path_factory: pytest.TempPathFactory, kills: list[tuple[int, int]]
) -> None:
    """A run is killed after some lines and resumes from an earlier step, several times.

    The reference is what a run itself does: it truncates its file before it repeats these steps.
    """
    path = tmp_path_factory.mktemp("again") / "metrics.jsonl"
    path.touch()
    untruncated = Lines()
    for attempt, (count, back_to) in enumerate([*kills, (99, 0)]):
        position = len(path.read_text().splitlines())
        for line in lines_of_run()[position : position + count]:
            marked = {key: value + attempt if isinstance(value, float) else value for key, value in line.items()}
            untruncated.add(marked)
            with path.open("a") as file:
                file.write(json.dumps(marked) + "\n")
        if attempt < len(kills):
            trim_metrics(path, min(back_to, untruncated.latest))
    truncated = Lines()
    for text in path.read_text().splitlines():
        truncated.add(json.loads(text))
    assert untruncated == truncated


def test_a_rollback_stays_when_its_step_is_logged_again() -> None:
    lines = Lines()
    for line in lines_of_run()[:3]:
        lines.add(line)
    lines.add({"step": 4, "phase": "heads", "safety/rolled_back_to": 2})
    lines.add({"step": 4, "phase": "heads", "train/loss": 1.0})
    assert lines.rollbacks == {4: 2}
    assert list(lines.columns["train/loss"].steps) == [1, 2, 3, 4]
    lines.add({"step": 5, "phase": "heads", "safety/rolled_back_to": 2})
    lines.add({"step": 4, "phase": "heads", "train/loss": 1.0})
    assert lines.rollbacks == {4: 2}
    lines.add({"step": 3, "phase": "heads", "train/loss": 1.0})
    assert lines.rollbacks == {}


def test_unreadable_lines_are_counted_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", summary=None)
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"\0" * 40 + b"\n", b"[1]\n", lines[2], lines[3][:30]]))
    record = read_run(folder)
    assert record.lines.unreadable == 3
    assert list(record.column("train/loss").steps) == [1, 2, 3]


def spans(record: RunRecord) -> list[tuple[str, int, int]]:
    return [(span.name, span.start, span.stop) for span in record.spans]


def test_phases_of_a_finished_run_are_those_of_its_summary(tmp_path: Path) -> None:
    summary = summary_of_run()
    summary["phases"][0]["steps"], summary["steps"] = 3, 7
    assert spans(read_run(write_run(tmp_path / "run", summary=summary))) == [("heads", 0, 3), ("all", 3, 7)]


def test_phases_of_an_unfinished_run_are_as_planned_after_those_that_have_ended(tmp_path: Path) -> None:
    cut = [line for line in lines_of_run() if line["phase"] == "heads" and line["step"] <= 3]
    next_phase = {"step": 4, "phase": "all", "train/loss": 1.0}
    assert spans(read_run(write_run(tmp_path / "a", lines=[], summary=None))) == [("heads", 0, 4), ("all", 4, 8)]
    assert spans(read_run(write_run(tmp_path / "b", lines=cut, summary=None))) == [("heads", 0, 4), ("all", 4, 8)]
    record = read_run(write_run(tmp_path / "c", lines=[*cut, next_phase], summary=None))
    assert spans(record) == [("heads", 0, 3), ("all", 3, 7)]
    assert (record.done, record.total, record.finished) == (4, 7, False)


def test_a_run_of_an_older_version_has_what_its_lines_contain(tmp_path: Path) -> None:
    finished = read_run(write_run(tmp_path / "finished", setup=None))
    assert spans(finished) == [("heads", 0, 4), ("all", 4, 8)]
    assert finished.starts[0]["engine"] == "single"
    lines = [line for line in lines_of_run() if line["step"] <= 6]
    unfinished = read_run(write_run(tmp_path / "unfinished", lines=lines, setup=None, summary=None))
    assert spans(unfinished) == [("heads", 0, 4), ("all", 4, 6)]
    assert unfinished.spans[1].units == tuple(setup_of_run()["units"])
    assert unfinished.labels("mood") == []
    assert unfinished.starts == []


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "no recipe": ({"recipe.yaml": None}, "is no run: it has no recipe.yaml"),
    "no YAML": ({"recipe.yaml": "a: [1"}, "recipe.yaml: is not YAML"),
    "no mapping": ({"recipe.yaml": "- a"}, "recipe.yaml: is not a mapping of keys to values"),
    "half a set-up": ({"setup.json": '{"tasks"'}, "setup.json: is not JSON"),
    "a list": ({"summary.json": "[]"}, "summary.json: is not a mapping of keys to values"),
    "other bytes": ({"recipe.yaml": b"\xff\xfe"}, "recipe.yaml: is not text in UTF-8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_folder_that_is_no_run_is_refused_in_one_line(tmp_path: Path, mistake: str) -> None:
    files, message = MISTAKES[mistake]
    folder = write_run(tmp_path / "run")
    for name, content in files.items():
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_run(folder)
    assert message in str(error.value)
    assert str(error.value).startswith(str(folder))
    assert len(str(error.value).splitlines()) == 1


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; name a run's output_dir$"):
        read_run(tmp_path / "nowhere")


def test_labels_without_setup_are_the_names_in_the_recipe(tmp_path: Path) -> None:
    recipe = recipe_of_run()
    recipe["tasks"]["topic"]["labels"] = {"1": "art", "0": "sea"}
    recipe["tasks"]["mood"]["labels"] = ["bad", "good"]  # as earlier versions wrote them
    run = read_run(write_run(tmp_path / "run", recipe=recipe, setup=None))
    assert (run.labels("topic"), run.labels("mood")) == (["art", "sea"], ["bad", "good"])


@pytest.mark.parametrize(
    ("in_setup", "in_recipe", "expected"),
    [
        (None, "test", "test"),
        (None, "validation", "validation"),
        (None, None, "evaluation"),
        ("test", None, "test"),
        ("validation", None, "validation"),
    ],
)
def test_the_split_that_is_measured_within_the_run(
    tmp_path: Path, in_setup: str | None, in_recipe: str | None, expected: str
) -> None:
    recipe, setup = recipe_of_run(), setup_of_run()
    recipe["evaluation"] = {"split": in_recipe}
    if in_setup is not None:
        setup["evaluation_split"] = in_setup
    assert read_run(write_run(tmp_path / "run", recipe=recipe, setup=setup)).evaluation_split == expected
