"""Campaign `signals`: a stop signal at any time to one rank or all; runs must save at one step and resume exactly."""

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
from tests.faults.fork_server import ForkServer, Hook, Job
from tests.faults.killing import finish_and_compare, outcome_of
from tests.faults.points import watch
from tests.faults.runs import LAUNCH_CONFIGS, LaunchConfig, Reference, Runs

STOP_SECONDS = 10.0
"""Seconds within which a signalled run must save and end; a step takes less here."""


@dataclass(frozen=True)
class StopSignal:
    """One signal to one rank or to all, sent after some seconds or at a named point."""

    number: signal.Signals
    rank: int | None
    description: str
    seconds: float | None = None
    hook: Hook | None = None


def signal_at(point: str, call: int, side: str, number: int, rank: int | None) -> None:
    """Hook: sends the signal to this process at the point, if its rank is the target (None: every rank)."""
    if rank is not None and int(os.environ.get("RANK", "0")) != rank:
        return

    def on_call(*at: object) -> None:
        if at == (point, call, side):
            os.kill(os.getpid(), number)

    watch(on_call)


def draw_signal(rng: random.Random, config: LaunchConfig, reference: Reference) -> StopSignal:
    number = rng.choice(SIGNALS)
    rank = rng.choice([None, *range(config.world_size)])
    to = "all" if rank is None else f"rank {rank}"
    if rng.random() < 0.5:
        seconds = rng.uniform(0, reference.seconds)
        return StopSignal(number, rank, f"{number.name} to {to} after {seconds:.2f} s", seconds)
    # Only the main process writes files, so the other ranks never reach these points.
    points = [point for point in sorted(reference.calls) if rank in (None, 0) or point not in MAIN_PROCESS_POINTS]
    point = rng.choice(points)
    call, side = rng.randint(1, reference.calls[point]), rng.choice(("before", "after"))
    hook = partial(signal_at, point, call, side, number, rank)
    return StopSignal(number, rank, f"{number.name} to {to} {side} {point} {call}", hook=hook)


MAIN_PROCESS_POINTS = ("run folder", "save", "last model", "summary")


def start_and_stop(runs: Runs, config: LaunchConfig, name: str, request: StopSignal) -> tuple[list[int], float, Job]:
    """Starts a run and signals it to stop.

    Returns the exit codes by rank, the seconds between the end of the first rank and that of the last, and the job.
    """
    job = runs.start(config, name, request.hook)
    if request.seconds is not None:
        time.sleep(request.seconds)  # a random time, independent of what the run does
        job.kill(request.rank, request.number)
    first = job.first_end()
    began = time.monotonic()
    if first is not None and first[1] != 0:
        job.kill(number=signal.SIGTERM)  # as a launcher does when one of its processes fails
    codes = job.wait()
    return codes, time.monotonic() - began, job


def check_end(codes: list[int], seconds: float, job: Job, folder: Path) -> str:
    """Describes what is wrong with how a run stopped; "" if nothing is."""
    for rank, code in enumerate(codes):
        # A rank may lose contact with another one before the launcher's signal reaches it.
        if code != Interrupted.exit_code and "lost contact" not in job.output(rank):
            return f"exit codes {codes}: {job.output(rank)[-500:]}"
    if seconds > STOP_SECONDS:
        return f"took {seconds:.1f} s to end"
    stopped_at = re.findall(r"stopped by SIG\w+ after step (\d+) of", job.output())
    steps = sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))
    if stopped_at and int(stopped_at[-1]) > 0 and int(stopped_at[-1]) not in steps:
        return f"stopped after step {stopped_at[-1]}, checkpoints of {steps}"
    return ""


def signals(rng: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder, without=without)
        number = 0
        while number < count:
            config = LAUNCH_CONFIGS[number % len(LAUNCH_CONFIGS)]
            request, name = draw_signal(rng, config, runs.reference(config)), f"run {number}"
            codes, seconds, job = start_and_stop(runs, config, name, request)
            if set(codes) == {0}:
                continue  # the run finished before the signal; draw again
            number += 1
            problem = check_end(codes, seconds, job, folder / name) or finish_and_compare(runs, config, name)
            yield outcome_of(runs, f"signal, {config}", request.description, name, problem)


STOP_SIGNALS = Campaign(60, signals)
