"""Lines of metrics.jsonl, on a full disk too, and progress on the screen. W&B: test_wandb_backend.py."""

import json
import logging
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from mtl_dist.config.recipe import CheckpointConfig, Recipe, TrackingConfig
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import TrainingError
from mtl_dist.tracking import console
from mtl_dist.tracking.console import TrainingProgress, show_log_lines
from mtl_dist.tracking.tracker import Tracker
from tests.utils.disks import disks_unavailable, nearly_full, small_disk

ROOT = Path(__file__).parents[3]


class SecondRank(ProcessGroup):
    """The second of two ranks, where no rank raises."""

    def __init__(self) -> None:
        super().__init__(rank=1)


@pytest.fixture(autouse=True)
def log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="mtl_dist")


def tracker_in(folder: Path) -> Tracker:
    return Tracker(folder, Recipe(), ProcessGroup())


def log(tracker: Tracker, steps: Iterable[int]) -> None:
    for step in steps:
        tracker.log(step, "heads", {"train/loss": 1.0})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()))


def test_a_number_that_is_not_finite_is_null(tmp_path: Path) -> None:
    tracker = tracker_in(tmp_path)
    tracker.log(1, "heads", {"train/loss": float("nan"), "optim/grad_norm": float("inf"), "plan/digest": "12"})
    tracker.finish(None)
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert line == '{"step": 1, "phase": "heads", "train/loss": null, "optim/grad_norm": null, "plan/digest": "12"}'


def test_lines_are_appended_at_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    tracker = tracker_in(tmp_path)
    tracker.log(2, "heads", {"train/loss": 0.1 + 0.2, "plan/digest": "ab"})
    expected = [{"step": 1}, {"step": 2, "phase": "heads", "train/loss": 0.1 + 0.2, "plan/digest": "ab"}]
    assert lines_of(tmp_path) == expected
    tracker.finish({})
    assert lines_of(tmp_path) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_lines_on_a_full_disk_are_complete_or_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, on_error: Literal["stop", "continue"]
) -> None:
    """The rest of the file's last page has room for some lines and a part of the next."""
    refusal = f"cannot write {tmp_path / 'disk' / 'metrics.jsonl'}: No space left on device"
    recipe = Recipe(checkpoint=CheckpointConfig(on_error=on_error))
    with small_disk(tmp_path / "disk", 1 << 16) as disk:
        tracker = Tracker(disk, recipe, ProcessGroup())
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
    continued = f"{refusal}; training continues (checkpoint.on_error), its lines are written later"
    assert caplog.messages == ([continued] if on_error == "continue" else [])


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
def test_lines_that_a_disk_never_took_are_counted_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "disk", 1 << 16) as disk:
        tracker = Tracker(disk, Recipe(checkpoint=CheckpointConfig(on_error="continue")), ProcessGroup())
        with nearly_full(disk, 0):
            log(tracker, [1, 2])
            tracker.finish(None)
        path = disk / "metrics.jsonl"
        assert path.read_bytes() == b""
    assert caplog.messages[-1] == f"{path} lacks its last 2 lines: the disk did not take them"


def test_other_ranks_are_silent_and_write_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The recipe asks for W&B and TensorBoard."""
    recipe = Recipe(tracking=TrackingConfig(wandb=True, also=["tensorboard"]))
    tracker = Tracker(tmp_path, recipe, SecondRank())
    tracker.log(1, "heads", {"train/loss": 1.0})
    tracker.finish({"steps": 1})
    progress = TrainingProgress(is_main=False, total=1, start=0)
    progress.advance(1, 1, "heads", 1.0)
    progress.close()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert caplog.messages == []


def test_log_lines_are_printed_by_the_main_process_alone(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("mtl_dist.any.module")
    printed = {True: "a line\nwarning: a warning\n", False: ""}
    for is_main in (True, False, True):
        show_log_lines(is_main)
        logger.info("a line")
        logger.warning("a warning")
        assert capfd.readouterr() == (printed[is_main], "")


def test_a_log_has_a_line_of_progress_every_ten_seconds_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Standard error is not a terminal here."""
    show_log_lines(is_main=True)
    clock = [0.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    progress = TrainingProgress(is_main=True, total=8, start=3)
    for step, seconds in ((4, 1.0), (5, 9.5), (6, 10.5), (7, 20.0), (8, 20.1)):
        clock[0] = seconds
        progress.advance(step, 8, "heads", 0.123456 if step == 6 else None)
    progress.close()
    out, err = capfd.readouterr()
    assert out.splitlines() == ["step 6/8  heads  loss 0.1235", "step 8/8  heads  loss 0.1235 at 6"]
    assert err == ""


def test_a_terminal_has_a_bar_whose_total_may_shrink_and_lines_beside_it() -> None:
    code = """
import logging
from mtl_dist.tracking.console import TrainingProgress, show_log_lines

show_log_lines(True)
progress = TrainingProgress(True, total=14, start=10)
progress.advance(11, 14, "upper", None)
logging.getLogger("mtl_dist").info("a line")
progress.advance(12, 12, "all", 0.5)
progress.close()
other_rank = TrainingProgress(False, total=99, start=0)
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
