"""W&B as a backend, with the real library in offline mode; its files are read as `wandb sync` would read them."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from transformers import AutoTokenizer

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe, TrackingConfig
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import Interrupted, TrainingError
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.tracking import wandb_backend
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.tracking.wandb_offline_file import last_row, records
from tests.faults.wandb_server import ANSWER, BUCKET, Server, closed_port
from tests.unit.training.test_stopped_runs import stop_at_check
from tests.utils.in_process import metrics_of, run_here, summary_of
from tests.utils.kills import Killed, kill_before_step
from tests.utils.nonfinite import inject_nonfinite
from tests.utils.tiny import MOODS, TOPICS, tiny_recipe
from tests.utils.wandb_files import (
    files_in,
    is_chart,
    items,
    of_kind,
    records_in,
    records_of,
    rows_of,
    summary_of_wandb,
    without_lists,
)

ROOT = Path(__file__).parents[3]
TASKS = {"topic": sorted(TOPICS), "mood": [str(label) for label in range(len(MOODS))]}
OVERRIDES = ("tracking.wandb=true", "tracking.wandb_project=a project", "tracking.group=a study")
TAGS = "tracking.tags=[a, b]"


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="mtl_dist")


def messages_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Returns the messages of the package, without those of W&B itself."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("mtl_dist.")]


def tracker_in(folder: Path, wandb_id: str = "", **config: Any) -> Tracker:
    recipe = Recipe(tracking=TrackingConfig(wandb=True, **config))
    return Tracker(folder, recipe, ProcessGroup(), wandb_id)


def log(tracker: Tracker, steps: Iterable[int]) -> None:
    for step in steps:
        tracker.log(step, "heads", {"train/loss": 1.0})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Returns the folder of a whole run with `tracking.wandb`, and the records of W&B."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("tracking"), *OVERRIDES, TAGS)
    run_here(recipe)
    folder = Path(recipe.output_dir)
    return folder, records_in(folder)


def test_wandb_has_the_resolved_recipe_as_config_with_project_group_and_tags(
    whole_run: tuple[Path, list[Any]],
) -> None:
    folder, found = whole_run
    (run,) = of_kind(found, "run")
    assert items(run.config.update) == parse(["--config", str(folder / "recipe.yaml")]).recipe.model_dump()
    assert (run.project, run.run_group, run.job_type) == ("a project", "a study", "train")
    assert (run.display_name, list(run.tags)) == ("run", ["a", "b"])


def test_wandb_plots_every_metric_over_the_step(whole_run: tuple[Path, list[Any]]) -> None:
    metrics = of_kind(whole_run[1], "metric")
    axes = {metric.name or metric.glob_name: metric.step_metric for metric in metrics}
    assert axes.pop("step") == ""
    assert set(axes.values()) == {"step"}
    # W&B's own summary covers one process; for these keys it is off and ours is used.
    own = {metric.name for metric in metrics if metric.summary.none}
    of_tasks = {f"eval/{task}/{name}" for task in TASKS for name in ("loss", "accuracy", "macro_f1")}
    assert own == {"train/loss"} | of_tasks | {f"train/{task}/loss" for task in TASKS}
    assert axes.keys() == own | {"*"}


def test_wandb_has_every_line_of_the_metrics_file(whole_run: tuple[Path, list[Any]]) -> None:
    folder, found = whole_run
    rows = rows_of(found)
    assert rows == [without_lists(line) for line in lines_of(folder)]
    assert len(rows) == 12 + 2 + 1  # steps, boundaries, the end
    numbers = [history.step.num for history in of_kind(found, "history")]
    assert numbers == sorted(set(numbers))


def test_wandb_has_the_summary_and_knows_how_the_run_ended(whole_run: tuple[Path, list[Any]]) -> None:
    folder, found = whole_run
    assert summary_of_wandb(found).items() >= summary_of(folder).items()
    (ended,) = of_kind(found, "exit")
    assert ended.exit_code == 0
    assert of_kind(found, "alert") == []
    assert [artifact.type for artifact in of_kind(found, "artifact")] == ["run_table"] * 4


def require_bests(summary: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    for name, key in (("min", "train/loss"), ("min", "eval/mood/loss"), ("max", "eval/topic/accuracy")):
        values = [line[key] for line in lines if key in line]
        assert summary[key] == {name: min(values) if name == "min" else max(values), "last": values[-1]}


def test_the_summary_has_the_best_and_the_last_of_each_figure(whole_run: tuple[Path, list[Any]]) -> None:
    folder, found = whole_run
    require_bests(summary_of_wandb(found), lines_of(folder))


def table(folder: Path, name: str) -> list[list[Any]]:
    """Returns the rows of the only table of this name among W&B's files."""
    (path,) = folder.glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json")
    return json.loads(path.read_text(encoding="utf-8"))["data"]


@pytest.mark.parametrize("task", TASKS)
def test_confusions_are_a_chart_at_the_end(whole_run: tuple[Path, list[Any]], task: str) -> None:
    folder, found = whole_run
    cells = {(label, other): 0 for label in TASKS[task] for other in TASKS[task]}
    for label, other, count in lines_of(folder)[-1][f"test/{task}/confusion"]:
        cells[TASKS[task][label], TASKS[task][other]] = count
    rows = table(folder, f"test/{task}/confusion_matrix_table")
    assert {(label, other): count for label, other, count in rows} == cells
    charts = [key for history in of_kind(found, "history") for key in items(history.item) if is_chart(key)]
    assert {key.split(".")[0] for key in charts} == {
        f"test/{one}/{what}" for one in TASKS for what in ("confusion_matrix_table", "misclassified")
    }


@pytest.mark.parametrize("task", TASKS)
def test_misclassified_texts_are_those_that_the_saved_model_misclassifies(
    whole_run: tuple[Path, list[Any]], task: str
) -> None:
    folder, _ = whole_run
    model = MultitaskTransformer.from_pretrained(folder / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "model")
    expected = []
    source = folder.parent / "data" / f"{task}.test.json"
    for row, line in enumerate(map(json.loads, source.read_text(encoding="utf-8").splitlines())):
        tokens = tokenizer(line["text"], return_tensors="pt")
        with torch.no_grad():
            scores = model(tokens["input_ids"], tokens["attention_mask"], task)[0].double().softmax(dim=-1)
        predicted = TASKS[task][int(scores.argmax())]
        if predicted != str(line["label"]):
            score = pytest.approx(float(scores.max()), rel=1e-5)
            expected.append([row, line["text"], str(line["label"]), predicted, score])
    found = table(folder, f"test/{task}/misclassified")
    assert sorted(found) == expected
    assert found == sorted(found, key=lambda one: -one[4])
    assert len(expected) > 1


def test_no_more_texts_are_sent_than_are_allowed(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, *OVERRIDES, "tracking.misclassified=1", "phases.1.steps=1", "phases.2.steps=1")
    run_here(recipe)
    found = records_in(tmp_path / "run")
    assert [len(table(tmp_path / "run", f"test/{task}/misclassified")) for task in TASKS] == [1, 1]
    assert len(rows_of(found)) == len(lines_of(tmp_path / "run"))


def stopped(recipe: Recipe, round_: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_at_check(patch, round_)
        with pytest.raises(Interrupted):
            run_here(recipe)
    wandb.teardown()  # as the end of a process does


def killed(recipe: Recipe, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill_before_step(step)(patch)
        with pytest.raises(Killed):
            run_here(recipe)
    wandb.teardown()


def require_one_run(folder: Path, starts: int) -> list[Any]:
    """Checks that W&B's files of a run with `starts` starts have one id and each line once; returns the records."""
    paths = files_in(folder)
    assert len(paths) == starts
    found = [record for path in paths for record in records_of(path)]
    assert len({run.run_id for run in of_kind(found, "run")}) == 1
    wanted = [without_lists(line) for line in metrics_of(folder)]
    rows = [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows_of(found)]
    # JSON has no NaN, which is null in metrics.jsonl.
    assert [{key: None if value != value else value for key, value in row.items()} for row in rows] == wanted
    return found


def test_a_run_requeued_three_times_and_killed_twice_is_one_run_with_each_step_once(tmp_path: Path) -> None:
    """Killed after a checkpoint, so that it repeats steps that W&B has; asked to stop in evaluations too."""
    recipe = tiny_recipe(tmp_path, *OVERRIDES, "checkpoint.every_steps=3")
    stopped(recipe, 2)
    killed(recipe, 5)
    stopped(recipe, 4)
    killed(recipe, 11)
    stopped(recipe, 2)
    run_here(recipe)
    found = require_one_run(tmp_path / "run", 6)
    assert [line["step"] for line in lines_of(tmp_path / "run") if "train/loss" in line] == list(range(1, 13))
    assert [ended.exit_code for ended in of_kind(found, "exit")] == [75, 1, 75, 1, 75, 0]
    require_bests(summary_of_wandb(found), lines_of(tmp_path / "run"))
    run_here(tiny_recipe(tmp_path, f"output_dir={tmp_path / 'whole'}"))
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


def test_what_wandb_has_not_got_it_gets_at_the_next_start(tmp_path: Path) -> None:
    """Here it was not asked for at first; so it is where it was killed, or out of order."""
    stopped(tiny_recipe(tmp_path), 6)
    run_here(tiny_recipe(tmp_path, *OVERRIDES))
    found = require_one_run(tmp_path / "run", 1)
    assert summary_of_wandb(found)["train/loss"]["min"] == min(
        line["train/loss"] for line in lines_of(tmp_path / "run") if "train/loss" in line
    )


def test_a_run_that_is_stopped_sends_an_alert_and_its_exit_code(tmp_path: Path) -> None:
    stopped(tiny_recipe(tmp_path, *OVERRIDES), 3)
    found = records_in(tmp_path / "run")
    (alert,) = of_kind(found, "alert")
    assert (alert.title, alert.text.split(";")[0]) == (
        "Stopped, and can resume",
        "stopped by SIGTERM after step 3 of 12",
    )
    assert [ended.exit_code for ended in of_kind(found, "exit")] == [75]


def test_alerts_for_nonfinite_gradients_come_once_a_streak_and_for_each_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 4, 5, 8, 9 and 10 are non-finite, then comes a rollback. Repeated after a kill, they send no new alert."""
    inject_nonfinite(range(3, 5), put=monkeypatch.setattr)
    inject_nonfinite(range(7, 10), put=monkeypatch.setattr)
    overrides = ("checkpoint.every_steps=3", "optimizer.max_nonfinite_steps=3")
    recipe = tiny_recipe(tmp_path, *OVERRIDES, *overrides, "phases.1.steps=10")
    killed(recipe, 11)
    run_here(recipe)
    found = require_one_run(tmp_path / "run", 2)
    assert [(alert.title, alert.text) for alert in of_kind(found, "alert")] == [
        ("Gradient not finite", "step 4, phase heads: skipped"),
        ("Gradient not finite", "step 8, phase upper: skipped"),
        ("Rolled back", "after step 10, to the weights after step 6"),
    ]


def test_a_run_that_fails_ends_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject_nonfinite(range(4), put=monkeypatch.setattr)
    with pytest.raises(TrainingError):
        run_here(tiny_recipe(tmp_path, *OVERRIDES, "optimizer.max_nonfinite_steps=2"))
    assert [ended.exit_code for ended in of_kind(records_in(tmp_path / "run"), "exit")] == [1]


@pytest.mark.parametrize("choice", ["none", "model", "checkpoints"])
def test_artifacts_are_by_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    phases = ("phases.1.steps=1", "phases.2.steps=1", f"tracking.artifacts={choice}", "checkpoint.keep=1")
    run_here(tiny_recipe(tmp_path, *OVERRIDES, *phases))
    artifacts = [one for one in of_kind(records_in(tmp_path / "run"), "artifact") if one.type != "run_table"]
    wanted = {"none": [], "model": ["model"], "checkpoints": ["checkpoint"] * 3 + ["model"]}[choice]
    assert [artifact.type for artifact in artifacts] == wanted
    steps = [json.loads(artifact.metadata)["step"] for artifact in artifacts]
    assert steps == {"none": [], "model": [6], "checkpoints": [4, 5, 6, 6]}[choice]
    for artifact in artifacts:
        # Files to be uploaded later exist, although older checkpoints are removed.
        assert all(Path(entry.local_path).is_file() for entry in artifact.manifest.contents)
        names = {entry.path for entry in artifact.manifest.contents}
        assert names >= {"model.safetensors", "config.json" if artifact.type == "model" else "manifest.json"}


def test_a_run_of_a_sweep_is_in_the_sweeps_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s33p")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    tracker_in(tmp_path / "one").finish(None)
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    tracker_in(tmp_path / "two").finish(None)
    groups = [of_kind(records_in(tmp_path / name), "run")[0].run_group for name in ("one", "two")]
    assert groups == ["sweep-s33p", "mine"]


def test_a_number_that_is_not_finite_stays_so_at_wandb_and_is_never_the_best(tmp_path: Path) -> None:
    tracker = tracker_in(tmp_path)
    # A NaN that comes first would stay the best, and one that comes last would be the last.
    losses = (math.nan, 2.0, math.nan, 3.0, math.nan)
    for step, loss in enumerate(losses, start=1):
        tracker.log(step, "heads", {"train/loss": loss})
    tracker.finish(None)
    found = records_in(tmp_path)
    assert [row["train/loss"] for row in rows_of(found)] == pytest.approx(losses, nan_ok=True)
    assert summary_of_wandb(found)["train/loss"] == {"min": 2.0, "last": 3.0}


def test_the_last_row_of_a_run_is_found_in_a_truncated_file_too(tmp_path: Path) -> None:
    """Truncated at any byte, the file has the rows up to there."""
    tracker = tracker_in(tmp_path)
    for step in range(1, 400):  # some of W&B's blocks of 32 KiB
        tracker.log(step, "heads", {"train/loss": 1 / step})
    tracker.finish(None)
    (path,) = files_in(tmp_path)
    content = path.read_bytes()
    assert len(content) > 3 * 32768
    assert list(records(path)) == list(records_of(path))
    whole = last_row(tmp_path / "wandb", tracker.wandb_id)
    assert whole == 4 * 399 + 1
    assert last_row(tmp_path / "wandb", "another") == -1
    seen = set()
    for length in (0, 3, 7, 1000, 20000, 32765, 32768, 65536, 65537, len(content) // 2):
        path.write_bytes(content[:length])
        seen.add(last := last_row(tmp_path / "wandb", tracker.wandb_id))
        steps = [history.step.num for history in of_kind(list(records(path)), "history")]
        assert last == max(steps, default=-1) <= whole
    for length in range(9000, 9150):  # a message truncated between two fields is still a message
        path.write_bytes(content[:length])
        assert list(records(path)) == list(records_of(path))
    path.write_bytes(content[:50000] + bytes(20000))
    assert 0 < last_row(tmp_path / "wandb", tracker.wandb_id) < whole
    assert len(seen) > 4


def test_wandb_that_cannot_start_is_reported_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "wandb").write_text("a file where W&B wants its folder")
    tracker = tracker_in(tmp_path)
    tracker.log(1, "heads", {"train/loss": 1.0})
    tracker.finish({"steps": 1})
    assert len(lines_of(tmp_path)) == 1
    (line,) = messages_of(caplog)
    assert line.startswith("W&B is off from here: [Errno 20] Not a directory: ")
    assert line.endswith("; metrics.jsonl still has every line")


@pytest.mark.parametrize("wandb_id", ["", "gone0on"])
def test_a_run_without_a_connection_to_wandb_is_recorded_for_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, wandb_id: str
) -> None:
    """A new run, and a resumed one, about which W&B asks its server first."""
    monkeypatch.setattr(wandb_backend, "WANDB_START_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    wandb.teardown()  # forgets the environment that it has read
    tracker = Tracker(tmp_path, Recipe(tracking=TrackingConfig(wandb=True)), ProcessGroup(), wandb_id)
    log(tracker, [1, 2])
    tracker.finish({"steps": 2})
    records = records_in(tmp_path)
    assert rows_of(records) == lines_of(tmp_path)
    (run,) = of_kind(records, "run")
    assert run.run_id == (wandb_id or tracker.wandb_id)
    (line,) = messages_of(caplog)
    assert line.startswith("W&B is offline: ")
    assert line.endswith(f"; `wandb sync` sends later what is in {tmp_path}/wandb")


def test_a_run_resumed_online_sends_the_rows_that_the_server_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server's last row is 13, the line of step 3; two of five lines are sent."""
    last = json.dumps([json.dumps({"_step": 13, "step": 3, "_runtime": 5})])
    known = {"historyLineCount": 4, "historyTail": last, "eventsTail": "[]", "wandbConfig": json.dumps({"t": 1})}
    monkeypatch.setitem(ANSWER["data"], "model", {"name": "mtl_dist", "bucket": BUCKET | known})
    monkeypatch.setattr(wandb_backend, "WANDB_START_SECONDS", 30.0)
    monkeypatch.setattr(wandb_backend, "WANDB_FINISH_SECONDS", 30.0)
    server = Server()
    try:
        for name, value in (("MODE", "online"), ("API_KEY", "0" * 40), ("BASE_URL", server.url)):
            monkeypatch.setenv(f"WANDB_{name}", value)
        wandb.teardown()  # forgets the environment that it has read
        log(first := Tracker(tmp_path, Recipe(), ProcessGroup()), range(1, 5))
        first.finish(None)
        tracker = tracker_in(tmp_path, "gone0on")
        log(tracker, [5])
        tracker.finish(None)
        wandb.teardown()
    finally:
        server.cut_off()
    (path,) = tmp_path.glob("wandb/run-*/run-*.wandb")
    assert [row["step"] for row in rows_of(list(records_of(path)))] == [4, 5]
    assert server.streamed > 0
    assert "WARNING" not in capfd.readouterr().err


def test_wandb_that_fails_during_the_run_is_reported_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = tracker_in(tmp_path)
    tracker.log(1, "heads", {"train/loss": 1.0})
    tracker._backends[0].finish(None, 0)  # any further call to this run raises
    tracker.log(2, "heads", {"train/loss": 0.5})
    tracker.log(3, "heads", {"train/loss": 0.4})
    tracker.finish({"steps": 3})
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]
    (line,) = messages_of(caplog)
    assert line.startswith("W&B is off from here: Run (")


def test_wandb_without_a_key_is_offline_and_may_die_before_the_end(tmp_path: Path) -> None:
    """Runs in a process of its own, in which W&B's service is killed."""
    code = f"""
import psutil
from pathlib import Path
from mtl_dist.config.recipe import Recipe, TrackingConfig
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.tracking.console import show_log_lines
from mtl_dist.tracking.tracker import Tracker

show_log_lines(True)
tracker = Tracker(Path({str(tmp_path)!r}), Recipe(tracking=TrackingConfig(wandb=True)), ProcessGroup())
assert list(Path({str(tmp_path)!r}).glob("wandb/offline-run-*"))
tracker.log(1, "heads", {{"train/loss": 1.0}})
for child in psutil.Process().children(recursive=True):
    child.kill()
    child.wait()
tracker.finish({{"steps": 1}})
print("the run continues")
"""
    # Without the settings of the tests, and without the service that W&B started for the tests above.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "no netrc"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    off, last = done.stdout.splitlines()
    assert off.startswith("W&B is off from here: ")
    assert last == "the run continues"
    assert "deprecated" not in done.stderr
    assert len(lines_of(tmp_path)) == 1


def test_of_a_matrix_with_very_many_counts_the_largest_are_sent() -> None:
    size = 300
    cells = [[label, other, 1 + (7 * label + other) % 50] for label in range(size) for other in range(size)]
    sent = wandb_backend._cells([str(index) for index in range(size)], cells)
    assert len(sent) == wandb_backend.MOST_CELLS
    counts = sorted((count for _, _, count in cells), reverse=True)
    assert sorted((count for _, _, count in sent), reverse=True) == counts[: wandb_backend.MOST_CELLS]
    assert all(
        [int(label), int(other), count] in cells[size * int(label) :][:size] for label, other, count in sent[::99]
    )
