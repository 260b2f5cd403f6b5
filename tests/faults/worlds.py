"""Campaign `world_sizes`: runs stopped on one number of processes or engine and resumed on another."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.faults.campaign import Campaign, Outcome
from tests.faults.fork_server import ForkServer, Hook
from tests.faults.points import kill_at
from tests.faults.runs import WITHOUT_DROPOUT, LaunchConfig, Runs, digest_of, steps_of

FLOAT64 = ("model.dtype=float64",)
STEPS = 8
"""Steps of each of three phases."""


@dataclass(frozen=True)
class Move:
    """Change of launch of a run that is stopped in one of three phases and then resumed."""

    before: LaunchConfig
    after: LaunchConfig
    phase: int

    @property
    def rounding(self) -> float:
        """Largest relative difference from the losses of one process that counts as equal."""
        return 1e-9 if self.before.overrides == FLOAT64 else 1e-5


def between_sizes() -> list[Move]:
    """Returns all pairs of different numbers of processes, in each phase."""
    return [
        Move(LaunchConfig(before, FLOAT64), LaunchConfig(after, FLOAT64), phase)
        for before, after in itertools.permutations((1, 2, 3, 4), 2)
        for phase in range(3)
    ]


def between_engines() -> list[Move]:
    """Returns all pairs of engines, in the phase that is the pair's number modulo 3; DeepSpeed only has float32."""
    pairs = itertools.permutations(("data parallel", "fsdp2", "zero2"), 2)
    return [
        Move(LaunchConfig(2, dtype, before), LaunchConfig(2, dtype, after), number % 3)
        for number, (before, after) in enumerate(pairs)
        for dtype in [() if "zero2" in (before, after) else FLOAT64]
    ]


def world_sizes(rng: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """Carries out all moves, or a random sample if `count` is smaller."""
    moves = [*between_sizes(), *between_engines()]
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder, *WITHOUT_DROPOUT, steps=STEPS, without=without)
        for number, move in enumerate(moves if count >= len(moves) else rng.sample(moves, count)):
            step = move.phase * STEPS + rng.randint(5, STEPS)  # after a checkpoint, in the first phase too
            problem = kill_and_move(runs, move, step, f"run {number}")
            digest = "" if problem else digest_of(runs.folder / f"run {number}")
            yield Outcome(f"{move.before} to {move.after}", f"step {step}", problem or "the same", not problem, digest)


def kill_and_move(runs: Runs, move: Move, step: int, name: str) -> str:
    """Kills the run before `step`, counted from 1, and resumes it as in `move`; describes a difference, "" if none."""
    if set(runs.start(move.before, name, partial(kill_at, "step", step, "before")).wait()) != {-9}:
        return "it was not killed"
    job = runs.start(move.after, name)
    codes = job.wait()
    if set(codes) != {0}:
        return f"exit codes {codes}: {job.output()[-2000:]}"
    if "resuming from step-" not in job.output():
        return "it did not resume from a checkpoint"
    reference = runs.reference(LaunchConfig(1, move.before.overrides))
    return first_distance(steps_of(runs.folder / name), reference.steps, move.rounding)


def first_distance(steps: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]], rounding: float) -> str:
    """Describes the first training step with other samples, losses or gradient (beyond `rounding`); "" if none."""
    numbers, wanted = ([(line["step"], line["plan/digest"]) for line in lines] for lines in (steps, expected))
    if numbers != wanted:
        return f"other steps or samples: steps {[step for step, _ in numbers]}"
    for line, other in zip(steps, expected, strict=True):
        for key in filter(_is_compared, line.keys() | other.keys()):
            if line.get(key) != (pytest.approx(other[key], rel=rounding) if key in other else None):
                return f"step {line['step']}: {key} is {line.get(key)}, not {other.get(key)}"
    return ""


def _is_compared(key: str) -> bool:
    return key.startswith(("train/", "optim/grad_norm"))


WORLD_SIZES = Campaign(len(between_sizes()) + len(between_engines()), world_sizes)
