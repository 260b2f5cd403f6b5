"""The run that campaigns inject faults into, the ways to launch it, and the comparison of two such runs."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.fork_server import ForkServer, Hook, Job
from tests.faults.points import count_calls
from tests.utils.in_process import metrics_of
from tests.utils.tiny import tiny_recipe_file

WITHOUT_DROPOUT = ("model.dropout=0", "model.encoder_dropout=0")
DONE = "summary.json"


@dataclass(frozen=True)
class LaunchConfig:
    """Number of processes, recipe overrides and engine of a launch."""

    world_size: int = 1
    overrides: tuple[str, ...] = ()
    """Overrides of the recipe; a smaller `micro_batch_size` means more micro-steps."""
    engine: str = "data parallel"

    def __str__(self) -> str:
        engine = "" if self.engine == "data parallel" else f" {self.engine}"
        return " ".join([f"{self.world_size}p{engine}", *self.overrides])


SMALL_MICRO_BATCHES = ("micro_batch_size=3",)
LAUNCH_CONFIGS = (
    LaunchConfig(1),
    LaunchConfig(2, SMALL_MICRO_BATCHES),
    LaunchConfig(3),
    LaunchConfig(1, SMALL_MICRO_BATCHES),
    LaunchConfig(2),
)
"""Launches with and without gradient accumulation; from three processes on, the order of a sum matters.

Each has a reference run of its own, because dropout depends on the partition of the batch.
"""


@dataclass(frozen=True)
class Reference:
    """Results of the uninterrupted run."""

    digest: str
    steps: list[dict[str, Any]]
    """Metrics lines of the training steps."""
    seconds: float
    calls: Mapping[str, int]
    """Number of calls at each of POINTS."""


class Runs:
    """Starts the runs of one recipe, in a folder with all files that they read and write."""

    def __init__(
        self, fork_server: ForkServer, folder: Path, *overrides: str, steps: int = 8, without: Hook | None = None
    ) -> None:
        """The recipe has three phases of `steps` steps; `without` disables a mechanism in all runs, as a control."""
        self.fork_server = fork_server
        self.folder = folder
        self.recipe = faults_recipe_file(folder, steps)
        self._overrides = overrides
        self._without = without
        self._references: dict[LaunchConfig, Reference] = {}

    def start(
        self, config: LaunchConfig, name: str, hook: Hook | None = None, *overrides: str, **environment: str
    ) -> Job:
        """Starts the run in the folder `name`, or resumes it, since the arguments are the same."""
        arguments = [*self.arguments(config, name), *overrides]
        hooks = both(self._without, hook)
        return self.fork_server.start(arguments, config.world_size, config.engine, hooks, environment)

    def arguments(self, config: LaunchConfig, name: str) -> list[str]:
        return [
            "--config",
            str(self.recipe),
            f"output_dir={self.folder / name}",
            *self._overrides,
            *config.overrides,
        ]

    def finish(self, config: LaunchConfig, name: str, hook: Hook | None = None) -> None:
        """Starts or resumes a run and waits for its end; raises AssertionError with its output if it fails."""
        job = self.start(config, name, hook)
        codes = job.wait()
        assert set(codes) == {0}, f"exit codes {codes}\n" + "\n".join(map(job.output, range(config.world_size)))

    def reference(self, config: LaunchConfig) -> Reference:
        """Returns the results of the uninterrupted run, which is carried out at the first call."""
        if config not in self._references:
            name, calls = f"reference {config}", self.folder / f"calls {config}.json"
            began = time.monotonic()
            self.finish(config, name, partial(count_calls, calls))
            seconds = time.monotonic() - began
            steps = steps_of(self.folder / name)
            self._references[config] = Reference(
                digest_of(self.folder / name), steps, seconds, json.loads(calls.read_text(encoding="utf-8"))
            )
        return self._references[config]

    def difference(self, config: LaunchConfig, name: str) -> str:
        """Describes how training steps or the final state differ from the uninterrupted run; "" if they do not."""
        folder, reference = self.folder / name, self.reference(config)
        if difference := first_difference(steps_of(folder), reference.steps):
            return difference
        return "" if digest_of(folder) == reference.digest else "the final state differs"


def both(first: Hook | None, second: Hook | None) -> Hook | None:
    """Combines two hooks, of which either may be None, into one."""
    return partial(_in_turn, first, second) if first is not None and second is not None else first or second


def _in_turn(*hooks: Hook) -> None:
    for hook in hooks:
        hook()


def first_difference(steps: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> str:
    """Describes the first line that differs, or steps that are missing or repeated; "" if there are none."""
    numbers, wanted = ([line["step"] for line in lines] for lines in (steps, expected))
    if numbers != wanted:
        return f"steps {numbers}"
    for line, other in zip(steps, expected, strict=True):
        for key in line.keys() | other.keys():
            if line.get(key) != other.get(key):
                return f"step {line['step']}: {key} is {line.get(key)}, not {other.get(key)}"
    return ""


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the metrics lines of training steps, without their timings."""
    return [line for line in metrics_of(folder) if "train/loss" in line]


def digest_of(folder: Path) -> str:
    """Returns the SHA-256 of the final state."""
    return json.loads((folder / DONE).read_text(encoding="utf-8"))["state_sha256"]


def faults_recipe_file(folder: Path, steps: int) -> Path:
    """Writes the tiny recipe with dropout, checkpoints also within phases, and three phases of `steps` steps."""
    path = tiny_recipe_file(folder)
    recipe = json.loads(path.read_text(encoding="utf-8"))
    recipe["model"] |= {"dropout": 0.1, "encoder_dropout": 0.1}
    recipe["checkpoint"] = {"every_steps": 3}
    for phase in recipe["phases"]:
        phase["steps"] = steps
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path
