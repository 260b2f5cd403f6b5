"""The table that `launch/train.py --plan` prints: phases with their steps, units, learning rates and draws."""

from collections.abc import Mapping, Sequence

from mtl_dist.schedule.early_stopping import describe_until
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.phases import Phase, format_units
from mtl_dist.schedule.sampler import TaskBalancedSampler

HEADER = ("phase", "steps", "trains", "parameters", "learning rates", "draws (epochs of the task)")


def plan_table(
    rates: LearningRates, sampler: TaskBalancedSampler, sizes: Mapping[str, int], unit_sizes: Mapping[str, int]
) -> str:
    """A line for each phase, followed by the numbers of the whole run. Steps count from 1, as in metrics.jsonl.

    A phase with early stopping has its largest possible number of steps, and later phases start after these. `sizes`
    are training rows by task, `unit_sizes` numbers of parameters by unit.
    """
    schedule = rates.schedule
    if not schedule.phases:
        return "everything is frozen (model.freeze): no training steps, evaluation only"
    rows = [HEADER]
    for phase in schedule.phases:
        parameters = sum(unit_sizes[unit] for unit in phase.units)
        rows.append(
            (
                phase.name,
                _steps_text(phase),
                format_units(phase.units),
                f"{parameters:,} ({parameters / sum(unit_sizes.values()):.1%})",
                _rates_text(rates, phase),
                _draws_text(sampler.draws(phase.start, phase.stop), sizes),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    open_ended = {phase.name: phase.until for phase in schedule.phases if phase.until is not None}
    total = f"{schedule.total_steps} steps{' at most' if open_ended else ''}"
    lines.append(f"{total}; {_draws_text(sampler.draws(0, schedule.total_steps), sizes)}")
    lines += [f"{name} ends early when {describe_until(until)}" for name, until in open_ended.items()]
    return "\n".join(lines)


def _steps_text(phase: Phase) -> str:
    steps = f"{phase.start + 1}-{phase.stop}" if phase.steps > 1 else str(phase.stop)
    return steps if phase.until is None else f"{steps} at most"


def _rates_text(rates: LearningRates, phase: Phase) -> str:
    """Highest and last learning rate in the phase, for each group of units that have them in common."""
    groups: dict[tuple[float, float], list[str]] = {}
    for unit, peak_and_final in peak_and_final_rates(rates, phase).items():
        groups.setdefault(peak_and_final, []).append(unit)
    return ", ".join(f"{_group_name(units)} {peak:.2e} to {final:.2e}" for (peak, final), units in groups.items())


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


def _draws_text(draws: Mapping[str, int], sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{task} {count:,} ({count / sizes[task]:.2f})" for task, count in draws.items())
