"""The table that `mtl-dist train --plan` prints: phases with their steps, units, learning rates, rows and labels."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from mtl_dist.schedule.early_stopping import describe_until
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.phases import Phase, format_units
from mtl_dist.schedule.sampler import TaskBalancedSampler

HEADER = ("phase", "steps", "trains", "parameters", "learning rates")
ONE_TASK_EACH = ("rows and labels drawn (passes)",)
"""Last column where no row counts for several tasks: a drawn row is a label."""
SEVERAL_TASKS = ("rows drawn (passes)", "labels")
"""Last columns where rows count for several tasks."""
CELL_WIDTH = 80
"""Most characters of a cell in one line."""
NO_BREAK = "\N{NO-BREAK SPACE}"
"""Space within an entry, at which a cell is not wrapped; an ordinary one when it is printed."""


@dataclass(frozen=True)
class PoolSize:
    """Numbers of training rows of a pool."""

    rows: int
    labels: Mapping[str, int]
    """Rows with the label of each of its tasks."""


def plan_table(
    rates: LearningRates,
    sampler: TaskBalancedSampler,
    pools: Mapping[str, PoolSize],
    unit_sizes: Mapping[str, int],
) -> str:
    """A row for each phase, followed by the numbers of the whole run. Steps count from 1, as in metrics.jsonl.

    A phase with early stopping has its largest possible number of steps, and later phases start after these. `pools`
    are by name, `unit_sizes` numbers of parameters by unit. A number of labels that depends on which rows are drawn is
    the expected one, after a `~`.
    """
    schedule = rates.schedule
    if not schedule.phases:
        return "everything is frozen (model.freeze): no training steps, evaluation only"
    shared = any(len(pool.labels) > 1 for pool in pools.values())
    open_ended = {phase.name: phase.until for phase in schedule.phases if phase.until is not None}
    rows = [(*HEADER, *(SEVERAL_TASKS if shared else ONE_TASK_EACH))]
    for phase in schedule.phases:
        parameters = sum(unit_sizes[unit] for unit in phase.units)
        rows.append(
            (
                phase.name,
                _steps_text(phase),
                format_units(phase.units),
                f"{parameters:,} ({parameters / sum(unit_sizes.values()):.1%})",
                _rates_text(rates, phase),
                *_drawn_texts(sampler, phase.start, phase.stop, pools, shared),
            )
        )
    total = f"{schedule.total_steps}{' at most' if open_ended else ''}"
    rows.append(("whole run", total, "", "", "", *_drawn_texts(sampler, 0, schedule.total_steps, pools, shared)))
    ends = [f"{name} ends early when {describe_until(until)}" for name, until in open_ended.items()]
    return "\n".join([*_aligned(rows), *ends])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first row is its header, with a rule below; long cells go over several lines."""
    wrapper = textwrap.TextWrapper(CELL_WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapped = [[wrapper.wrap(cell) for cell in row] for row in rows]
    widths = [max(len(line) for row in wrapped for line in row[column]) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for row in wrapped
        for line in zip_longest(*row, fillvalue="")
    ]
    table = [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]
    return [line.replace(NO_BREAK, " ") for line in table]


def _steps_text(phase: Phase) -> str:
    steps = f"{phase.start + 1}-{phase.stop}" if phase.steps > 1 else str(phase.stop)
    return steps if phase.until is None else f"{steps} at most"


def _rates_text(rates: LearningRates, phase: Phase) -> str:
    """Highest and last learning rate in the phase, for each group of units that have them in common."""
    groups: dict[tuple[float, float], list[str]] = {}
    for unit, peak_and_final in peak_and_final_rates(rates, phase).items():
        groups.setdefault(peak_and_final, []).append(unit)
    return ", ".join(
        _group_name(units) + _unbroken(f" {peak:.2e} to {final:.2e}") for (peak, final), units in groups.items()
    )


def peak_and_final_rates(rates: LearningRates, phase: Phase) -> dict[str, tuple[float, float]]:
    """The highest and the last learning rate of each unit that is trainable in the phase."""
    final = rates.at(phase.stop - 1)
    candidates = [rates.at(step) for step in _peak_candidates(rates, phase)]
    return {unit: (max(at[unit] for at in candidates), final[unit]) for unit in phase.units}


def _peak_candidates(rates: LearningRates, phase: Phase) -> set[int]:
    """Steps that include those with the phase's highest rates.

    Rates rise until the end of the run's warm-up and fall after it. During the warm-up after unfreezing they may do
    both, so that each of its steps is a candidate.
    """
    config = rates.config
    ends = {phase.start, phase.stop - 1, min(max(config.warmup_steps, phase.start), phase.stop - 1)}
    return ends.union(range(phase.start, min(phase.stop, phase.start + config.unfreeze_warmup_steps + 1)))


def _group_name(units: Sequence[str]) -> str:
    return "heads" if all(unit.startswith("heads.") for unit in units) and len(units) > 1 else format_units(units)


def _drawn_texts(
    sampler: TaskBalancedSampler, start: int, stop: int, pools: Mapping[str, PoolSize], shared: bool
) -> list[str]:
    """Rows that steps `start` to `stop` draw from each pool; if rows are `shared`, also the labels of each task."""
    draws, before = sampler.draws(start, stop), sampler.draws(0, start)
    rows, labels = [], []
    for name, pool in pools.items():
        rows.append(_unbroken(f"{name} {draws[name]:,} ({draws[name] / pool.rows:.2f})"))
        whole_passes = before[name] % pool.rows == 0 and draws[name] % pool.rows == 0
        for task, labelled in pool.labels.items():
            about = "" if whole_passes or labelled == pool.rows else "~"
            labels.append(_unbroken(f"{task} {about}{round(draws[name] * labelled / pool.rows):,}"))
    return [", ".join(rows), ", ".join(labels)] if shared else [", ".join(rows)]


def _unbroken(text: str) -> str:
    """The text with spaces at which a line does not end."""
    return text.replace(" ", NO_BREAK)
