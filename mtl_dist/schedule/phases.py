"""The freeze schedule, compiled before training: which units train from which step to which.

Where a metric ends a phase before its time, `Schedule.with_early_stops` gives the schedule that the run really has.

A *unit* is the smallest thing that freezes or thaws: `embeddings`, `blocks.0` and up, `heads.<task>`. This module
imports no torch: a compiled schedule is names and numbers, so that it can be printed, digested and compared.
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
    """A stretch of steps with one set of trainable units."""

    name: str
    start: int
    """First step, counted from 0 over the run."""
    stop: int
    """One past the last step."""
    units: tuple[str, ...]
    """Trainable units in canonical order: embeddings, blocks upwards, heads in the recipe's order."""
    unfrozen: tuple[str, ...]
    """Those of `units` that did not train in the phase before; empty in the first phase, where nothing has unfrozen."""
    until: UntilConfig | None = None
    """What may end it before `stop`."""
    early: int = 0
    """Steps by which it begins earlier than planned, because phases before it were cut short."""

    @property
    def steps(self) -> int:
        return self.stop - self.start

    def measures_after(self, done: int) -> bool:
        """Whether `until` wants a measurement when `done` steps of the run are done. At the end comes one anyway."""
        return self.until is not None and done < self.stop and (done - self.start) % self.until.every_steps == 0

    def measurements_by(self, done: int) -> int:
        """Measurements that `until` has wanted when `done` steps of the run are done."""
        return 0 if self.until is None else (done - self.start) // self.until.every_steps


@dataclass(frozen=True)
class Schedule:
    """All phases of a run, in order and without gaps. No phase at all: everything is frozen."""

    phases: tuple[Phase, ...]

    @property
    def total_steps(self) -> int:
        return self.phases[-1].stop if self.phases else 0

    @property
    def digest(self) -> str:
        """Equal for equal schedules, on every machine."""
        content = [{**asdict(phase), "until": phase.until and phase.until.model_dump()} for phase in self.phases]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def phase_at(self, step: int) -> Phase:
        """The phase to which `step` belongs."""
        return next(phase for phase in self.phases if phase.start <= step < phase.stop)

    def with_early_stops(self, stops: Mapping[str, int]) -> "Schedule":
        """This schedule with the phases named in `stops` ending there; those that follow move up without gaps.

        A stop is counted as the steps of the result are: by then, the phases before may have been cut as well.
        """
        if not stops:
            return self
        phases: list[Phase] = []
        saved = 0
        for phase in self.phases:
            stop = stops.get(phase.name, phase.stop - saved)
            phases.append(replace(phase, start=phase.start - saved, stop=stop, early=phase.early + saved))
            saved = phase.stop - stop
        return Schedule(tuple(phases))

    def planned(self, step: int) -> int:
        """Where `step` would stand if no phase before it had been cut."""
        return step + self.phase_at(step).early


def steps_of(phase: PhaseConfig, rows: int, batch_size: int) -> int:
    """Optimizer steps of a phase; an epoch is as many examples as all tasks together have training rows."""
    if phase.steps is not None:
        return phase.steps
    assert phase.epochs is not None, "checked with the recipe"
    # Epochs as they are written: in binary, 1.1 x 100 rows are more than 110.
    return math.ceil(Fraction(str(phase.epochs)) * rows / batch_size)


def compile_schedule(recipe: Recipe, num_blocks: int, rows: int) -> Schedule:
    """Turns the recipe's phases into steps and units.

    `rows` is the number of training rows of all tasks together. With everything under `model.freeze` the schedule is
    empty: the run evaluates and saves. Raises UserError where a selector names a block the encoder lacks, or where
    `model.freeze` leaves a phase nothing to train.
    """
    trainable = trainable_units(recipe, num_blocks)
    if not any(trainable):
        return Schedule(())
    phases: list[Phase] = []
    start = 0
    for index, (config, units) in enumerate(zip(recipe.phases, trainable, strict=True)):
        if not units:
            raise UserError(f"phases[{index}].train: model.freeze leaves phase {config.name!r} nothing to train")
        stop = start + steps_of(config, rows, recipe.batch_size)
        before = set(phases[-1].units) if phases else set(units)
        unfrozen = tuple(unit for unit in units if unit not in before)
        phases.append(Phase(config.name, start, stop, units, unfrozen, config.until))
        start = stop
    return Schedule(tuple(phases))


def trainable_units(recipe: Recipe, num_blocks: int) -> list[tuple[str, ...]]:
    """Units that train in each phase, `model.freeze` taken off. Needs no data, so mistakes in selectors show early."""
    tasks = list(recipe.tasks)
    frozen = set(select(recipe.model.freeze, tasks, num_blocks, "model.freeze")) if recipe.model.freeze else set()
    return [
        tuple(unit for unit in select(phase.train, tasks, num_blocks, f"phases[{index}].train") if unit not in frozen)
        for index, phase in enumerate(recipe.phases)
    ]


def short_names(units: Sequence[str]) -> str:
    """Units for a reader: runs of blocks as one range, e.g. `blocks[2:6] heads.domain heads.sentiment`."""
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
