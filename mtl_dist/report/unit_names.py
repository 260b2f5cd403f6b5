"""Names of groups of units (a unit is the smallest part of the model that can be frozen) in the report."""

from collections.abc import Mapping, Sequence

from mtl_dist.schedule.phases import format_units

MANY_HEADS = 4
"""Number of heads up to which the units of a phase are listed with each head's name."""


def group_name(units: Sequence[str]) -> str:
    """Returns a short name of several units: one word for all heads, ranges for blocks."""
    heads = [unit for unit in units if unit.startswith("heads.")]
    others = [unit for unit in units if unit not in heads]
    words = [format_units(others)] if others else []
    if heads:
        words.append(heads[0] if len(heads) == 1 else f"{len(heads)} heads")
    return " ".join(words)


def phase_units_name(units: Sequence[str]) -> str:
    """Returns the name of the units that a phase trains; heads are listed one by one only where they are few."""
    heads = sum(unit.startswith("heads.") for unit in units)
    return format_units(units) if heads <= MANY_HEADS else group_name(units)


def planned_rates(rates: Mapping[str, Sequence[float]]) -> str:
    """Returns the highest and the last learning rate of a phase, by group of units that have the same ones."""
    groups: dict[tuple[float, ...], list[str]] = {}
    for unit, pair in rates.items():
        groups.setdefault(tuple(pair), []).append(unit)
    return ", ".join(f"{group_name(units)} {top:.2e} to {end:.2e}" for (top, end), units in groups.items())
