"""Campaign `hang`: a rank that does not come is found, stacks are kept, and the next start continues exactly."""

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
from tests.faults.killing import finished, outcome_of
from tests.faults.runs import Runs, Way
from tests.faults.zygote import Job, Zygote

TIMEOUT = 5
"""The recipe's, in seconds."""
FOUND_SECONDS = 30.0
KINDS = ("stopped", "sleeping loader", "missing collective")


def hang(kind: str, call: int, rank: int) -> None:
    """A hook: this rank hangs at the n-th call of its loader, or leaves one backward out."""
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
        DataBundle.batch = nth(DataBundle.batch, lambda *_: os.kill(os.getpid(), signal.SIGSTOP))
    else:
        DataBundle.batch = nth(DataBundle.batch, lambda *_: threading.Event().wait())


def hangs(draw: random.Random, folder: Path, count: int, timeout: float = TIMEOUT) -> Iterator[Outcome]:
    with Zygote(folder / "logs") as zygote:
        runs = Runs(zygote, folder, f"safety.timeout_seconds={timeout}")
        for number in range(count):
            way = Way(2 + number % 2)
            kind, rank, call = KINDS[number % len(KINDS)], draw.randrange(way.world_size), draw.randint(2, 20)
            name = f"run {number}"
            job = runs.start(way, name, partial(hang, kind, call, rank))
            wrong = problem_with(job, kind, rank, runs.folder / name) or finished(runs, way, name)
            yield outcome_of(runs, f"{kind}, {way}", f"rank {rank}, call {call}", name, wrong)


def problem_with(job: Job, kind: str, rank: int, folder: Path) -> str:
    """What is wrong with how the run ended, or ""."""
    alive = [one for one in range(job.order.world_size) if kind != "stopped" or one != rank]
    try:
        codes = dict(filter(None, (job.first_end(FOUND_SECONDS) for _ in alive)))
    except TimeoutError:
        return f"not found in {FOUND_SECONDS:.0f} s"
    job.kill()  # as a launcher ends a stopped process
    said = [line for one in alive for line in job.output(one).splitlines() if line.startswith("error: rank")]
    if sorted(codes) != alive or set(codes.values()) != {1}:
        return f"exit codes {codes}"
    if len(said) != 1 or (kind != "missing collective" and f"rank {rank} did not come past" not in said[0]):
        return f"said {said}"
    missing = [one for one in alive if not (folder / "stacks" / f"rank-{one}.txt").read_text().count("File")]
    return f"no stack of ranks {missing}" if missing else ""


HANG = Campaign(20, hangs)
