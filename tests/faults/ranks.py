"""Campaign `kill_rank`: one rank of 2 to 4 is killed, and the launcher restarts all of them.

The runs are launched by torchrun itself instead of the fork server, because the launcher is what is tested.
"""

import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.faults.campaign import Campaign, Outcome
from tests.faults.fork_server import ENVIRONMENT, ROOT, TRAIN, ForkServer
from tests.faults.killing import outcome_of
from tests.faults.runs import LaunchConfig, Runs

LAUNCH_SECONDS = 300.0
"""Seconds after which a launch counts as hanging."""
STEPS = 24
"""Steps of the whole run."""
MARK = "MTL_DIST_FAULT"
"""Environment variable that identifies the processes of a launch."""
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--max-restarts=3")
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Gives each start its own store: restarted ranks could otherwise read the addresses of their predecessors and hang."""


class Launch:
    """A running launcher with its ranks."""

    def __init__(self, world_size: int, arguments: Sequence[str], log: Path) -> None:
        self.mark = secrets.token_hex(8)
        self.log = log
        command = [sys.executable, *TORCHRUN, f"--nproc-per-node={world_size}", str(TRAIN), *arguments]
        environment = os.environ | ENVIRONMENT | OWN_STORE | {MARK: self.mark}
        with log.open("wb") as file:
            self.launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)

    def processes(self) -> list[psutil.Process]:
        """Returns all live processes of the launch, including the launcher and those of W&B."""
        return [one for one in psutil.process_iter() if _environment_of(one).get(MARK) == self.mark]

    def rank(self, rank: int) -> psutil.Process | None:
        """Returns the process with this rank, or None if there is none."""
        ranks = (one for one in self.processes() if _environment_of(one).get("RANK") == str(rank))
        return next(ranks, None)

    def kill(self) -> None:
        """Kills all processes that are left."""
        for one in self.processes():
            with suppress(psutil.Error):
                one.kill()
        self.launcher.wait()


@contextmanager
def launched(world_size: int, arguments: Sequence[str], log: Path) -> Iterator[Launch]:
    launch = Launch(world_size, arguments, log)
    try:
        yield launch
    finally:
        launch.kill()


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return {} if process.status() == psutil.STATUS_ZOMBIE else process.environ()
    except (psutil.Error, OSError):
        return {}


def kill_rank(rng: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Kills a random rank shortly after a random step, or during start-up."""
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder)
        for number in range(count):
            config, name = LaunchConfig(rng.choice((2, 3, 4))), f"run {number}"
            rank, step, later = rng.randrange(config.world_size), rng.randrange(STEPS), rng.uniform(0, 0.2)
            runs.reference(config)
            with launched(config.world_size, runs.arguments(config, name), folder / f"launch {number}.log") as launch:
                problem = kill_after_step(launch, rank, folder / name / "metrics.jsonl", step, later) or check_restart(
                    launch
                )
            problem = problem or runs.difference(config, name)
            if problem:
                problem += launch.log.read_text(errors="replace")[-3000:]
            yield outcome_of(runs, f"rank {rank} killed, {config}", f"{later:.2f} s after step {step}", name, problem)


def kill_after_step(launch: Launch, rank: int, metrics: Path, step: int, later: float) -> str:
    """Kills the rank `later` seconds after `step` is in the metrics; returns why it could not, or ""."""
    deadline = time.monotonic() + LAUNCH_SECONDS
    while (victim := launch.rank(rank)) is None or _lines(metrics) < step:
        if launch.launcher.poll() is not None or time.monotonic() > deadline:
            return "the launch ended, or hung, before that step"
        time.sleep(0.02)
    time.sleep(later)
    with suppress(psutil.NoSuchProcess):
        victim.kill()
        return ""
    return "the rank had ended"


def _lines(metrics: Path) -> int:
    return metrics.read_bytes().count(b'"train/loss"') if metrics.exists() else 0


def check_restart(launch: Launch) -> str:
    """Describes what is wrong with the end of a launch; "" if nothing is."""
    try:
        code = launch.launcher.wait(LAUNCH_SECONDS)
    except subprocess.TimeoutExpired:
        return "hangs"
    if code != 0:
        return f"exit code {code}"
    return f"processes are left: {left}" if (left := launch.processes()) else ""


KILL_RANK = Campaign(40, kill_rank)
