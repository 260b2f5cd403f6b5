"""Section on the plan: the units that each phase trains, the rows that it draws, and the labels of these rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtl_dist.report.records import RunRecord, Span
from mtl_dist.report.sections.section import Section
from mtl_dist.report.templating import render
from mtl_dist.report.unit_names import phase_units_name, planned_rates


@dataclass(frozen=True)
class PhaseRow:
    """One phase in the table of phases."""

    name: str
    until: str
    """Condition that ends the phase early; empty for none."""
    first: int
    """Number of its first step, from 1."""
    last: int
    planned: int
    """Planned number of steps; differs from `length` where the phase ended early."""
    trains: str
    parameters: int
    share: float
    """Share of the model's parameters that it trains."""
    rates: str

    @property
    def length(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class PoolDraws:
    """Rows drawn from one pool."""

    name: str
    tasks: str
    """The tasks that a row can count for, where they are several; else empty."""
    size: int
    """Number of rows."""
    draws: list[int]
    """Rows drawn in each phase."""


@dataclass(frozen=True)
class TaskLabels:
    """Numbers of one task's rows."""

    name: str
    splits: list[tuple[int, int]]
    """Rows with the task's label and rows without it, in each split."""


def plan_section(run: RunRecord) -> Section | None:
    """Returns the tables of phases, draws and labels; None for a run without setup.json.

    Labels have a table of their own only where rows are without some.
    """
    if not run.setup:
        return None
    parameters = sum(run.setup["units"].values())
    phases = [_phase_row(span, parameters) for span in run.spans]
    splits = list(dict.fromkeys(split for task in run.tasks for split in run.setup["tasks"][task]["rows"]))
    labels = [_task_labels(run, task, splits) for task in run.tasks]
    if not any(missing for task in labels for _, missing in task.splits):
        labels = []
    tables = {"phases": phases, "pools": _pool_draws(run), "splits": splits, "labels": labels}
    return Section("Plan", render("plan.html", **tables, finished=run.finished))


def _phase_row(span: Span, parameters: int) -> PhaseRow:
    phase: Mapping[str, Any] = span.planned
    return PhaseRow(
        name=span.name,
        until=phase["until"]["condition"] if phase["until"] else "",
        first=span.start + 1,
        last=span.stop,
        planned=phase["stop"] - phase["start"],
        trains=phase_units_name(span.units),
        parameters=phase["parameters"],
        share=phase["parameters"] / parameters,
        rates=planned_rates(phase["rates"]),
    )


def _pool_draws(run: RunRecord) -> list[PoolDraws]:
    # In runs of older versions, each task has its own rows.
    own = {task: {"tasks": [task], "rows": run.setup["tasks"][task]["rows"]["train"]} for task in run.tasks}
    pools = []
    for name, pool in run.setup.get("pools", own).items():
        first, *others = pool["tasks"]
        draws = [int((span.outcome or span.planned)["draws"][first]) for span in run.spans]
        pools.append(PoolDraws(name, ", ".join([first, *others]) if others else "", pool["rows"], draws))
    return pools


def _task_labels(run: RunRecord, task: str, splits: Sequence[str]) -> TaskLabels:
    of_task = run.setup["tasks"][task]
    missing = of_task.get("missing", {})
    return TaskLabels(task, [(of_task["rows"].get(split, 0), missing.get(split, 0)) for split in splits])
