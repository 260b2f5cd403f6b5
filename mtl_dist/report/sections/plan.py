"""Section on the plan: the units that each phase trains, and the draws from each task's rows."""

from collections.abc import Mapping
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
class TaskDraws:
    """Examples drawn from one task's training rows."""

    name: str
    size: int
    """Number of training rows."""
    draws: list[int]
    """Examples drawn in each phase."""


def plan_section(run: RunRecord) -> Section | None:
    """Returns the tables of phases and draws; None for a run without setup.json."""
    if not run.setup:
        return None
    parameters = sum(run.setup["units"].values())
    phases = [_phase_row(span, parameters) for span in run.spans]
    tasks = [_task_draws(run, task) for task in run.tasks]
    return Section("Plan", render("plan.html", phases=phases, tasks=tasks, finished=run.finished))


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


def _task_draws(run: RunRecord, task: str) -> TaskDraws:
    draws = [int((span.outcome or span.planned)["draws"][task]) for span in run.spans]
    return TaskDraws(task, run.setup["tasks"][task]["rows"]["train"], draws)
