"""Campaigns `kill`, `thirty_kills` and `repeat`: runs killed with SIGKILL at any time resume with the same bits."""

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
from tests.faults.fork_server import ForkServer, Hook
from tests.faults.points import kill_at
from tests.faults.runs import DONE, LAUNCH_CONFIGS, LaunchConfig, Reference, Runs, digest_of, steps_of

KILLS = 30
"""Number of kills of one run in `thirty_kills`."""
PHASE_STEPS = 30
"""Steps of a phase in `thirty_kills`: three phases are longer than KILLS starts of at most 5 steps each."""
REPEATED = (LaunchConfig(1), LaunchConfig(2), LaunchConfig(3))


@dataclass(frozen=True)
class Kill:
    """Kill of a whole job after some seconds or at a named point."""

    description: str
    seconds: float | None = None
    hook: Hook | None = None


def draw_kill(rng: random.Random, reference: Reference) -> Kill:
    """Draws a random time in half of the cases, else a named point: a random time hardly ever hits short windows."""
    if rng.random() < 0.5:
        seconds = rng.uniform(0, reference.seconds)
        return Kill(f"after {seconds:.2f} s", seconds)
    point = rng.choice(sorted(reference.calls))
    call, side = rng.randint(1, reference.calls[point]), rng.choice(("before", "after"))
    return Kill(f"{side} {point} {call}", hook=partial(kill_at, point, call, side))


def start_and_kill(runs: Runs, config: LaunchConfig, name: str, kill: Kill) -> bool:
    """Starts or resumes a run and kills it; returns whether it was still running at that time."""
    job = runs.start(config, name, kill.hook)
    if kill.seconds is not None:
        time.sleep(kill.seconds)  # a random time, independent of what the run does
        job.kill()
    return job.wait() == [-9] * config.world_size


def finish_and_compare(runs: Runs, config: LaunchConfig, name: str) -> str:
    """Resumes a killed run to its end; returns what differs from the uninterrupted run, or ""."""
    try:
        runs.finish(config, name)
    except (AssertionError, TimeoutError) as error:
        return str(error)
    if left := runs.fork_server.leftovers():
        return f"processes are left: {left}"
    return runs.difference(config, name)


def kill(rng: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Kills the whole job once and resumes it, on one process and several, with and without gradient accumulation."""
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder)
        number = 0
        while number < count:
            config = LAUNCH_CONFIGS[number % len(LAUNCH_CONFIGS)]
            one, name = draw_kill(rng, runs.reference(config)), f"run {number}"
            if not start_and_kill(runs, config, name, one):
                continue  # it finished before the kill: draw again, with the same name
            number += 1
            problem = finish_and_compare(runs, config, name)
            yield outcome_of(runs, f"kill -9, {config}", one.description, name, problem)


def outcome_of(runs: Runs, fault: str, point: str, name: str, problem: str) -> Outcome:
    done = (runs.folder / name / DONE).exists()
    digest = digest_of(runs.folder / name) if done else ""
    return Outcome(fault, point, problem or "equal", not problem, digest)


def thirty_kills(rng: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """Each run is killed many times before it ends; its samples must be those of the sampler."""
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder, steps=PHASE_STEPS, without=without)
        for number in range(count):
            config, name = LAUNCH_CONFIGS[number % len(LAUNCH_CONFIGS)], f"run {number}"
            problem, points = "", []
            for _ in range(KILLS):
                points.append(draw_early_kill(rng))
                problem = problem or (
                    "" if start_and_kill(runs, config, name, points[-1]) else f"it outran {points[-1].description}"
                )
            problem = problem or finish_and_compare(runs, config, name) or check_samples(runs, config, name)
            yield outcome_of(
                runs, f"{KILLS} kills, {config}", "; ".join(one.description for one in points), name, problem
            )


def draw_early_kill(rng: random.Random) -> Kill:
    """Draws a kill within the first 6 steps after a run starts or resumes."""
    point = rng.choice(("step", "step", "step", "micro-step", "optimizer", "log", "save", "boundary", "data"))
    call = 1 if point in ("save", "boundary", "data") else rng.randint(1, 6)
    side = "before" if call == 6 else rng.choice(("before", "after"))
    return Kill(f"{side} {point} {call}", hook=partial(kill_at, point, call, side))


def check_samples(runs: Runs, config: LaunchConfig, name: str) -> str:
    """Describes a step with other samples than the sampler's, or a pass that draws a row twice; "" if there is none."""
    recipe = parse(runs.arguments(config, name)).recipe
    data = prepare(recipe, ProcessGroup())
    sampler = build_sampler(recipe, data)
    steps = steps_of(runs.folder / name)
    if [line["plan/digest"] for line in steps] != [sampler.batch(step).digest for step in range(len(steps))]:
        return "the steps' digests are not the sampler's"
    for index, pool in enumerate(data.pools):
        if not draws_are_even(sampler, len(steps), index, np.arange(pool.size) if pool.rows is None else pool.rows):
            return f"a pass over {pool.name} has a row twice"
    return ""


def draws_are_even(sampler: TaskBalancedSampler, steps: int, pool: int, rows: np.ndarray) -> bool:
    """Whether every row of a pool was drawn at least once, and no row more than one time more than another."""
    batches = [sampler.batch(step) for step in range(steps)]
    drawn = np.concatenate([batch.rows[batch.pool_ids == pool] for batch in batches])
    counts = np.bincount(drawn, minlength=int(rows[-1]) + 1)[rows]
    return bool(counts.max() - counts.min() <= 1 and counts.min() >= 1)


def repeat(rng: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """Runs with the same seed repeatedly; for each number of processes all must end with the same hash."""
    seed = rng.randrange(2**31)
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder, f"seed={seed}", without=without)
        for number in range(count):
            problem, digests = "", []
            for config in REPEATED:
                name = f"{config} {number}"
                runs.finish(config, name)
                problem = problem or runs.difference(config, name)
                digests.append(digest_of(folder / name))
            yield Outcome("none", f"seed {seed}, run {number}", problem or "equal", not problem, " ".join(digests))


KILL = Campaign(120, kill)
THIRTY_KILLS = Campaign(3, thirty_kills)
REPEAT = Campaign(20, repeat)
