"""Campaigns `nonfinite` and `flips`: numbers that go wrong in one rank or in all of them."""

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
from tests.faults.runs import Runs, Way
from tests.faults.zygote import Hook, Zygote
from tests.utils.in_process import metrics_of
from tests.utils.spoiling import spoil, spoil_gradient, spoil_loss

PHASE_STEPS, EVERY = 8, 2
SAVE_EVERY = 3
"""Steps, in the recipe of runs.py."""
LIMIT = 5
"""The default of optimizer.max_nonfinite_steps."""
CLEAN_STEPS = 20_000


def _meant(rank: int | None) -> bool:
    return rank in (None, int(os.environ.get("RANK", "0")))


def spoil_on(rank: int | None, what: str, value: float, steps: range) -> None:
    """A hook: in these steps the loss of the meant ranks is `value`, or so is a gradient on its way back."""
    if _meant(rank):
        spoil(steps, partial(spoil_loss if what == "loss" else spoil_gradient, value=value))


def nonfinite(draw: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """NaN or inf for some steps: skipped by all; after too many in a row, back to the last checkpoint."""
    with Zygote(folder / "logs") as zygote:
        runs = Runs(zygote, folder, without=without)
        for number in range(count):
            way = Way(1 + number % 2)
            what, value = draw.choice(("loss", "gradient")), draw.choice((float("nan"), float("inf"), float("-inf")))
            first = draw.randrange(SAVE_EVERY, 3 * PHASE_STEPS - 8)  # with a checkpoint to go back to
            steps = range(first, first + draw.randint(1, 7))
            rank = draw.choice([None, *range(way.world_size)])
            name = f"run {number}"
            job = runs.start(way, name, partial(spoil_on, rank, what, value, steps))
            codes = job.wait()
            wrong = f"exit codes {codes}" if any(codes) else wrong_after(runs.folder / name, len(steps))
            words = f"steps {steps.start + 1} to {steps.stop} on {'all ranks' if rank is None else f'rank {rank}'}"
            yield Outcome(f"{value} in {what}, {way}", words, wrong or "skipped", not wrong)


def wrong_after(folder: Path, bad: int) -> str:
    """What is wrong with a finished run that had so many bad steps in a row, or ""."""
    lines = metrics_of(folder)
    skipped = max(line.get("optim/nonfinite_steps", 0) for line in lines)
    back = [line["step"] for line in lines if "safety/rolled_back_to" in line]
    if skipped != bad:
        return f"{skipped} steps were skipped, {bad} were bad"
    if len(back) != bad // LIMIT:
        return f"went back {len(back)} times"
    weights = load_file(folder / "model" / "model.safetensors")
    infinite = [name for name, weight in weights.items() if not torch.isfinite(weight).all()]
    return f"not finite: {infinite[0]}" if infinite else ""


def flip(kind: str, index: int, position: float, bit: int, after: int, rank: int) -> None:
    """A hook: after step `after` one bit of this rank's is flipped, in the `index`-th parameter or its first moment.

    `position` is the element's place, from 0 to 1. Writes the parameter's name into the log.
    """
    if not _meant(rank):
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


def flips(draw: random.Random, folder: Path, count: int, compare_every: int | None = EVERY) -> Iterator[Outcome]:
    """One bit of one of three ranks: rank and tensor are named at the next check."""
    with Zygote(folder / "logs") as zygote:
        every = "null" if compare_every is None else compare_every
        runs = Runs(zygote, folder, f"safety.compare_every_steps={every}", steps=PHASE_STEPS)
        for number in range(count):
            kind, index, position = draw.choice(("parameter", "moment")), draw.randrange(40), draw.random()
            bit, step, rank = draw.randrange(32), draw.randrange(3 * PHASE_STEPS - EVERY), draw.randrange(3)
            hook = partial(flip, kind, index, position, bit, step, rank)
            job = runs.start(Way(3), f"run {number}", hook)
            job.first_end()
            job.kill(number=signal.SIGTERM)  # as a launcher does, so that the others need not wait for it
            codes = job.wait()
            said = next((line for line in job.output().splitlines() if line.startswith("error:")), "nothing")
            name = job.output(rank).partition("flipped ")[2].split("\n")[0]
            next_checks = "|".join(str(step + 1 + later) for later in range(EVERY))
            what = f"(parameter|optimizer state of) {re.escape(name)} "
            named = re.match(rf"error: after step ({next_checks}): rank {rank} differs from rank \d in {what}", said)
            passed = named is not None and 1 in codes
            yield Outcome(f"bit {bit} of a {kind}", f"{name}, rank {rank}, after step {step + 1}", said, passed)
        if count >= FLIPS.count:
            yield clean(runs)


def clean(runs: Runs) -> Outcome:
    """Many steps in which nothing happens, each compared."""
    steps = (f"phases.{phase}.steps={CLEAN_STEPS // 3 + 1}" for phase in range(3))
    overrides = ("safety.compare_every_steps=1", "checkpoint.every_steps=null", "tracking.log_every_steps=1000", *steps)
    job = runs.start(Way(2, tuple(overrides)), "clean")
    codes = job.wait(timeout=1800)
    return Outcome("none", f"{CLEAN_STEPS} steps", job.output()[-200:] if any(codes) else "no alarm", not any(codes))


NONFINITE = Campaign(60, nonfinite)
FLIPS = Campaign(100, flips)
