"""The unfreezing schedule, compiled before training: the phases of a run with their steps and trainable units.

A *unit* is the smallest part of the model that can be frozen: `embeddings`, `blocks.0` and up (the encoder's layers),
`heads.<task>`. A compiled schedule consists of names and numbers, so that it can be printed, digested and compared.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction

from mtl_dist.config.recipe import PhaseConfig, Recipe, UntilConfig
from mtl_dist.config.selectors import select
from mtl_dist.errors import UserError


@dataclass(frozen=True)
class Phase:
    """Consecutive steps with the same trainable units."""

    name: str
    start: int
    """First step, counted from 0 over the run."""
    stop: int
    """One past the last step."""
    units: tuple[str, ...]
    """Trainable units in canonical order: embeddings, blocks upwards, heads in the recipe's order."""
    unfrozen: tuple[str, ...]
    """Those of `units` that were frozen in the previous phase; empty in the first phase."""
    until: UntilConfig | None = None
    """Early stopping, which may end the phase before `stop`."""
    early: int = 0
    """Steps by which it starts earlier than planned, because earlier phases were stopped early."""

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.stop - self.start

    def measures_after(self, done: int) -> bool:
        """Whether `until` requires an evaluation after `done` steps of the run; not at `stop`, which has one anyway."""
        return self.until is not None and done < self.stop and (done - self.start) % self.until.every_steps == 0

    def measurements_by(self, done: int) -> int:
        """Evaluations that `until` has required during the first `done` steps of the run."""
        return 0 if self.until is None else (done - self.start) // self.until.every_steps


@dataclass(frozen=True)
class Schedule:
    """All phases of a run, in order and without gaps; none if everything is frozen."""

    phases: tuple[Phase, ...]

    @property
    def total_steps(self) -> int:
        return self.phases[-1].stop if self.phases else 0

    @property
    def digest(self) -> str:
        """SHA-256 of all fields of all phases, the same on every machine."""
        content = [{**asdict(phase), "until": phase.until and phase.until.model_dump()} for phase in self.phases]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def phase_at(self, step: int) -> Phase:
        """The phase that `step` belongs to."""
        return next(phase for phase in self.phases if phase.start <= step < phase.stop)

    def with_early_stops(self, stops: Mapping[str, int]) -> "Schedule":
        """The schedule of a run with early stopping: phases in `stops` end there, and later ones start earlier.

        `stops` are steps by name of the phase, counted over the run as it was, in which earlier phases may have been
        stopped early too.
        """
        if not stops:
            return self
        phases: list[Phase] = []
        early = 0
        for phase in self.phases:
            stop = stops.get(phase.name, phase.stop - early)
            phases.append(replace(phase, start=phase.start - early, stop=stop, early=phase.early + early))
            early = phase.stop - stop
        return Schedule(tuple(phases))

    def planned(self, step: int) -> int:
        """The number that `step` would have if no earlier phase had been stopped early."""
        return step + self.phase_at(step).early


def phase_steps(phase: PhaseConfig, rows: int, batch_size: int) -> int:
    """Optimizer steps of a phase. An epoch has as many examples as all pools together have `rows`."""
    if phase.steps is not None:
        return phase.steps
    assert phase.epochs is not None, "checked by the recipe"
    # Exact decimal arithmetic: in binary, 1.1 x 100 rows are more than 110.
    return math.ceil(Fraction(str(phase.epochs)) * rows / batch_size)


def compile_schedule(recipe: Recipe, num_blocks: int, rows: int) -> Schedule:
    """Compiles the recipe's phases into steps and units.

    `rows` is the number of training rows of all pools together. If `model.freeze` covers everything, the schedule is
    empty: such a run only evaluates and saves. Raises UserError if a selector names a block that the encoder lacks, or
    if `model.freeze` leaves a phase nothing to train.
    """
    trainable = trainable_units(recipe, num_blocks)
    if not any(trainable):
        return Schedule(())
    phases: list[Phase] = []
    start = 0
    for index, (config, units) in enumerate(zip(recipe.phases, trainable, strict=True)):
        if not units:
            raise UserError(f"phases[{index}].train: model.freeze leaves phase {config.name!r} nothing to train")
        stop = start + phase_steps(config, rows, recipe.batch_size)
        before = set(phases[-1].units) if phases else set(units)
        unfrozen = tuple(unit for unit in units if unit not in before)
        phases.append(Phase(config.name, start, stop, units, unfrozen, config.until))
        start = stop
    return Schedule(tuple(phases))


def trainable_units(recipe: Recipe, num_blocks: int) -> list[tuple[str, ...]]:
    """Trainable units of each phase, without those of `model.freeze`.

    Needs no data, so that mistakes in selectors are found early.
    """
    tasks = list(recipe.tasks)
    frozen = set(select(recipe.model.freeze, tasks, num_blocks, "model.freeze")) if recipe.model.freeze else set()
    return [
        tuple(unit for unit in select(phase.train, tasks, num_blocks, f"phases[{index}].train") if unit not in frozen)
        for index, phase in enumerate(recipe.phases)
    ]


def format_units(units: Sequence[str]) -> str:
    """Units as text, with consecutive blocks as one range, e.g. `blocks[2:6] heads.domain heads.sentiment`."""
    words: list[str] = []
    blocks = [int(unit.removeprefix("blocks.")) for unit in units if unit.startswith("blocks.")]
    for unit in units:
        if not unit.startswith("blocks."):
            words.append(unit)
            continue
        index = int(unit.removeprefix("blocks."))
        if index - 1 in blocks:
            continue
        stop = index + 1
        while stop in blocks:
            stop += 1
        words.append(f"blocks[{index}:{stop}]" if stop > index + 1 else f"blocks[{index}]")
    return " ".join(words)
