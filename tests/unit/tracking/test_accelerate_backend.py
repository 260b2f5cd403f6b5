"""Trackers of Accelerate, with the real TensorBoard, whose files are read by its own reader."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate import tracking as accelerate_tracking
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from mtl_dist.tracking.accelerate_backend import AccelerateTracker
from tests.utils.in_process import metrics_of, run_here, summary_of
from tests.utils.kills import Killed, kill_before_step
from tests.utils.tiny import tiny_recipe, tiny_recipe_file

ROOT = Path(__file__).parents[3]


def series(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Returns (step, value) pairs by key as TensorBoard shows them."""
    events: Any = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {key: [(one.step, one.value) for one in events.Scalars(key)] for key in events.Tags()["scalars"]}


def require_lines(folder: Path) -> None:
    """Checks that TensorBoard shows each number of metrics.jsonl once."""
    expected: dict[str, list[tuple[int, Any]]] = {}
    for line in metrics_of(folder):
        for key, value in line.items():
            if isinstance(value, int | float) and key != "step":
                expected.setdefault(key, []).append((line["step"], pytest.approx(value, rel=1e-6)))
    found = {key: values for key, values in series(folder).items() if not key.startswith("perf/")}
    assert found == expected
    assert {"train/topic/loss", "eval/mood/accuracy", "optim/lr/heads.topic"} <= found.keys()


def test_tensorboard_has_every_number_of_the_metrics_file(tmp_path: Path) -> None:
    run_here(tiny_recipe(tmp_path, "tracking.also=[tensorboard]"))
    require_lines(tmp_path / "run")
    assert "perf/tokens_per_second" in series(tmp_path / "run")


def test_a_resumed_run_shows_no_step_twice(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "tracking.also=[tensorboard]", "checkpoint.every_steps=3")
    with pytest.MonkeyPatch.context() as patch:
        kill_before_step(11)(patch)
        with pytest.raises(Killed):
            run_here(recipe)
    run_here(recipe)
    require_lines(tmp_path / "run")
    # For readers that do not look for repeated steps, an event marks the step from which the run resumes.
    files = sorted((tmp_path / "run" / "tensorboard").glob("events*"), key=lambda path: path.stat().st_mtime_ns)
    events: list[Any] = [event for path in files for event in EventFileLoader(str(path)).Load()]
    assert [event.step for event in events if event.HasField("session_log")] == [1, 10]


def test_a_new_run_keeps_the_earlier_files_apart(tmp_path: Path) -> None:
    for _ in range(2):
        run_here(tiny_recipe(tmp_path, "tracking.also=[tensorboard]"))
    require_lines(tmp_path / "run")
    require_lines(tmp_path / "run" / "previous" / "1")


def test_a_tracker_that_fails_is_reported_once_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tracker's writer is closed in the middle of the run."""
    log = AccelerateTracker.log

    def closing(self: AccelerateTracker, line: dict[str, object], tables: object = None) -> None:
        if line["step"] == 5:
            tracker: Any = self._tracker
            tracker.tracker.file_writer.event_writer.close()
        log(self, line, tables)

    run_here(tiny_recipe(tmp_path, f"output_dir={tmp_path / 'whole'}"))
    capsys.readouterr()
    monkeypatch.setattr(AccelerateTracker, "log", closing)
    run_here(tiny_recipe(tmp_path, "tracking.also=[tensorboard]"))
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert summary_of(tmp_path / "run")["state_sha256"] == summary_of(tmp_path / "whole")["state_sha256"]
    reported = [line for line in capsys.readouterr().out.splitlines() if "is off from here" in line]
    assert [line.split(":")[0] for line in reported] == ["tensorboard is off from here"]


def test_a_tracker_that_is_not_installed_ends_the_run_before_it_starts(tmp_path: Path) -> None:
    if "trackio" in map(str, accelerate_tracking.get_available_trackers()):
        pytest.skip("trackio is installed here")
    arguments = ["--config", str(tiny_recipe_file(tmp_path)), "tracking.also=[trackio]"]
    command, environment = [sys.executable, "launch/train.py", *arguments], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == "error: tracking.also: trackio is not installed here; pip install trackio, or take it out"
    assert not (tmp_path / "run").exists()


def test_the_tracker_names_of_a_recipe_are_those_of_accelerate() -> None:
    for name in ("tensorboard", "trackio"):
        assert accelerate_tracking.LOGGER_TYPE_TO_CLASS[name].name == name
