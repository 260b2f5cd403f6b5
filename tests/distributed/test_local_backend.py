"""Runs under `launch/submit.py --backend local`: signals to processes and to the command, restarts and exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from tests.distributed.launching import ROOT, TIMEOUT, forked
from tests.utils.tiny import tiny_recipe_file

LONG_STEPS = ROOT / "tests" / "cluster" / "long_steps"
T = TypeVar("T")


def wait_until(what: Callable[[], T | None]) -> T:
    """Calls `what` until it returns a value other than None, which is returned; fails after TIMEOUT."""
    deadline = time.monotonic() + TIMEOUT
    while (value := what()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


@contextmanager
def running(folder: Path, processes: int, *arguments: str, seconds: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    """Starts the command with the recipe in `folder` and steps of `seconds`; writes its output to a file there."""
    command = [sys.executable, "launch/submit.py", "--backend", "local", "--processes-per-node", str(processes)]
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*command, "--config", str(folder / "recipe.yaml"), *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": f"{LONG_STEPS}:{ROOT}", "MTL_DIST_TEST_STEP_SECONDS": str(seconds)},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def code_of(process: subprocess.Popen[str]) -> int:
    return process.wait(TIMEOUT)


def ranks(command: subprocess.Popen[str]) -> list[psutil.Process]:
    """Returns the live processes of the run's ranks."""
    found = []
    for launcher in psutil.Process(command.pid).children():
        try:
            found += [
                rank for rank in launcher.children() if any("train.py" in argument for argument in rank.cmdline())
            ]
        except psutil.NoSuchProcess:
            continue  # a process has ended in the meantime
    return found


def steps(folder: Path) -> list[dict[str, Any]]:
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "train/loss" in line]


def wait_for_a_step(folder: Path) -> None:
    wait_until(lambda: steps(folder) or None)


def state(run: Path) -> str:
    return json.loads((run / "summary.json").read_text())["state_sha256"]


def output_of(folder: Path) -> str:
    return (folder / "output.txt").read_text()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_run_resumes_to_the_same_state(tmp_path: Path, processes: int) -> None:
    """It resumes by itself if one of its processes is signalled, and by the same command if the command is."""
    tiny_recipe_file(tmp_path)
    with running(tmp_path, processes, seconds=1) as command:
        wait_for_a_step(tmp_path)
        first = ranks(command)
        assert len(first) == processes
        first[-1].send_signal(signal.SIGTERM)
        wait_until(lambda: True if "resuming from" in output_of(tmp_path) else None)
        assert not set(first) & set(ranks(command))
        done = len(steps(tmp_path))
        wait_until(lambda: True if len(steps(tmp_path)) > done else None)
        command.send_signal(signal.SIGINT)
        assert code_of(command) == 75
    assert "starting it again" in output_of(tmp_path)
    assert len(re.findall(r"^stopped by SIG\w+ after step \d+ of 12", output_of(tmp_path), re.MULTILINE)) == 2
    assert "Traceback" not in output_of(tmp_path)
    with running(tmp_path, processes) as command:
        assert code_of(command) == 0
    assert [line["step"] for line in steps(tmp_path)] == list(range(1, 13))
    with running(tmp_path, processes) as command:
        assert code_of(command) == 0
    assert output_of(tmp_path) == f"finished already: {tmp_path / 'run' / 'summary.json'}\n"
    uninterrupted = ("--config", str(tmp_path / "recipe.yaml"), f"output_dir={tmp_path / 'uninterrupted'}")
    forked("launch/train.py", *uninterrupted, processes=processes, logs=tmp_path / "logs")
    assert state(tmp_path / "run") == state(tmp_path / "uninterrupted")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_in_the_data_ends_with_exit_code_2(tmp_path: Path, processes: int) -> None:
    tiny_recipe_file(tmp_path)
    with running(tmp_path, processes, "tasks.mood.label=feeling") as command:
        assert code_of(command) == 2
    assert output_of(tmp_path).count("mood.train.json: no column 'feeling'; choose from text, label") == 1
    assert "Traceback" not in output_of(tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_process_ends_the_run_with_exit_code_1(tmp_path: Path, processes: int) -> None:
    tiny_recipe_file(tmp_path)
    with running(tmp_path, processes, seconds=1) as command:
        wait_for_a_step(tmp_path)
        ranks(command)[-1].kill()
        assert code_of(command) == 1


def test_a_stop_signal_before_the_first_step_stops_the_run(tmp_path: Path) -> None:
    """The processes have not installed their signal handlers, or do not exist yet."""
    tiny_recipe_file(tmp_path)
    with running(tmp_path, 2, seconds=1) as command:
        wait_until(lambda: psutil.Process(command.pid).children() or None)
        command.send_signal(signal.SIGTERM)
        assert code_of(command) == 75
    assert not steps(tmp_path)


def test_no_process_outlives_the_command(tmp_path: Path) -> None:
    tiny_recipe_file(tmp_path)
    with running(tmp_path, 2, seconds=1) as command:
        wait_for_a_step(tmp_path)
        family = psutil.Process(command.pid).children(recursive=True)
        assert len(family) >= 3
        command.kill()
        _, alive = psutil.wait_procs(family, TIMEOUT)
        assert not alive
