"""What a run tells. W&B is the real library in offline mode; its file is read back as `wandb sync` would read it."""

import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import wandb

from mtl_dist import tracking
from mtl_dist.cli import parse
from mtl_dist.errors import TrainingError
from mtl_dist.processes import Processes
from mtl_dist.recipe import CheckpointConfig, Recipe, TrackingConfig
from mtl_dist.tracking import Console, Progress, Tracker
from tests.disks import nearly_full, small_disk, why_not
from tests.faults.wandb_server import closed_port
from tests.in_process import run_here
from tests.kills import Killed, killed_before_step
from tests.tiny import tiny_recipe

# Imported by name, because protobuf makes its classes as the module is loaded, unseen by type checks.
Record: Any = import_module("wandb.proto.wandb_internal_pb2").Record
ROOT = Path(__file__).parents[2]
WITH_WANDB = TrackingConfig(wandb=True)


def tracker_in(folder: Path, config: TrackingConfig = WITH_WANDB, speaks: bool = True) -> Tracker:
    return Tracker(folder, Recipe(tracking=config), Console(speaks), Processes())


def log(tracker: Tracker, steps: Iterable[int]) -> None:
    for step in steps:
        tracker.log(step, "heads", {"train/loss": 1.0})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))


def records_in(folder: Path) -> Iterator[Record]:
    """The records of the one W&B run in `folder`, whose file is a LevelDB log behind a header of 7 bytes."""
    wandb.teardown()  # waits for W&B's service, which writes the file's end after `finish` has returned
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    content = path.read_bytes()
    assert content.startswith(b":W&B")
    position, whole = 7, b""
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, size, kind = struct.unpack_from("<IHB", content, position)
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # a record in one piece, or the last piece of one
            yield Record.FromString(whole)
            whole = b""


def items(entries: Any) -> dict[str, Any]:
    """Key -> value of config, history and summary entries; keys that begin with _ are W&B's own."""
    found = {".".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}
    return {key: value for key, value in found.items() if not key.startswith("_")}


def test_what_is_not_a_number_is_null(tmp_path: Path) -> None:
    tracker = tracker_in(tmp_path, TrackingConfig())
    tracker.log(1, "heads", {"train/loss": float("nan"), "optim/grad_norm": float("inf"), "plan/digest": "12"})
    tracker.finish(None)
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert line == '{"step": 1, "phase": "heads", "train/loss": null, "optim/grad_norm": null, "plan/digest": "12"}'


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Record]]:
    """The folder of a whole run with `tracking.wandb`, and what W&B recorded of it."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("tracking"), "tracking.wandb=true", "tracking.wandb_project=a project")
    run_here(recipe)
    folder = Path(recipe.output_dir)
    return folder, list(records_in(folder))


def test_wandb_has_the_resolved_recipe_as_config(whole_run: tuple[Path, list[Record]]) -> None:
    folder, records = whole_run
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert items(run.config.update) == asdict(parse(["--config", str(folder / "recipe.yaml")]).recipe)
    assert run.project == "a project"


def test_wandb_plots_every_metric_over_the_step(whole_run: tuple[Path, list[Record]]) -> None:
    metrics = [record.metric for record in whole_run[1] if record.WhichOneof("record_type") == "metric"]
    assert {(metric.name, metric.glob_name, metric.step_metric) for metric in metrics} == {
        ("step", "", ""),
        ("", "*", "step"),
    }


def test_wandb_has_every_line_of_the_metrics_file(whole_run: tuple[Path, list[Record]]) -> None:
    folder, records = whole_run
    rows = [items(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
    assert rows == lines_of(folder)
    assert len(rows) == 12 + 2 + 1  # steps, boundaries, the end


def test_wandb_has_the_summary_and_knows_how_the_run_ended(whole_run: tuple[Path, list[Record]]) -> None:
    folder, records = whole_run
    found: dict[str, Any] = {}
    for record in records:
        found |= items(record.summary.update)
    assert found.items() >= json.loads((folder / "summary.json").read_text()).items()
    (ended,) = (record.exit for record in records if record.WhichOneof("record_type") == "exit")
    assert ended.exit_code == 0


def test_a_run_that_goes_on_is_the_same_run_at_wandb(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path, "tracking.wandb=true", "checkpoint.every_steps=2")
    with pytest.MonkeyPatch.context() as patch:
        killed_before_step(7)(patch)
        with pytest.raises(Killed):
            run_here(recipe)
    wandb.teardown()
    run_here(recipe)
    wandb.teardown()
    first, second = sorted(
        (tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime
    )
    assert first.name == second.name
    assert first != second


def test_wandb_knows_of_a_run_that_failed(tmp_path: Path) -> None:
    tracker = tracker_in(tmp_path)
    tracker.finish(None, exit_code=1)
    (ended,) = (record.exit for record in records_in(tmp_path) if record.WhichOneof("record_type") == "exit")
    assert ended.exit_code == 1


def test_lines_are_added_and_there_at_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    tracker = tracker_in(tmp_path, TrackingConfig())
    tracker.log(2, "heads", {"train/loss": 0.1 + 0.2, "plan/digest": "ab"})
    expected = [{"step": 1}, {"step": 2, "phase": "heads", "train/loss": 0.1 + 0.2, "plan/digest": "ab"}]
    assert lines_of(tmp_path) == expected
    tracker.finish({})
    assert lines_of(tmp_path) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_lines_on_a_full_disk_are_whole_or_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], on_error: Literal["stop", "continue"]
) -> None:
    """What is left of the file's last page takes some lines, and a part of the next."""
    refusal = f"cannot write {tmp_path / 'disk' / 'metrics.jsonl'}: No space left on device"
    recipe = Recipe(checkpoint=CheckpointConfig(on_error=on_error))
    with small_disk(tmp_path / "disk", 1 << 16) as disk:
        tracker = Tracker(disk, recipe, Console(True), Processes())
        log(tracker, [1])
        with nearly_full(disk, 0):
            refused = (
                nullcontext() if on_error == "continue" else pytest.raises(TrainingError, match=re.escape(refusal))
            )
            with refused:
                log(tracker, range(2, 100))
            written = len(lines_of(disk))
            assert 0 < written < 99
        if on_error == "continue":
            log(tracker, [100])
            assert [line["step"] for line in lines_of(disk)] == list(range(1, 101))
        tracker.finish(None)
    (said,) = capsys.readouterr().out.splitlines() or [""]
    continued = f"{refusal}; training goes on (checkpoint.on_error), its lines are written later"
    assert said == (continued if on_error == "continue" else "")


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_lines_that_a_disk_never_took_are_counted_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", 1 << 16) as disk:
        tracker = Tracker(disk, Recipe(checkpoint=CheckpointConfig(on_error="continue")), Console(True), Processes())
        with nearly_full(disk, 0):
            log(tracker, [1, 2])
            tracker.finish(None)
        path = disk / "metrics.jsonl"
        assert path.read_bytes() == b""
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"{path} lacks its last 2 lines: the disk did not take them"


def test_other_ranks_are_silent_and_write_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = tracker_in(tmp_path, speaks=False)
    tracker.log(1, "heads", {"train/loss": 1.0})
    tracker.finish({"steps": 1})
    console = Console(speaks=False)
    console.say("a line")
    progress = Progress(console, total=1, start=0)
    progress.advance(1, 1, "heads", 1.0)
    progress.close()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_wandb_that_cannot_start_is_said_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb").write_text("a file where W&B wants its folder")
    tracker = tracker_in(tmp_path)
    tracker.log(1, "heads", {"train/loss": 1.0})
    tracker.finish({"steps": 1})
    assert len(lines_of(tmp_path)) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("W&B is off from here: [Errno 20] Not a directory: ")
    assert line.endswith("; metrics.jsonl goes on")


@pytest.mark.parametrize("wandb_id", ["", "gone0on"])
def test_wandb_that_is_out_of_reach_is_recorded_for_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wandb_id: str
) -> None:
    """A new run, and one that goes on, which W&B asks its server about first."""
    monkeypatch.setattr(tracking, "WANDB_START_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    wandb.teardown()  # what it has read of the environment so far
    tracker = Tracker(tmp_path, Recipe(tracking=WITH_WANDB), Console(True), Processes(), wandb_id)
    log(tracker, [1, 2])
    tracker.finish({"steps": 2})
    records = list(records_in(tmp_path))
    rows = [items(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]
    assert rows == lines_of(tmp_path)
    (run,) = (record.run for record in records if record.WhichOneof("record_type") == "run")
    assert run.run_id == (wandb_id or tracker.wandb_id)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("W&B is offline: ")
    assert line.endswith(f"; `wandb sync` sends later what is in {tmp_path}/wandb")


def test_wandb_that_breaks_on_the_way_is_said_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = tracker_in(tmp_path)
    tracker.log(1, "heads", {"train/loss": 1.0})
    tracker._wandb.finish()  # any further call to this run raises
    tracker.log(2, "heads", {"train/loss": 0.5})
    tracker.log(3, "heads", {"train/loss": 0.4})
    tracker.finish({"steps": 3})
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("W&B is off from here: Run (")


def test_wandb_without_a_key_is_offline_and_may_die_before_the_end(tmp_path: Path) -> None:
    """In a process of its own, because W&B's service is killed in it."""
    code = f"""
import psutil
from pathlib import Path
from mtl_dist.recipe import Recipe, TrackingConfig
from mtl_dist.processes import Processes
from mtl_dist.tracking import Console, Tracker

tracker = Tracker(Path({str(tmp_path)!r}), Recipe(tracking=TrackingConfig(wandb=True)), Console(True), Processes())
assert list(Path({str(tmp_path)!r}).glob("wandb/offline-run-*"))
tracker.log(1, "heads", {{"train/loss": 1.0}})
for child in psutil.Process().children(recursive=True):
    child.kill()
    child.wait()
tracker.finish({{"steps": 1}})
print("the run goes on")
"""
    # Without the tests' own settings, and without the service that W&B started for the tests above.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "no netrc"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    off, last = done.stdout.splitlines()
    assert off.startswith("W&B is off from here: ")
    assert last == "the run goes on"
    assert "deprecated" not in done.stderr
    assert len(lines_of(tmp_path)) == 1


def test_a_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Standard error is no terminal here."""
    clock = [0.0]
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    progress = Progress(Console(True), total=8, start=3)
    for step, seconds in ((4, 1.0), (5, 9.5), (6, 10.5), (7, 20.0), (8, 20.1)):
        clock[0] = seconds
        progress.advance(step, 8, "heads", None if step < 6 else 0.123456)
    progress.close()
    out, err = capfd.readouterr()
    assert out.splitlines() == ["step 6/8  heads  loss 0.1235", "step 8/8  heads  loss 0.1235"]
    assert err == ""


def test_a_terminal_has_a_bar_whose_total_may_shrink_and_lines_beside_it() -> None:
    code = """
from mtl_dist.tracking import Console, Progress

console = Console(True)
progress = Progress(console, total=14, start=10)
progress.advance(11, 14, "upper", None)
console.say("a line")
progress.advance(12, 12, "all", 0.5)
progress.close()
other_rank = Progress(Console(False), total=99, start=0)
other_rank.advance(99, 99, "all", 0.5)
other_rank.close()
"""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    with os.fdopen(leader, "rb", buffering=0) as screen:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=follower,
            text=True,
            check=True,
        )
        os.close(follower)
        shown = screen.read(65536).decode()
    assert done.stdout == "a line\n"
    assert "/99" not in shown
    assert " 10/14 " in shown.split("\r")[1]
    last = shown.rstrip().split("\r")[-1]
    assert "100%" in last
    assert " 12/12 " in last
    assert last.endswith("all  loss 0.5000]")
