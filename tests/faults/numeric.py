"""Campaigns `nonfinite` and `flips`: NaN or inf in losses and gradients, and flipped bits, on one rank or all."""

import os
import random
import re
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.faults.campaign import Campaign, Outcome
from tests.faults.fork_server import ForkServer, Hook
from tests.faults.runs import LaunchConfig, Runs
from tests.utils.in_process import metrics_of
from tests.utils.nonfinite import inject_nonfinite, nonfinite_gradient, nonfinite_loss

PHASE_STEPS, EVERY = 8, 2
SAVE_EVERY = 3
"""Steps between checkpoints in the recipe of runs.py."""
LIMIT = 5
"""The default of optimizer.max_nonfinite_steps."""
CLEAN_STEPS = 20_000


def _is_target(rank: int | None) -> bool:
    return rank in (None, int(os.environ.get("RANK", "0")))


def inject_on(rank: int | None, what: str, value: float, steps: range) -> None:
    """Hook: in these steps the loss, or a gradient in the backward pass, becomes `value` on one rank (None: on all)."""
    if _is_target(rank):
        inject_nonfinite(steps, partial(nonfinite_loss if what == "loss" else nonfinite_gradient, value=value))


def nonfinite(rng: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """Steps with NaN or inf must be skipped by all ranks; too many in a row must roll back to the last checkpoint."""
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder, without=without)
        for number in range(count):
            config = LaunchConfig(1 + number % 2)
            what, value = rng.choice(("loss", "gradient")), rng.choice((float("nan"), float("inf"), float("-inf")))
            first = rng.randrange(SAVE_EVERY, 3 * PHASE_STEPS - 8)  # after a checkpoint that the run can roll back to
            steps = range(first, first + rng.randint(1, 7))
            rank = rng.choice([None, *range(config.world_size)])
            name = f"run {number}"
            job = runs.start(config, name, partial(inject_on, rank, what, value, steps))
            codes = job.wait()
            problem = f"exit codes {codes}" if any(codes) else check_skipped_steps(runs.folder / name, len(steps))
            where = f"steps {steps.start + 1} to {steps.stop} on {'all ranks' if rank is None else f'rank {rank}'}"
            yield Outcome(f"{value} in {what}, {config}", where, problem or "skipped", not problem)


def check_skipped_steps(folder: Path, bad: int) -> str:
    """Describes what is wrong with a finished run that had `bad` nonfinite steps in a row; "" if nothing is."""
    lines = metrics_of(folder)
    skipped = max(line.get("optim/nonfinite_steps", 0) for line in lines)
    rollbacks = [line["step"] for line in lines if "safety/rolled_back_to" in line]
    if skipped != bad:
        return f"{skipped} steps were skipped, {bad} were not finite"
    if len(rollbacks) != bad // LIMIT:
        return f"rolled back {len(rollbacks)} times"
    weights = load_file(folder / "model" / "model.safetensors")
    infinite = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    return f"not finite: {infinite[0]}" if infinite else ""


def flip(kind: str, index: int, position: float, bit: int, after: int, rank: int) -> None:
    """Hook: flips one bit on this rank after step `after`, in the `index`-th parameter or its first AdamW moment.

    `position` is the relative position of the element, from 0 to 1. Prints the parameter's name.
    """
    if not _is_target(rank):
        return
    training_step = LayerwiseLearningRateTrainer.training_step

    def flipping(self: LayerwiseLearningRateTrainer, step: int) -> StepResult:
        result = training_step(self, step)
        if step == after:
            name, parameter = list(self.engine.model.named_parameters())[index]
            state = self.engine.optimizer.state.get(parameter, {})
            tensor = state["exp_avg"] if kind == "moment" and state else parameter.detach()
            flat = tensor.view(-1).view(torch.int32)
            flat[int(position * len(flat))] ^= torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
            print(f"flipped {name}", flush=True)
        return result

    LayerwiseLearningRateTrainer.training_step = flipping


def flips(rng: random.Random, folder: Path, count: int, compare_every: int | None = EVERY) -> Iterator[Outcome]:
    """A bit flipped on one of three ranks: the next replica comparison must name the rank and the tensor."""
    with ForkServer(folder / "logs") as fork_server:
        every = "null" if compare_every is None else compare_every
        runs = Runs(fork_server, folder, f"safety.compare_every_steps={every}", steps=PHASE_STEPS)
        for number in range(count):
            kind, index, position = rng.choice(("parameter", "moment")), rng.randrange(40), rng.random()
            bit, step, rank = rng.randrange(32), rng.randrange(3 * PHASE_STEPS - EVERY), rng.randrange(3)
            hook = partial(flip, kind, index, position, bit, step, rank)
            job = runs.start(LaunchConfig(3), f"run {number}", hook)
            job.first_end()
            job.kill(number=signal.SIGTERM)  # as a launcher does, so that the other ranks do not wait
            codes = job.wait()
            error = next((line for line in job.output().splitlines() if line.startswith("error:")), "nothing")
            name = job.output(rank).partition("flipped ")[2].split("\n")[0]
            next_checks = "|".join(str(step + 1 + later) for later in range(EVERY))
            what = f"(parameter|optimizer state of) {re.escape(name)} "
            named = re.match(rf"error: after step ({next_checks}): rank {rank} differs from rank \d in {what}", error)
            passed = named is not None and 1 in codes
            yield Outcome(f"bit {bit} of a {kind}", f"{name}, rank {rank}, after step {step + 1}", error, passed)
        if count >= FLIPS.count:
            yield clean(runs)


def clean(runs: Runs) -> Outcome:
    """Many steps without a fault, with a replica comparison after each: none may raise an alarm."""
    steps = (f"phases.{phase}.steps={CLEAN_STEPS // 3 + 1}" for phase in range(3))
    overrides = ("safety.compare_every_steps=1", "checkpoint.every_steps=null", "tracking.log_every_steps=1000", *steps)
    job = runs.start(LaunchConfig(2, tuple(overrides)), "clean")
    codes = job.wait(timeout=1800)
    return Outcome("none", f"{CLEAN_STEPS} steps", job.output()[-200:] if any(codes) else "no alarm", not any(codes))


NONFINITE = Campaign(60, nonfinite)
FLIPS = Campaign(100, flips)
