"""Tracker of a run: writes metrics.jsonl, and passes each line on to W&B and Accelerate's trackers by choice.

Only the main process writes. A failing tracker is reported once and never stops training: metrics.jsonl has every
figure.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Literal, Protocol

from mtl_dist.config.recipe import Recipe
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import TrainingError, root_cause
from mtl_dist.io import reporting_write_errors
from mtl_dist.run_layout import METRICS
from mtl_dist.tracking.accelerate_backend import AccelerateTracker
from mtl_dist.tracking.tables import FinalTables
from mtl_dist.tracking.wandb_backend import WandbRun

logger = logging.getLogger(__name__)

Value = float | str | Sequence[Sequence[int]]
"""Value in a line: a number, a text or, for confusions, [label, prediction, count] triples where the count is not 0."""


class TrackerBackend(Protocol):
    """Receiver of metrics beside metrics.jsonl. An exception in any method disables it for the rest of the run."""

    name: str

    def log(self, line: Mapping[str, Any], tables: Callable[[], FinalTables] | None = None) -> None:
        """Receives a line of metrics.jsonl; `tables` computes the tables of the last evaluation."""

    def alert(self, title: str, text: str, step: int | None = None) -> None:
        """Sends a notification to the user, about `step` if given."""

    def log_artifact(self, kind: Literal["model", "checkpoint"], folder: Path, step: int) -> None:
        """Receives a folder that was written after `step` steps."""

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int) -> None:
        """Ends the run at the tracker, with the final summary if there is one."""


class Tracker:
    """Writes the metrics of a run, one JSON line per call of `log`. Every rank calls its methods alike."""

    def __init__(self, folder: Path, recipe: Recipe, group: ProcessGroup, wandb_id: str = "", step: int = 0) -> None:
        """Opens metrics.jsonl in `folder` and starts the recipe's trackers.

        `wandb_id` is the W&B run to resume, `step` the number of steps done. Raises TrainingError on every rank where
        metrics.jsonl cannot be opened.
        """
        self.wandb_id = wandb_id
        """Id of the W&B run, on the main process alone; empty without one."""
        self._group = group
        self._on_error = recipe.checkpoint.on_error
        self._artifacts = recipe.tracking.artifacts
        self._path = folder / METRICS
        self._file: FileIO | None = None
        self._unwritten: list[bytes] = []
        self._backends: list[TrackerBackend] = []
        with group.raise_together():
            self._open()
        if not group.is_main:
            return
        if recipe.tracking.wandb:
            self._disable_on_error("W&B", lambda: self._start_wandb(folder, recipe))
        for name in recipe.tracking.also:
            self._disable_on_error(
                name, lambda name=name: self._backends.append(AccelerateTracker(name, folder, recipe, step))
            )

    def log(
        self,
        step: int,
        phase: str,
        values: Mapping[str, Value],
        tables: Callable[[], FinalTables] | None = None,
    ) -> None:
        """Writes one line: `values` with the number of steps done and the phase's name; non-finite numbers are null.

        `tables` computes what trackers show beside figures. Where the disk refuses the line, raises TrainingError on
        every rank, or with `checkpoint.on_error: continue` reports it once and retries with the next line.
        """
        line = {"step": step, "phase": phase, **values}
        if self._file is not None:
            # JSON has no NaN, and readers other than Python's refuse it.
            finite = {key: None if isinstance(it, float) and not math.isfinite(it) else it for key, it in line.items()}
            self._unwritten.append((json.dumps(finite, allow_nan=False) + "\n").encode())
        try:
            with self._group.raise_together():
                self._write()
        except TrainingError as error:
            if self._on_error == "stop":
                raise
            if len(self._unwritten) == 1:
                logger.info(f"{error}; training continues (checkpoint.on_error), its lines are written later")
        self._for_each_backend(lambda backend: backend.log(line, tables))

    def alert(self, title: str, text: str, step: int | None = None) -> None:
        """Notifies the user; an alert about `step` is sent once, even if a resumed run repeats that step."""
        self._for_each_backend(lambda backend: backend.alert(title, text, step))

    def log_artifact(self, kind: Literal["model", "checkpoint"], folder: Path, step: int) -> None:
        """Uploads a folder that was written after `step` steps, if `tracking.artifacts` asks for its kind."""
        if self._artifacts == "checkpoints" or self._artifacts == kind:
            self._for_each_backend(lambda backend: backend.log_artifact(kind, folder, step))

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int = 0) -> None:
        """Closes metrics.jsonl and ends all trackers; `summary` becomes W&B's run summary."""
        if self._file is not None:
            if self._unwritten and self._on_error == "continue":
                logger.info(f"{self._path} lacks its last {len(self._unwritten)} lines: the disk did not take them")
            self._file.close()
            self._file = None
        self._for_each_backend(lambda backend: backend.finish(summary, exit_code))
        self._backends.clear()

    def flush(self) -> None:
        """Flushes metrics.jsonl to the disk. Raises TrainingError, on the main process alone, where that fails."""
        if self._file is not None:
            with reporting_write_errors(self._path):
                os.fsync(self._file.fileno())

    def _open(self) -> None:
        if self._group.is_main:
            with reporting_write_errors(self._path):
                self._file = self._path.open("ab", buffering=0)

    def _write(self) -> None:
        """Writes the pending lines, each completely or not at all."""
        while self._file is not None and self._unwritten:
            with reporting_write_errors(self._path):
                before, line = os.fstat(self._file.fileno()).st_size, self._unwritten[0]
                try:
                    while line:
                        line = line[self._file.write(line) :]
                except OSError:
                    os.ftruncate(self._file.fileno(), before)
                    raise
            del self._unwritten[0]

    def _start_wandb(self, folder: Path, recipe: Recipe) -> None:
        run = WandbRun(folder, recipe, self.wandb_id, self._path)
        self.wandb_id = run.id
        self._backends.append(run)

    def _for_each_backend(self, action: Callable[[TrackerBackend], object]) -> None:
        for backend in [*self._backends]:
            self._disable_on_error(backend.name, lambda backend=backend: action(backend))

    def _disable_on_error(self, name: str, action: Callable[[], object]) -> None:
        """Calls `action`; an exception removes the backend of this name and is reported."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - a failing service must not end a training run
            self._backends = [backend for backend in self._backends if backend.name != name]
            logger.info(f"{name} is off from here: {root_cause(error)}; metrics.jsonl still has every line")
