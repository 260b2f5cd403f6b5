"""Campaign `hang`: a hanging rank is detected, stacks are written, and the next start resumes with the same bits."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl_dist.data.dataset import DataBundle
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.faults.campaign import Campaign, Outcome
from tests.faults.fork_server import ForkServer, Job
from tests.faults.killing import finish_and_compare, outcome_of
from tests.faults.runs import LaunchConfig, Runs

TIMEOUT = 5
"""Value of safety.timeout_seconds in the recipe."""
FOUND_SECONDS = 30.0
"""Seconds within which the ranks that do not hang must end."""
KINDS = ("stopped", "sleeping loader", "missing collective")


def hang(kind: str, call: int, rank: int) -> None:
    """Hook: this rank hangs at the n-th call of its data loader, or skips one forward and backward pass."""
    if int(os.environ.get("RANK", "0")) != rank:
        return
    calls = 0

    def nth(function: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return (instead if calls == call else function)(*arguments)

        return counted

    def missing(self: LayerwiseLearningRateTrainer, *_: Any) -> Tensor:
        return torch.zeros(len(self.recipe.tasks), dtype=torch.float64)

    if kind == "missing collective":
        LayerwiseLearningRateTrainer._micro_step = nth(LayerwiseLearningRateTrainer._micro_step, missing)
    elif kind == "stopped":
        DataBundle.training_batch = nth(DataBundle.training_batch, lambda *_: os.kill(os.getpid(), signal.SIGSTOP))
    else:
        DataBundle.training_batch = nth(DataBundle.training_batch, lambda *_: threading.Event().wait())


def hangs(rng: random.Random, folder: Path, count: int, timeout: float = TIMEOUT) -> Iterator[Outcome]:
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder, f"safety.timeout_seconds={timeout}")
        for number in range(count):
            config = LaunchConfig(2 + number % 2)
            kind, rank, call = KINDS[number % len(KINDS)], rng.randrange(config.world_size), rng.randint(2, 20)
            name = f"run {number}"
            job = runs.start(config, name, partial(hang, kind, call, rank))
            problem = check_end(job, kind, rank, runs.folder / name) or finish_and_compare(runs, config, name)
            yield outcome_of(runs, f"{kind}, {config}", f"rank {rank}, call {call}", name, problem)


def check_end(job: Job, kind: str, rank: int, folder: Path) -> str:
    """Describes what is wrong with how the run ended; "" if nothing is."""
    alive = [one for one in range(job.spec.world_size) if kind != "stopped" or one != rank]
    try:
        codes = dict(filter(None, (job.first_end(FOUND_SECONDS) for _ in alive)))
    except TimeoutError:
        return f"not found in {FOUND_SECONDS:.0f} s"
    job.kill()  # as a launcher ends a stopped process
    errors = [line for one in alive for line in job.output(one).splitlines() if line.startswith("error: rank")]
    if sorted(codes) != alive or set(codes.values()) != {1}:
        return f"exit codes {codes}"
    if len(errors) != 1 or (kind != "missing collective" and f"rank {rank} did not come past" not in errors[0]):
        return f"errors: {errors}"
    missing = [one for one in alive if not (folder / "stacks" / f"rank-{one}.txt").read_text().count("File")]
    return f"no stack of ranks {missing}" if missing else ""


HANG = Campaign(20, hangs)
