"""The run at Weights & Biases: one over all restarts, with every line of metrics.jsonl in it once.

A row's number (`_step`) is a function of the line alone. W&B, or the file in which it recorded the run on this machine,
knows the last number that it has. So a run that goes on sends what is missing there of metrics.jsonl, and not again
what it does a second time after a kill.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import reason
from mtl_dist.tracking.tables import FinalTables, MisclassifiedText
from mtl_dist.tracking.wandb_offline_file import last_row

WANDB_START_SECONDS = 60.0
"""How long a run waits for W&B before its first step."""
WANDB_FINISH_SECONDS = 60.0
"""How long a finished run waits for W&B to take the rest; `wandb sync` sends from the folder what it did not."""
WANDB_UPLOAD_SECONDS = 600.0
"""As `WANDB_FINISH_SECONDS`, of a run with artifacts."""
MOST_CELLS = 10_000
"""Of a confusion matrix as W&B draws it; of a larger one it gets the cells that are not 0."""

_ROLLBACK, _STEP, _MEASURED, _END = range(4)
_ROWS_OF_A_STEP = 4


def row_number(line: Mapping[str, Any]) -> int:
    """The number of the row that a line of metrics.jsonl is at W&B; grows from each line to the next."""
    if any(key.startswith("test/") for key in line):
        kind = _END
    elif "train/loss" in line:
        kind = _STEP
    else:
        kind = _ROLLBACK if "safety/rolled_back_to" in line else _MEASURED
    return _ROWS_OF_A_STEP * int(line["step"]) + kind


class Bests:
    """The last and the best of each figure that has a best: losses are better if lower, what is measured if higher.

    W&B's own `summary="max"` counts within one process alone, and so would lose what was before a restart.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def take(self, line: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """Takes a line in; returns what it has changed, as W&B writes it: by key, `max` or `min` and `last`."""
        changed = {}
        for key, value in line.items():
            best = best_of(key)
            if best is not None and isinstance(value, int | float) and math.isfinite(value):
                choose = max if best == "max" else min
                before = self.found.get(key, {}).get(best, value)
                changed[key] = {best: choose(before, value), "last": value}
        self.found |= changed
        return changed


def best_of(key: str) -> Literal["max", "min"] | None:
    """Which value of a figure is its best, if any is."""
    space, _, name = key.partition("/")
    figure = name.rpartition("/")[2]
    if figure == "loss" and space in ("train", "eval"):
        return "min"
    return "max" if space == "eval" and figure in ("accuracy", "macro_f1") else None


class WandbRun:
    """A started run. Every method may raise whatever W&B does."""

    name = "W&B"

    def __init__(self, folder: Path, recipe: Recipe, wandb_id: str, lines: Path, say: Callable[[str], None]) -> None:
        """Goes on with the run `wandb_id`, or starts a new one; `lines` is metrics.jsonl, `say` takes a line."""
        self._run = _started(folder, recipe, wandb_id, say)
        self._bests = Bests()
        self._sent = -1
        """Number of the last row that W&B had when the process began."""
        if self._run.offline:
            self._sent = last_row(folder / "wandb", self._run.id)
        elif self._run.resumed:
            self._sent = self._run.starting_step - 1
        self._define(recipe)
        self._catch_up(lines)

    @property
    def id(self) -> str:
        """By which W&B knows the run."""
        return self._run.id

    def log(self, line: Mapping[str, Any], tables: Callable[[], FinalTables] | None = None) -> None:
        """Sends a line, and what goes with it, unless an earlier process has."""
        changed = self._bests.take(line)
        number = row_number(line)
        if number <= self._sent:
            return
        charts = {} if tables is None else _charts(tables())
        self._run.log({**_row(line), **charts}, step=number, commit=True)
        if changed:
            self._run.summary.update(changed)

    def alert(self, title: str, text: str, step: int | None = None) -> None:
        """Sends a message by the ways that its user has chosen; one on `step` only once, restarts or not."""
        if step is None or _ROWS_OF_A_STEP * step + _STEP > self._sent:
            self._run.alert(title, text, level="WARN")

    def keep(self, kind: Literal["model", "checkpoint"], folder: Path, step: int) -> None:
        """Sends a folder as an artifact, with the steps that were done."""
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self._run.id}", type=kind, metadata={"step": step})
        # A checkpoint may be removed before it is uploaded, so W&B takes a copy.
        artifact.add_dir(str(folder), policy="immutable" if kind == "model" else "mutable")
        self._run.log_artifact(artifact, aliases=["latest", f"step-{step}"])

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int) -> None:
        """Ends this process's part of the run."""
        self._run.summary.update({**self._bests.found, **(summary or {})})
        self._run.finish(exit_code=exit_code)

    def _define(self, recipe: Recipe) -> None:
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        figures = [f"eval/{task}/{name}" for task in recipe.tasks for name in ("loss", "accuracy", "macro_f1")]
        for key in ("train/loss", *(f"train/{task}/loss" for task in recipe.tasks), *figures):
            self._run.define_metric(key, step_metric="step", summary="none")  # it is in `Bests`

    def _catch_up(self, lines: Path) -> None:
        """Sends the lines that W&B lacks: it was off, or killed before it had them on the disk."""
        if not lines.exists():
            return
        with lines.open(encoding="utf-8") as file:
            for text in file:
                line = json.loads(text)
                self._bests.take(line)
                if row_number(line) > self._sent:
                    self._run.log(_row(line), step=row_number(line), commit=True)
        if self._bests.found:
            self._run.summary.update(self._bests.found)


def _row(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line without its lists, which W&B cannot draw; confusions come as charts at the end."""
    return {key: math.nan if value is None else value for key, value in line.items() if not isinstance(value, list)}


def _charts(tables: FinalTables) -> dict[str, Any]:
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
    counts = {(label, prediction): count for label, prediction, count in cells}
    if len(labels) ** 2 <= MOST_CELLS:
        every = range(len(labels))
        counts = {(label, prediction): 0 for label in every for prediction in every} | counts
    return [[labels[label], labels[prediction], count] for (label, prediction), count in counts.items()]


def _started(folder: Path, recipe: Recipe, wandb_id: str, say: Callable[[str], None]) -> Any:
    # Imported here because a run without W&B should not pay for it, nor need it.
    import wandb

    config = recipe.tracking
    sweep = os.environ.get("WANDB_SWEEP_ID")
    group = os.environ.get("WANDB_RUN_GROUP") or (f"sweep-{sweep}" if sweep else None)

    def start(mode: Literal["offline"] | None) -> Any:
        return wandb.init(
            project=config.wandb_project,
            dir=str(folder),
            id=wandb_id or None,
            resume="allow" if wandb_id else None,
            name=config.name or os.environ.get("WANDB_NAME") or folder.resolve().name,
            group=config.group or group,
            job_type=config.job_type,
            tags=config.tags or None,
            config=recipe.model_dump(),
            mode=mode,
            settings=wandb.Settings(
                init_timeout=WANDB_START_SECONDS,
                finish_timeout=WANDB_FINISH_SECONDS if config.artifacts == "none" else WANDB_UPLOAD_SECONDS,
                finish_timeout_raises=True,
                console="off",
                silent=True,
            ),
        )

    decided = os.environ.get("WANDB_MODE") or wandb.login(prompt=False, verify=False)
    try:
        return start(None if decided else "offline")
    except wandb.Error as error:
        wandb.teardown()  # or its service would say that the run's id is in use
        say(f"W&B is offline: {reason(error)}; `wandb sync` sends later what is in {folder}/wandb")
        return start("offline")
