"""A few faults of each campaign, and tests that the campaigns detect wrong runs and control their processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from tests.faults import killing, ranks, rows, saving, tracking, without, worlds
from tests.faults.campaign import Campaign, Outcome, main
from tests.faults.fork_server import ROOT, WANDB_SERVICE, ForkServer
from tests.faults.points import kill_at
from tests.faults.runs import LAUNCH_CONFIGS, LaunchConfig, Runs

SAMPLES = {
    "kill": (killing.KILL, 3),
    "kill_in_save": (saving.KILL_IN_SAVE, 3),
    "kill_rank": (ranks.KILL_RANK, 1),
    "rows": (rows.ROWS, len(rows.FAULTS)),
    "repeat": (killing.REPEAT, 1),
    "world_sizes": (worlds.WORLD_SIZES, 4),
    "wandb": (tracking.WANDB, 4),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_of_the_campaign_passes(name: str, tmp_path: Path) -> None:
    campaign, count = SAMPLES[name]
    outcomes = list(campaign.run(random.Random(7), tmp_path, count))
    assert len(outcomes) == count
    assert [one for one in outcomes if not one.passed] == []


def test_a_run_killed_several_times_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(killing, "KILLS", 4)
    monkeypatch.setattr(killing, "PHASE_STEPS", 8)
    (outcome,) = Campaign(1, killing.thirty_kills).run(random.Random(7), tmp_path, 1)
    assert outcome.passed, outcome


@pytest.mark.parametrize(("passed", "code"), [([True], 1), ([True] * 2, 0), ([True] * 3, 0), ([True, True, False], 1)])
def test_exit_code_of_a_campaign(passed: list[bool], code: int) -> None:
    """A campaign fails if a fault did not pass, or if fewer faults were injected than requested."""
    campaign = Campaign(2, lambda rng, folder, count: (Outcome("", "", "", one) for one in passed))
    assert main({"one": campaign}, ["one"]) == code


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("faults")
    with ForkServer(folder / "logs") as fork_server:
        yield Runs(fork_server, folder)


@pytest.mark.parametrize(
    ("hook", "difference"),
    [
        (without.optimizer_state, "step 14: "),
        (without.trimming_metrics, "steps [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 13"),
    ],
)
def test_a_run_that_resumes_wrongly_is_detected(runs: Runs, hook: killing.Hook, difference: str) -> None:
    """Negative control of campaign `kill`."""
    config, name = LAUNCH_CONFIGS[0], f"wrong {hook.__name__}"
    assert killing.start_and_kill(runs, config, name, killing.Kill("", hook=partial(kill_at, "step", 14, "after")))
    runs.finish(config, name, hook)
    assert runs.difference(config, name).startswith(difference)


def test_a_killed_save_leaves_a_file_that_ends_at_the_byte_of_the_kill(runs: Runs) -> None:
    assert saving.start_and_die(
        runs, LaunchConfig(), "byte", partial(saving.die_at_byte, 2, "optimizer.safetensors", 1234)
    )
    checkpoints = runs.folder / "byte" / "checkpoints"
    (partial_file,) = checkpoints.glob(".partial-*/optimizer.safetensors")
    assert partial_file.stat().st_size == 1234
    assert len(list(checkpoints.glob("step-*"))) == 2


def test_a_job_of_two_processes_is_one_run(runs: Runs) -> None:
    job = runs.start(LaunchConfig(2), "two")
    assert job.wait() == [0, 0]
    assert "resuming" not in job.output(0)
    assert "model, metrics and summary are in" in job.output(0)
    assert json.loads((runs.folder / "two" / "summary.json").read_text())["world_size"] == 2
    assert runs.fork_server.leftovers() == []


def test_a_single_rank_can_be_killed(runs: Runs) -> None:
    job = runs.start(LaunchConfig(2), "alone", partial(kill_at, "step", 10**6, "before"))
    job.kill(rank=1, number=signal.SIGKILL)
    assert job.first_end() == (1, -signal.SIGKILL)
    job.kill()
    assert job.wait() == [-signal.SIGKILL, -signal.SIGKILL]


def test_a_hanging_job_is_killed_after_the_timeout(runs: Runs) -> None:
    job = runs.start(LaunchConfig(1), "hangs", signal.pause)
    with pytest.raises(TimeoutError, match="none of 1 processes ended within 1 s"):
        job.wait(1)
    assert runs.fork_server.leftovers() == []


def test_no_process_outlives_a_killed_driver(tmp_path: Path) -> None:
    code = (
        "import signal, sys, pathlib\n"
        "from tests.faults.fork_server import ForkServer\n"
        "job = ForkServer(pathlib.Path(sys.argv[1])).start([], 2, hook=signal.pause)\n"
        "print(job.session, *job.pids, flush=True)\n"
        "signal.pause()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), WANDB_SERVICE: "of the driver"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        pids = list(map(int, driver.stdout.readline().split()))
        assert len(pids) == 3
        server = psutil.Process(pids[0]).parent()
        assert server is not None
        assert server.num_threads() == 1  # a fork keeps only one thread
        assert WANDB_SERVICE not in server.environ()
        driver.kill()
    deadline = time.monotonic() + 30
    while any(map(is_alive, [*pids, server.pid])):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
