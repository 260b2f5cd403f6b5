"""Sections on measured figures: results by task, and confusion matrices."""

from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from mtl_dist.report.confusion import confusion_matrix
from mtl_dist.report.records import FIGURES, Evaluation, RunRecord
from mtl_dist.report.sections.section import Section
from mtl_dist.report.templating import render

MAX_EARLIER = 6
"""Number of earlier evaluations whose confusion matrices are shown."""


@dataclass(frozen=True)
class ResultRow:
    """One task in the table of results."""

    task: str
    figures: Mapping[str, float | None]
    size: int | None
    """Number of rows of the split with the task's label; None where setup.json does not have it."""
    missing: int
    """Number of rows without it."""
    classes: int | None


@dataclass(frozen=True)
class ConfusionCard:
    """Confusion matrices of one task."""

    task: str
    matrix: Markup
    earlier: list[tuple[int, Markup]]
    """Steps done and matrix of the evaluations before, newest first."""


def results_section(run: RunRecord) -> Section:
    """Returns the table of figures on the test split, or of the last evaluation where the test has not been run."""
    last = run.last_evaluation()
    if last is None:
        return Section("Results", render("results.html", rows=[], mean={}))
    split = "test" if last.split == "test" else run.evaluation_split
    rows = [_result_row(run, last, task, split) for task in run.tasks if task in last.figures]
    rows = rows or [_result_row(run, last, task, split) for task in last.figures]
    mean: dict[str, float] = {}
    if len(rows) > 1:
        mean = {name: _mean([one.get(name, 0.0) for one in last.figures.values()]) for name in FIGURES}
    note = "On the test split, at the end." if last.split == "test" else f"On {split}, after step {last.step:,}."
    return Section("Results", render("results.html", rows=rows, mean=mean), note)


def confusion_section(run: RunRecord) -> Section | None:
    """Returns the last confusion matrix of each task and those at earlier phase ends; None for a run without any."""
    measured = [one for one in run.lines.evaluations.values() if one.confusions]
    if not measured:
        return None
    last = run.last_evaluation()
    earlier = [one for one in measured if one.split == "eval" and one is not last and one.step < run.done]
    cards = []
    for task in run.tasks:
        if last is not None and task in last.confusions:
            labels = run.labels(task)
            before = [
                (one.step, confusion_matrix(one.confusions[task], labels))
                for one in reversed(earlier[-MAX_EARLIER:])
                if task in one.confusions
            ]
            cards.append(ConfusionCard(task, confusion_matrix(last.confusions[task], labels), before))
    where = "on the test split, at the end" if last is not None and last.split == "test" else "as last measured"
    note = f"True classes downwards, {where}; shades are shares of a row."
    return Section("Confusion", render("confusion.html", cards=cards), note)


def _result_row(run: RunRecord, last: Evaluation, task: str, split: str) -> ResultRow:
    figures = {name: last.figures[task].get(name) for name in FIGURES}
    of_task = run.setup.get("tasks", {}).get(task, {})
    size, missing = of_task.get("rows", {}).get(split), of_task.get("missing", {}).get(split, 0)
    return ResultRow(task, figures, size, missing, len(run.labels(task)) or None)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
