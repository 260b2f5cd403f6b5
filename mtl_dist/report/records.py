"""A run folder read back: recipe, setup.json, metrics.jsonl and summary.json, as far as they exist.

A run folder of an older version has no setup.json, that of a running run no summary.json, and the last line of
metrics.jsonl may be incomplete. The rest is read all the same.
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
    """Evaluation of all tasks on one split."""

    step: int
    """Steps done before it."""
    split: str
    """`eval` for the split of `evaluation.split`, or `test` for the test at the end."""
    figures: dict[str, dict[str, float]]
    """Figures by task and name."""
    confusions: dict[str, list[list[int]]]
    """[label, prediction, count] by task, where the count is not 0; none in runs of older versions."""


@dataclass(frozen=True)
class Span:
    """A phase as it was run, or as it is planned where the run has not reached its end."""

    name: str
    start: int
    """Steps done before the phase."""
    stop: int
    """Steps done after the phase."""
    units: tuple[str, ...]
    planned: Mapping[str, Any]
    """The phase in setup.json; empty without that file."""
    outcome: Mapping[str, Any]
    """The phase in summary.json; empty without that file."""


@dataclass
class Lines:
    """Content of metrics.jsonl."""

    columns: dict[str, Series] = field(default_factory=dict)
    """Numbers of the training steps, by key."""
    evaluations: dict[tuple[int, str], Evaluation] = field(default_factory=dict)
    """Evaluations by step and split, in the order of steps."""
    rollbacks: dict[int, int] = field(default_factory=dict)
    """Steps after which the run was rolled back to earlier weights, with the steps done at these weights."""
    phases: dict[str, tuple[int, int]] = field(default_factory=dict)
    """First and last logged step of each phase."""
    units: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Units with a learning rate in each phase."""
    unreadable: int = 0
    """Number of lines that are not JSON."""
    latest: int = 0
    """Step of the last line."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds one line. A resumed run may repeat steps; the last repetition counts."""
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
            self._add_evaluation(step, split, line)

    def _add_evaluation(self, step: int, split: str, line: Mapping[str, Any]) -> None:
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
    """A finished or unfinished run."""

    folder: Path
    recipe_text: str
    recipe: dict[str, Any]
    setup: dict[str, Any]
    """setup.json; empty without that file."""
    summary: dict[str, Any]
    """summary.json; empty while the run is not finished."""
    lines: Lines

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def finished(self) -> bool:
        return bool(self.summary)

    @property
    def tasks(self) -> list[str]:
        """Task names in the recipe's order."""
        return [str(task) for task in self.recipe.get("tasks") or {}]

    @property
    def done(self) -> int:
        """Steps done according to the summary or the last logged step."""
        if self.summary:
            return int(self.summary["steps"])
        losses = self.column("train/loss")
        return losses.steps[-1] if losses else 0

    @property
    def total(self) -> int:
        """Steps of the whole run, those that remain as planned."""
        spans = self.spans
        return max(self.done, spans[-1].stop if spans else 0)

    @property
    def spans(self) -> list[Span]:
        """Phases without gaps, from the summary where it exists, then from logged lines, then as planned."""
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
        """Every start of the run, oldest first; in runs of older versions, the only one that the summary has."""
        known = ("engine", "world_size", "mixed_precision", "versions")
        if self.setup:
            return self.setup["starts"]
        return [{"step": 0, **{key: self.summary[key] for key in known}}] if self.summary else []

    @property
    def evaluation_split(self) -> str:
        """Name of the split that is measured within the run, as `eval`."""
        asked = (self.recipe.get("evaluation") or {}).get("split")
        return str(self.setup.get("evaluation_split") or asked or "evaluation")

    def column(self, key: str) -> Series:
        """Returns a number of the training steps; empty where the run never logged it."""
        return self.lines.columns.get(key, Series())

    def training_loss(self, task: str) -> Series:
        """Returns a task's part of the training loss, also under the key of older versions."""
        return self.column(f"train/{task}/loss") or self.column(f"train/loss/{task}")

    def measured(self, task: str, figure: str, split: str = "eval") -> Series:
        """Returns a figure of a task by the steps done when it was measured."""
        found = [
            (one.step, one.figures[task][figure])
            for one in self.lines.evaluations.values()
            if one.split == split and figure in one.figures.get(task, {})
        ]
        return Series.of(sorted(found))

    def last_evaluation(self) -> Evaluation | None:
        """Returns the evaluation on the test split, or before the test the last one; None without any."""
        return max(self.lines.evaluations.values(), key=lambda one: (one.step, one.split == "test"), default=None)

    def labels(self, task: str) -> list[str]:
        """Returns the class names in order; empty where the run did not record them."""
        known = (
            self.setup.get("tasks", {}).get(task, {}).get("labels") or self.recipe["tasks"][task].get("labels") or ()
        )
        # Recipes have a mapping of values to names, those of older versions a list of names.
        return [str(label) for label in (known.values() if isinstance(known, dict) else known)]


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder. Raises UserError where it is not one, or where a file is not as a run writes it."""
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
    """Yields the lines of metrics.jsonl; None for an incomplete line, or zeros left by a power failure."""
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
    """Reads a JSON file, which a run writes atomically; empty where it does not exist."""
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
