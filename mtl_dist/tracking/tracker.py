"""What a run tells: metrics.jsonl always, W&B and other trackers by choice, progress on a terminal or in a log.

Only rank 0 writes. A failure of a tracker is said once and never stops training: metrics.jsonl has every figure.
"""

import json
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
from mtl_dist.tracking.console import Console
from mtl_dist.tracking.tables import FinalTables
from mtl_dist.tracking.wandb_backend import WandbRun

Value = float | str | Sequence[Sequence[int]]
"""What stands in a line: a number, a word or, for confusions, [label, prediction, count] where that is not 0."""


class Sink(Protocol):
    """Who gets what is told, beside metrics.jsonl. What a method raises is the end of it, and of nothing else."""

    name: str

    def log(self, line: Mapping[str, Any], tables: Callable[[], FinalTables] | None = None) -> None:
        """Takes a line of metrics.jsonl; `tables` makes what the last measurement shows beside figures."""

    def alert(self, title: str, text: str, step: int | None = None) -> None:
        """Tells somebody who does not watch; `step`, if it is about one."""

    def keep(self, kind: Literal["model", "checkpoint"], folder: Path, step: int) -> None:
        """Takes a folder that was written after `step` steps."""

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int) -> None:
        """Nothing comes any more."""


class Tracker:
    """Writes metrics of a run, one line of JSON per call of `log`. Every rank has one, and calls it alike."""

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        console: Console,
        processes: ProcessGroup,
        wandb_id: str = "",
        step: int = 0,
    ) -> None:
        """`wandb_id`: the W&B run to go on with; `step`: steps done.

        Raises TrainingError, as `log` does, on every rank where metrics.jsonl cannot be opened.
        """
        self.wandb_id = wandb_id
        """On the first rank, the id of the W&B run; empty without one."""
        self._console = console
        self._processes = processes
        self._on_error = recipe.checkpoint.on_error
        self._artifacts = recipe.tracking.artifacts
        self._path = folder / METRICS
        self._file: FileIO | None = None
        self._unwritten: list[bytes] = []
        self._sinks: list[Sink] = []
        self._processes.together(self._open)
        if not console.speaks:
            return
        if recipe.tracking.wandb:
            self._guarded("W&B", lambda: self._start_wandb(folder, recipe))
        for name in recipe.tracking.also:
            self._guarded(name, lambda name=name: self._sinks.append(AccelerateTracker(name, folder, recipe, step)))

    def log(
        self,
        step: int,
        phase: str,
        values: Mapping[str, Value],
        tables: Callable[[], FinalTables] | None = None,
    ) -> None:
        """One line: `values` with the number of steps done and the phase's name; null for what is not a number.

        `tables` makes what goes with it to who can show it. Where the disk refuses the line, raises TrainingError on
        every rank, or says so once and tries again with the next line, as `checkpoint.on_error` says.
        """
        line = {"step": step, "phase": phase, **values}
        if self._file is not None:
            # JSON has no NaN, and readers other than Python's refuse it.
            finite = {key: None if isinstance(it, float) and not math.isfinite(it) else it for key, it in line.items()}
            self._unwritten.append((json.dumps(finite, allow_nan=False) + "\n").encode())
        try:
            self._processes.together(self._write)
        except TrainingError as error:
            if self._on_error == "stop":
                raise
            if len(self._unwritten) == 1:
                self._console.say(f"{error}; training continues (checkpoint.on_error), its lines are written later")
        self._tell(lambda sink: sink.log(line, tables))

    def alert(self, title: str, text: str, step: int | None = None) -> None:
        """Tells somebody who does not watch; what is about `step` is told once, also if a restart does it again."""
        self._tell(lambda sink: sink.alert(title, text, step))

    def keep(self, kind: Literal["model", "checkpoint"], folder: Path, step: int) -> None:
        """Gives a folder that was written after `step` steps to who keeps such, as `tracking.artifacts` says."""
        if self._artifacts == "checkpoints" or self._artifacts == kind:
            self._tell(lambda sink: sink.keep(kind, folder, step))

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int = 0) -> None:
        """Closes the files; `summary` goes into W&B's run summary."""
        if self._file is not None:
            if self._unwritten and self._on_error == "continue":
                self._console.say(
                    f"{self._path} lacks its last {len(self._unwritten)} lines: the disk did not take them"
                )
            self._file.close()
            self._file = None
        self._tell(lambda sink: sink.finish(summary, exit_code))
        self._sinks.clear()

    def flush(self) -> None:
        """Sees to it that lines survive a power cut. Raises TrainingError, on rank 0 alone, where the disk refuses."""
        if self._file is not None:
            with reporting_write_errors(self._path):
                os.fsync(self._file.fileno())

    def _open(self) -> None:
        if self._console.speaks:
            with reporting_write_errors(self._path):
                self._file = self._path.open("ab", buffering=0)

    def _write(self) -> None:
        """Writes the lines that are left to write, each whole or not at all."""
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
        run = WandbRun(folder, recipe, self.wandb_id, self._path, self._console.say)
        self.wandb_id = run.id
        self._sinks.append(run)

    def _tell(self, what: Callable[[Sink], object]) -> None:
        for sink in [*self._sinks]:
            self._guarded(sink.name, lambda sink=sink: what(sink))

    def _guarded(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a service does must not end a training run
            self._sinks = [sink for sink in self._sinks if sink.name != name]
            self._console.say(f"{name} is off from here: {root_cause(error)}; metrics.jsonl goes on")
