"""What a run folder tells, read back: recipe, set-up, lines of metrics and summary, whatever of them there is.

A run folder of an older version lacks setup.json, one of a run that goes on lacks summary.json, and the last line of
metrics.jsonl may be half written. None of that keeps the rest from being read.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mtl_dist.errors import UserError
from mtl_dist.report.series import Series
from mtl_dist.run_layout import METRICS, RECIPE, SETUP, SUMMARY

FIGURES = ("accuracy", "macro_f1", "loss")
RATES = "optim/lr/"


@dataclass(frozen=True)
class Evaluation:
    """All tasks measured on one split."""

    step: int
    """Steps done by then."""
    split: str
    """`eval`, for that of `evaluation.split`, or `test`, at the end."""
    figures: dict[str, dict[str, float]]
    """By task and name."""
    confusions: dict[str, list[list[int]]]
    """By task: [label, prediction, count] where that is not 0; none in runs of older versions."""


@dataclass(frozen=True)
class Span:
    """A phase as it was, or as it is planned where the run has not come to its end."""

    name: str
    start: int
    """Steps done before it."""
    stop: int
    """Steps done after it."""
    units: tuple[str, ...]
    planned: Mapping[str, Any]
    """Of setup.json; empty where there is none."""
    outcome: Mapping[str, Any]
    """Of summary.json; empty where there is none."""


@dataclass
class Lines:
    """What metrics.jsonl holds."""

    columns: dict[str, Series] = field(default_factory=dict)
    """Numbers of training steps, by key."""
    evaluations: dict[tuple[int, str], Evaluation] = field(default_factory=dict)
    """By step and split, in the order of the steps."""
    rollbacks: dict[int, int] = field(default_factory=dict)
    """The steps after which the run went back to earlier weights, and how many steps these had done."""
    phases: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The first and last logged step of each phase."""
    units: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What had a learning rate in each phase."""
    unreadable: int = 0
    """Lines that are not JSON."""
    latest: int = 0
    """The step of the last line."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Takes one line in. A run that goes on from a checkpoint may do steps again: the last time counts."""
        step, phase = int(line["step"]), str(line["phase"])
        if step < self.latest:
            self._forget_after(step)
        self.latest = step
        if "train/loss" in line:
            first, _ = self.phases.get(phase, (step, step))
            self.phases[phase] = first, step
            self.units[phase] = tuple(key.removeprefix(RATES) for key in line if key.startswith(RATES))
            for key, value in line.items():
                if key not in ("step", "phase") and isinstance(value, int | float | None):
                    self.columns.setdefault(key, Series()).put(step, math.nan if value is None else float(value))
        if "safety/rolled_back_to" in line:
            self.rollbacks[step] = int(line["safety/rolled_back_to"])
        for split in ("eval", "test"):
            self._measured(step, split, line)

    def _measured(self, step: int, split: str, line: Mapping[str, Any]) -> None:
        figures: dict[str, dict[str, float]] = {}
        confusions: dict[str, list[list[int]]] = {}
        for key, value in line.items():
            if not key.startswith(f"{split}/"):
                continue
            task, _, name = key.removeprefix(f"{split}/").rpartition("/")
            if name == "confusion":
                confusions[task] = value
            else:
                figures.setdefault(task, {})[name] = math.nan if value is None else float(value)
        if figures:
            self.evaluations[step, split] = Evaluation(step, split, figures, confusions)

    def _forget_after(self, step: int) -> None:
        for series in self.columns.values():
            series.forget_after(step)
        self.evaluations = {key: one for key, one in self.evaluations.items() if key[0] <= step}
        self.rollbacks = {at: back for at, back in self.rollbacks.items() if at <= step}
        self.phases = {name: (first, min(last, step)) for name, (first, last) in self.phases.items() if first <= step}


@dataclass(frozen=True)
class RunRecord:
    """A run, finished or not."""

    folder: Path
    recipe_text: str
    recipe: dict[str, Any]
    setup: dict[str, Any]
    """Empty where there is no setup.json."""
    summary: dict[str, Any]
    """Empty while the run is not finished."""
    lines: Lines

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def tasks(self) -> list[str]:
        """In the recipe's order."""
        return [str(task) for task in self.recipe.get("tasks") or {}]

    @property
    def done(self) -> int:
        """Steps done, as far as was logged."""
        if self.summary:
            return int(self.summary["steps"])
        losses = self.column("train/loss")
        return losses.steps[-1] if losses else 0

    @property
    def total(self) -> int:
        """Steps of the run; what is still to come as planned."""
        spans = self.spans
        return max(self.done, spans[-1].stop if spans else 0)

    @property
    def spans(self) -> list[Span]:
        """The phases without gaps, from what is known best: the summary, the lines, the plan."""
        planned = {phase["name"]: phase for phase in self.setup.get("phases", ())}
        outcomes = {phase["name"]: phase for phase in self.summary.get("phases", ())}
        logged = self.lines.phases
        names = list(outcomes or planned or logged)
        spans: list[Span] = []
        for index, name in enumerate(names):
            start = spans[-1].stop if spans else 0
            plan, outcome = planned.get(name, {}), outcomes.get(name, {})
            if outcome:
                stop = start + int(outcome["steps"])
            elif name in logged and (not plan or any(later in logged for later in names[index + 1 :])):
                stop = logged[name][1]  # a phase's last step is always logged
            else:
                stop = start + plan["stop"] - plan["start"]
            units = tuple(plan.get("units", ())) or self.lines.units.get(name, ())
            spans.append(Span(name, start, stop, units, plan, outcome))
        return spans

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Each time that the run was started, oldest first; of a run of an older version, what its summary says."""
        known = ("engine", "world_size", "mixed_precision", "versions")
        if self.setup:
            return self.setup["starts"]
        return [{"step": 0, **{key: self.summary[key] for key in known}}] if self.summary else []

    def column(self, key: str) -> Series:
        """A number of the training steps; empty where the run never wrote it."""
        return self.lines.columns.get(key, Series())

    def training_loss(self, task: str) -> Series:
        """A task's part of the training loss; runs of older versions call it otherwise."""
        return self.column(f"train/{task}/loss") or self.column(f"train/loss/{task}")

    def measured(self, task: str, figure: str, split: str = "eval") -> Series:
        """A figure of a task over the steps done when it was measured."""
        found = [
            (one.step, one.figures[task][figure])
            for one in self.lines.evaluations.values()
            if one.split == split and figure in one.figures.get(task, {})
        ]
        return Series.of(sorted(found))

    def last_evaluation(self) -> Evaluation | None:
        """The test figures, or the last ones measured while there are none."""
        return max(self.lines.evaluations.values(), key=lambda one: (one.step, one.split == "test"), default=None)

    def labels(self, task: str) -> list[str]:
        """Class names in order; none where the run did not write them down."""
        known = self.setup.get("tasks", {}).get(task, {}).get("labels")
        return [str(label) for label in known or self.recipe["tasks"][task].get("labels") or ()]


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder. Raises UserError where it is none, or where one of its files is not what a run writes."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a run's output_dir")
    if not (folder / RECIPE).is_file():
        raise UserError(f"{folder}: is no run: it has no {RECIPE}")
    recipe_text = _text(folder / RECIPE)
    try:
        recipe = yaml.safe_load(recipe_text)
    except yaml.YAMLError as error:
        raise UserError(f"{folder / RECIPE}: is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"{folder / RECIPE}: is not a mapping of keys to values")
    lines = Lines()
    for line in _json_lines(folder / METRICS):
        if line is None:
            lines.unreadable += 1
        else:
            lines.add(line)
    return RunRecord(folder, recipe_text, recipe, _mapping(folder / SETUP), _mapping(folder / SUMMARY), lines)


def _json_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The lines of metrics.jsonl; None for one that is cut short, or zeros where the machine lost its power."""
    if not path.exists():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    line = None
                yield line if isinstance(line, dict) and {"step", "phase"} <= line.keys() else None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON file that is written whole or not at all; empty where there is none."""
    if not path.exists():
        return {}
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a mapping of keys to values")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
