"""Campaigns `kill`, `thirty_kills` and `repeat`: kill -9 at any moment, and the same run all the same."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mtl_dist.config.load import parse
from mtl_dist.data.dataset import prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.schedule.sampler import TaskBalancedSampler
from mtl_dist.training.build import build_sampler
from tests.faults.campaign import Campaign, Outcome
from tests.faults.points import kill_at
from tests.faults.runs import DONE, WAYS, Reference, Runs, Way, digest_of, steps_of
from tests.faults.zygote import Hook, Zygote

KILLS = 30
"""Of one run in `thirty_kills`."""
PHASE_STEPS = 30
"""There: more in all than as many kills, each after 5 steps at most, let it do."""
REPEATED = (Way(1), Way(2), Way(3))


@dataclass(frozen=True)
class Kill:
    """When a whole job is killed: after some seconds, or at a point."""

    words: str
    seconds: float | None = None
    hook: Hook | None = None


def draw_kill(draw: random.Random, reference: Reference) -> Kill:
    """At any time in half of the cases; else at a named point, for windows that time alone would hardly hit."""
    if draw.random() < 0.5:
        seconds = draw.uniform(0, reference.seconds)
        return Kill(f"after {seconds:.2f} s", seconds)
    point = draw.choice(sorted(reference.calls))
    call, side = draw.randint(1, reference.calls[point]), draw.choice(("before", "after"))
    return Kill(f"{side} {point} {call}", hook=partial(kill_at, point, call, side))


def strike(runs: Runs, way: Way, name: str, kill: Kill) -> bool:
    """Starts or continues a run and kills it; whether it was still running then."""
    job = runs.start(way, name, kill.hook)
    if kill.seconds is not None:
        time.sleep(kill.seconds)  # a moment that knows nothing of the run
        job.kill()
    return job.wait() == [-9] * way.world_size


def finished(runs: Runs, way: Way, name: str) -> str:
    """Goes on with a killed run to its end; what is wrong then, or ""."""
    try:
        runs.finish(way, name)
    except (AssertionError, TimeoutError) as error:
        return str(error)
    if left := runs.zygote.leftovers():
        return f"processes are left: {left}"
    return runs.difference(way, name)


def kill(draw: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Kills the whole job once and goes on, on one process and several, with accumulation and without."""
    with Zygote(folder / "logs") as zygote:
        runs = Runs(zygote, folder)
        number = 0
        while number < count:
            way = WAYS[number % len(WAYS)]
            one, name = draw_kill(draw, runs.reference(way)), f"run {number}"
            if not strike(runs, way, name, one):
                continue  # its end was faster; drawn anew, for a folder in which a run is finished
            number += 1
            wrong = finished(runs, way, name)
            yield outcome_of(runs, f"kill -9, {way}", one.words, name, wrong)


def outcome_of(runs: Runs, fault: str, point: str, name: str, wrong: str) -> Outcome:
    done = (runs.folder / name / DONE).exists()
    digest = digest_of(runs.folder / name) if done else ""
    return Outcome(fault, point, wrong or "equal", not wrong, digest)


def thirty_kills(draw: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """Each run comes to its end only through many kills; its samples are the plan's."""
    with Zygote(folder / "logs") as zygote:
        runs = Runs(zygote, folder, steps=PHASE_STEPS, without=without)
        for number in range(count):
            way, name = WAYS[number % len(WAYS)], f"run {number}"
            wrong, points = "", []
            for _ in range(KILLS):
                points.append(draw_early_kill(draw))
                wrong = wrong or ("" if strike(runs, way, name, points[-1]) else f"it outran {points[-1].words}")
            wrong = wrong or finished(runs, way, name) or samples_wrong(runs, way, name)
            yield outcome_of(runs, f"{KILLS} kills, {way}", "; ".join(one.words for one in points), name, wrong)


def draw_early_kill(draw: random.Random) -> Kill:
    """Within 6 steps of a run's start or continuation."""
    point = draw.choice(("step", "step", "step", "micro-step", "optimizer", "log", "save", "boundary", "data"))
    call = 1 if point in ("save", "boundary", "data") else draw.randint(1, 6)
    side = "before" if call == 6 else draw.choice(("before", "after"))
    return Kill(f"{side} {point} {call}", hook=partial(kill_at, point, call, side))


def samples_wrong(runs: Runs, way: Way, name: str) -> str:
    """Whether each step had the plan's samples, and each pass over a task each of its rows once; "" if so."""
    recipe = parse(runs.arguments(way, name)).recipe
    data = prepare(recipe, ProcessGroup())
    plan = build_sampler(recipe, data)
    steps = steps_of(runs.folder / name)
    if [line["plan/digest"] for line in steps] != [plan.batch(step).digest for step in range(len(steps))]:
        return "the steps' digests are not the plan's"
    for index, (task, source) in enumerate(data.tasks.items()):
        if not passes_are_whole(plan, len(steps), index, len(source.splits["train"].lengths)):
            return f"a pass over {task} has a row twice"
    return ""


def passes_are_whole(plan: TaskBalancedSampler, steps: int, task: int, rows: int) -> bool:
    """Whether every row of a task was drawn as often as every other, or once less."""
    batches = [plan.batch(step) for step in range(steps)]
    drawn = np.concatenate([batch.rows[batch.task_ids == task] for batch in batches])
    counts = np.bincount(drawn, minlength=rows)
    return bool(counts.max() - counts.min() <= 1 and counts.min() >= 1)


def repeat(draw: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """The same seed again and again, on each number of processes: one hash for each."""
    seed = draw.randrange(2**31)
    with Zygote(folder / "logs") as zygote:
        runs = Runs(zygote, folder, f"seed={seed}", without=without)
        for number in range(count):
            wrong, digests = "", []
            for way in REPEATED:
                name = f"{way} {number}"
                runs.finish(way, name)
                wrong = wrong or runs.difference(way, name)
                digests.append(digest_of(folder / name))
            yield Outcome("none", f"seed {seed}, run {number}", wrong or "equal", not wrong, " ".join(digests))


KILL = Campaign(120, kill)
THIRTY_KILLS = Campaign(3, thirty_kills)
REPEAT = Campaign(20, repeat)
