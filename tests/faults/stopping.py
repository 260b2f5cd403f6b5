"""Campaign `signals`: asked to stop in any window, on one rank or all; saved at one step, and continued exactly."""

import os
import random
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mtl_dist.distributed.preemption import SIGNALS
from mtl_dist.errors import Interrupted
from tests.faults.campaign import Campaign, Outcome
from tests.faults.killing import finished, outcome_of
from tests.faults.points import watch
from tests.faults.runs import WAYS, Reference, Runs, Way
from tests.faults.zygote import Hook, Job, Zygote

STOP_SECONDS = 10.0
"""Within which a run must have saved and ended; a step takes less here."""


@dataclass(frozen=True)
class Request:
    """One signal, at a time or at a point, to one rank or to all."""

    number: signal.Signals
    rank: int | None
    words: str
    seconds: float | None = None
    hook: Hook | None = None


def signal_at(point: str, call: int, side: str, number: int, rank: int | None) -> None:
    """A hook: this rank gets the signal at this point, if it is meant."""
    if rank is not None and int(os.environ.get("RANK", "0")) != rank:
        return

    def noticed(*at: object) -> None:
        if at == (point, call, side):
            os.kill(os.getpid(), number)

    watch(noticed)


def draw_request(draw: random.Random, way: Way, reference: Reference) -> Request:
    number = draw.choice(SIGNALS)
    rank = draw.choice([None, *range(way.world_size)])
    to = "all" if rank is None else f"rank {rank}"
    if draw.random() < 0.5:
        seconds = draw.uniform(0, reference.seconds)
        return Request(number, rank, f"{number.name} to {to} after {seconds:.2f} s", seconds)
    # Files are the first rank's business: the others do not come there.
    points = [point for point in sorted(reference.calls) if rank in (None, 0) or point not in FIRST_RANKS]
    point = draw.choice(points)
    call, side = draw.randint(1, reference.calls[point]), draw.choice(("before", "after"))
    hook = partial(signal_at, point, call, side, number, rank)
    return Request(number, rank, f"{number.name} to {to} {side} {point} {call}", hook=hook)


FIRST_RANKS = ("run folder", "save", "last model", "summary")


def ended(runs: Runs, way: Way, name: str, request: Request) -> tuple[list[int], float, Job]:
    """Starts a run and asks it to stop; exit codes by rank, and how long the ranks took to end after the first."""
    job = runs.start(way, name, request.hook)
    if request.seconds is not None:
        time.sleep(request.seconds)  # a moment that knows nothing of the run
        job.kill(request.rank, request.number)
    first = job.first_end()
    began = time.monotonic()
    if first is not None and first[1] != 0:
        job.kill(number=signal.SIGTERM)  # what a launcher does when one of its processes fails
    codes = job.wait()
    return codes, time.monotonic() - began, job


def problem_with(codes: list[int], seconds: float, job: Job, folder: Path) -> str:
    """What is wrong with how a run stopped, or ""."""
    for rank, code in enumerate(codes):
        # A rank may see that another one is gone before the launcher's signal tells it why.
        if code != Interrupted.exit_code and "lost contact" not in job.output(rank):
            return f"exit codes {codes}: {job.output(rank)[-500:]}"
    if seconds > STOP_SECONDS:
        return f"took {seconds:.1f} s to end"
    said = re.findall(r"stopped by SIG\w+ after step (\d+) of", job.output())
    steps = sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    if said and int(said[-1]) > 0 and int(said[-1]) not in steps:
        return f"stopped after step {said[-1]}, checkpoints of {steps}"
    return ""


def signals(draw: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    with Zygote(folder / "logs") as zygote:
        runs = Runs(zygote, folder, without=without)
        number = 0
        while number < count:
            way = WAYS[number % len(WAYS)]
            request, name = draw_request(draw, way, runs.reference(way)), f"run {number}"
            codes, seconds, job = ended(runs, way, name, request)
            if set(codes) == {0}:
                continue  # its end was faster; drawn anew
            number += 1
            wrong = problem_with(codes, seconds, job, folder / name) or finished(runs, way, name)
            yield outcome_of(runs, f"signal, {way}", request.words, name, wrong)


ASKED_TO_STOP = Campaign(60, signals)
