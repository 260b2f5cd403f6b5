"""Weights & Biases as a backend: one W&B run across all restarts, with every line of metrics.jsonl exactly once.

A row's number (`_step`) is a function of the line alone. W&B, or the file in which it recorded the run on this machine,
has the number of its last row. A resumed run therefore sends the lines of metrics.jsonl that are missing there, and
does not send again the steps that it repeats after a kill.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import root_cause
from mtl_dist.tracking.tables import FinalTables, MisclassifiedText
from mtl_dist.tracking.wandb_offline_file import last_row

logger = logging.getLogger(__name__)

WANDB_START_SECONDS = 60.0
"""Timeout for W&B to start, before the first step."""
WANDB_FINISH_SECONDS = 60.0
"""Timeout for W&B to receive the rest of a finished run; `wandb sync` sends the remainder from the folder."""
WANDB_UPLOAD_SECONDS = 600.0
"""The same as `WANDB_FINISH_SECONDS`, for a run with artifacts."""
MOST_CELLS = 10_000
"""Cells of a confusion matrix that are sent: all of a matrix that has no more, otherwise the largest that are not 0."""

_ROLLBACK, _STEP, _MEASURED, _END = range(4)
_ROWS_OF_A_STEP = 4


def row_number(line: Mapping[str, Any]) -> int:
    """Returns the number of the W&B row for a line of metrics.jsonl; it increases from line to line."""
    if any(key.startswith("test/") for key in line):
        kind = _END
    elif "train/loss" in line:
        kind = _STEP
    else:
        kind = _ROLLBACK if "safety/rolled_back_to" in line else _MEASURED
    return _ROWS_OF_A_STEP * int(line["step"]) + kind


class BestValues:
    """Last and best value of each loss (minimum), accuracy and macro-F1 (maximum).

    W&B's own `summary="max"` covers one process only, and would forget the values before a restart.
    """

    def __init__(self) -> None:
        self.values: dict[str, dict[str, float]] = {}

    def update(self, line: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Adds a line; returns the changed entries in W&B's form: `max` or `min`, and `last`, by key."""
        changed = {}
        for key, value in line.items():
            best = better_direction(key)
            if best is not None and isinstance(value, int | float) and math.isfinite(value):
                choose = max if best == "max" else min
                before = self.values.get(key, {}).get(best, value)
                changed[key] = {best: choose(before, value), "last": value}
        self.values |= changed
        return changed


def better_direction(key: str) -> Literal["max", "min"] | None:
    """Returns whether the best value of a figure is its maximum or its minimum; None for one without a best."""
    space, _, name = key.partition("/")
    figure = name.rpartition("/")[2]
    if figure == "loss" and space in ("train", "eval"):
        return "min"
    return "max" if space == "eval" and figure in ("accuracy", "macro_f1") else None


class WandbRun:
    """A started W&B run. Every method may raise any exception of W&B."""

    name = "W&B"

    def __init__(self, folder: Path, recipe: Recipe, wandb_id: str, lines: Path) -> None:
        """Resumes the W&B run `wandb_id`, or starts a new one where it is empty; `lines` is metrics.jsonl."""
        self._run = _start_run(folder, recipe, wandb_id)
        self._bests = BestValues()
        self._sent = -1
        """Number of the last row that W&B had when this process started."""
        if self._run.offline:
            self._sent = last_row(folder / "wandb", self._run.id)
        elif self._run.resumed:
            self._sent = self._run.starting_step - 1
        self._define_metrics(recipe)
        self._send_missing_lines(lines)

    @property
    def id(self) -> str:
        """Id of the run at W&B."""
        return self._run.id

    def log(self, line: Mapping[str, Any], tables: Callable[[], FinalTables] | None = None) -> None:
        """Sends a line with its tables, unless an earlier process has sent it."""
        changed = self._bests.update(line)
        number = row_number(line)
        if number <= self._sent:
            return
        charts = {} if tables is None else _charts(tables())
        self._run.log({**_row(line), **charts}, step=number, commit=True)
        if changed:
            self._run.summary.update(changed)

    def alert(self, title: str, text: str, step: int | None = None) -> None:
        """Sends an alert over the user's channels at W&B; one about `step` is sent once across restarts."""
        if step is None or _ROWS_OF_A_STEP * step + _STEP > self._sent:
            self._run.alert(title, text, level="WARN")

    def log_artifact(self, kind: Literal["model", "checkpoint"], folder: Path, step: int) -> None:
        """Uploads a folder as an artifact, with the number of steps done as metadata."""
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self._run.id}", type=kind, metadata={"step": step})
        # W&B copies a checkpoint, which may be removed before it is uploaded.
        artifact.add_dir(str(folder), policy="immutable" if kind == "model" else "mutable")
        self._run.log_artifact(artifact, aliases=["latest", f"step-{step}"])

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int) -> None:
        """Ends this process's part of the run, with the run's summary if there is one."""
        self._run.summary.update({**self._bests.values, **(summary or {})})
        self._run.finish(exit_code=exit_code)

    def _define_metrics(self, recipe: Recipe) -> None:
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        figures = [f"eval/{task}/{name}" for task in recipe.tasks for name in ("loss", "accuracy", "macro_f1")]
        for key in ("train/loss", *(f"train/{task}/loss" for task in recipe.tasks), *figures):
            self._run.define_metric(key, step_metric="step", summary="none")  # BestValues keeps it

    def _send_missing_lines(self, lines: Path) -> None:
        """Sends the lines that W&B lacks because it was off, or was killed before they were on the disk."""
        if not lines.exists():
            return
        with lines.open(encoding="utf-8") as file:
            for text in file:
                line = json.loads(text)
                self._bests.update(line)
                if row_number(line) > self._sent:
                    self._run.log(_row(line), step=row_number(line), commit=True)
        if self._bests.values:
            self._run.summary.update(self._bests.values)


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a line without its lists, which W&B cannot plot; confusions are sent as charts at the end."""
    return {key: math.nan if value is None else value for key, value in line.items() if not isinstance(value, list)}


def _charts(tables: FinalTables) -> dict[str, Any]:
    """Returns W&B's charts and tables by key: confusion matrices, and misclassified texts where there are any."""
    import wandb

    charts: dict[str, Any] = {}
    for task, cells in tables.confusions.items():
        columns: list[Any] = ["Actual", "Predicted", "nPredictions"]
        counts = wandb.Table(columns=columns, data=_cells(tables.labels[task], cells))
        title = {"title": f"{task}: what was taken for what"}
        charts[f"test/{task}/confusion_matrix"] = wandb.plot_table(
            "wandb/confusion_matrix/v1", counts, dict(zip(columns, columns, strict=True)), title
        )
    for task, texts in tables.misclassified.items():
        if texts:
            rows: list[Any] = [list(text) for text in texts]
            names: list[Any] = [*MisclassifiedText._fields]
            charts[f"test/{task}/misclassified"] = wandb.Table(columns=names, data=rows)
    return charts


def _cells(labels: Sequence[str], cells: Sequence[Sequence[int]]) -> list[Any]:
    """Returns rows of class name, predicted class name and count; see MOST_CELLS."""
    counts = {(label, prediction): count for label, prediction, count in cells}
    if len(labels) ** 2 <= MOST_CELLS:
        every = range(len(labels))
        counts = {(label, prediction): 0 for label in every for prediction in every} | counts
    else:
        largest = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:MOST_CELLS]
        counts = dict(sorted(largest))
    return [[labels[label], labels[prediction], count] for (label, prediction), count in counts.items()]


def _start_run(folder: Path, recipe: Recipe, wandb_id: str) -> Any:
    """Starts a run, offline where W&B has no key or cannot be reached; returns W&B's run object."""
    # Imported here because a run without W&B should neither need it nor wait for its import.
    import wandb

    options = _run_options(folder, recipe, wandb_id)
    mode_is_known = os.environ.get("WANDB_MODE") or wandb.login(prompt=False, verify=False)
    try:
        return wandb.init(**options, mode=None if mode_is_known else "offline")
    except wandb.Error as error:
        wandb.teardown()  # otherwise its service reports that the run's id is in use
        logger.info(f"W&B is offline: {root_cause(error)}; `wandb sync` sends later what is in {folder}/wandb")
        return wandb.init(**options, mode="offline")


def _run_options(folder: Path, recipe: Recipe, wandb_id: str) -> dict[str, Any]:
    """Returns the arguments of `wandb.init`: the recipe first, then W&B's environment variables, then defaults."""
    import wandb

    config = recipe.tracking
    sweep = os.environ.get("WANDB_SWEEP_ID")
    group = os.environ.get("WANDB_RUN_GROUP") or (f"sweep-{sweep}" if sweep else None)
    return {
        "project": config.wandb_project,
        "dir": str(folder),
        "id": wandb_id or None,
        "resume": "allow" if wandb_id else None,
        "name": config.name or os.environ.get("WANDB_NAME") or folder.resolve().name,
        "group": config.group or group,
        "job_type": config.job_type,
        "tags": config.tags or None,
        "config": recipe.model_dump(),
        "settings": wandb.Settings(
            init_timeout=WANDB_START_SECONDS,
            finish_timeout=WANDB_FINISH_SECONDS if config.artifacts == "none" else WANDB_UPLOAD_SECONDS,
            finish_timeout_raises=True,
            console="off",
            silent=True,
        ),
    }
