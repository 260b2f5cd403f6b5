"""Runs stopped by a signal or killed with SIGKILL, with or without W&B's own process, remain one W&B run."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.faults.fork_server import ForkServer, Hook
from tests.faults.points import kill_job
from tests.faults.runs import SMALL_MICRO_BATCHES, LaunchConfig, Runs, steps_of
from tests.faults.tracking import at_line, kill_service
from tests.utils.in_process import metrics_of
from tests.utils.wandb_files import files_in, of_kind, records_of, rows_of, summary_of_wandb, without_lists


def send_stop_signal() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def kill_with_wandb() -> None:
    """Kills W&B's process too, so that what it has not yet written is lost."""
    kill_service()
    kill_job()


REQUEUED = [("stop", 3), ("stop", 9), ("stop", 5)]
KILLED = [("kill", 6), ("kill with W&B", 8), ("kill", 5), ("kill with W&B", 13)]
MIXED = [("stop", 4), ("kill with W&B", 9), ("stop", 2), ("kill", 7), ("stop", 3)]
ACTIONS: dict[str, Hook] = {"stop": send_stop_signal, "kill": kill_job, "kill with W&B": kill_with_wandb}


@pytest.mark.parametrize("config", [LaunchConfig(1), LaunchConfig(2, SMALL_MICRO_BATCHES)], ids=str)
@pytest.mark.parametrize("ends", [REQUEUED, KILLED, MIXED], ids=["requeued", "killed", "mixed"])
def test_restarts_give_one_wandb_run_with_each_step_once(
    tmp_path: Path, config: LaunchConfig, ends: list[tuple[str, int]]
) -> None:
    """Each start ends before its n-th metrics line; checkpoints are saved at every third step."""
    with ForkServer(tmp_path / "logs") as fork_server:
        runs = Runs(fork_server, tmp_path)
        for action, line in ends:
            hook = partial(at_line, line, ACTIONS[action])
            codes = runs.start(config, "run", hook, "tracking.wandb=true", WANDB_MODE="offline").wait()
            assert set(codes) == ({75} if action == "stop" else {-signal.SIGKILL})
        codes = runs.start(config, "run", None, "tracking.wandb=true", WANDB_MODE="offline").wait()
        assert set(codes) == {0}
        assert runs.difference(config, "run") == ""
    folder = tmp_path / "run"
    paths = files_in(folder)
    assert len(paths) == len(ends) + 1
    records = [record for path in paths for record in records_of(path)]
    assert len({run.run_id for run in of_kind(records, "run")}) == 1
    rows = [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows_of(records)]
    assert rows == [without_lists(line) for line in metrics_of(folder)]
    losses = [line["train/loss"] for line in steps_of(folder)]
    assert summary_of_wandb(records)["train/loss"] == {"min": min(losses), "last": losses[-1]}
    stopped = sum(action == "stop" for action, _ in ends)
    assert [end.exit_code for end in of_kind(records, "exit") if end.exit_code == 75] == [75] * stopped
