"""What a run tells: metrics.jsonl always, Weights & Biases by choice, progress on a terminal or in a log.

Only rank 0 writes. A failure of W&B is reported once and never stops training: metrics.jsonl has every figure.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from mtl_dist.disk import writing
from mtl_dist.errors import TrainingError, reason
from mtl_dist.folder_names import METRICS
from mtl_dist.processes import Processes
from mtl_dist.recipe import Recipe, TrackingConfig

LOG_LINE_SECONDS = 10.0
"""In a log without a terminal, a progress line at most this often."""
WANDB_START_SECONDS = 60.0
"""How long a run waits for W&B before its first step."""
WANDB_FINISH_SECONDS = 60.0
"""How long a finished run waits for W&B to take the rest; `wandb sync` sends from the folder what it did not."""


class Console:
    """Lines for the person who watches; other ranks than 0 are silent."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks

    def say(self, line: str) -> None:
        if self.speaks:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()


class Progress:
    """A bar on a terminal, a plain line now and then in a log."""

    def __init__(self, console: Console, total: int, start: int) -> None:
        self._console = console
        self._last = time.monotonic()
        # tqdm draws nothing where stderr is not a terminal.
        self._bar = tqdm(total=total, initial=start, unit="step", disable=not console.speaks or not sys.stderr.isatty())

    def advance(self, step: int, total: int, phase: str, loss: float | None) -> None:
        """Shows that `step` steps of `total` are done; `loss` is the last one logged, if any."""
        text = phase if loss is None else f"{phase}  loss {loss:.4f}"
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.total = total
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last >= LOG_LINE_SECONDS or step == total:
            self._last = now
            self._console.say(f"step {step}/{total}  {text}")

    def close(self) -> None:
        self._bar.close()


class Tracker:
    """Writes metrics of a run, one line of JSON per call of `log`. Every rank has one, and calls it alike."""

    def __init__(
        self, folder: Path, recipe: Recipe, console: Console, processes: Processes, wandb_id: str = ""
    ) -> None:
        """`wandb_id`: the W&B run to go on with.

        Raises TrainingError, as `log` does, on every rank where metrics.jsonl cannot be opened.
        """
        self.wandb_id = wandb_id
        """On the first rank, the id of the W&B run; empty without one."""
        self._console = console
        self._processes = processes
        self._on_error = recipe.checkpoint.on_error
        self._path = folder / METRICS
        self._file: FileIO | None = None
        self._unwritten: list[bytes] = []
        self._wandb: Any = None
        self._processes.together(self._open)
        if console.speaks and recipe.tracking.wandb:
            self._guarded(lambda: self._start_wandb(folder, recipe.tracking, asdict(recipe)))

    def log(self, step: int, phase: str, values: Mapping[str, float | str | list[list[int]]]) -> None:
        """One line: `values` with the number of steps done and the phase's name; null for what is not a number.

        Where the disk refuses it, raises TrainingError on every rank, or says so once and tries again with the next
        line, as `checkpoint.on_error` says.
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
                self._console.say(f"{error}; training goes on (checkpoint.on_error), its lines are written later")
        if self._wandb is not None:
            self._guarded(lambda: self._wandb.log(line))

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int = 0) -> None:
        """Closes the files; `summary` goes into W&B's run summary."""
        if self._file is not None:
            if self._unwritten and self._on_error == "continue":
                self._console.say(
                    f"{self._path} lacks its last {len(self._unwritten)} lines: the disk did not take them"
                )
            self._file.close()
            self._file = None
        if self._wandb is not None:
            self._guarded(lambda: self._finish_wandb(summary, exit_code))

    def flush(self) -> None:
        """Sees to it that lines survive a power cut. Raises TrainingError, on rank 0 alone, where the disk refuses."""
        if self._file is not None:
            with writing(self._path):
                os.fsync(self._file.fileno())

    def _open(self) -> None:
        if self._console.speaks:
            with writing(self._path):
                self._file = self._path.open("ab", buffering=0)

    def _write(self) -> None:
        """Writes the lines that are left to write, each whole or not at all."""
        while self._file is not None and self._unwritten:
            with writing(self._path):
                before, line = os.fstat(self._file.fileno()).st_size, self._unwritten[0]
                try:
                    while line:
                        line = line[self._file.write(line) :]
                except OSError:
                    os.ftruncate(self._file.fileno(), before)
                    raise
            del self._unwritten[0]

    def _start_wandb(self, folder: Path, config: TrackingConfig, recipe: dict[str, Any]) -> None:
        # Imported here because a run without W&B should not pay for it, nor need it.
        import wandb

        def start(mode: Literal["offline"] | None) -> Any:
            return wandb.init(
                project=config.wandb_project,
                dir=str(folder),
                id=self.wandb_id or None,
                resume="allow" if self.wandb_id else None,
                config=recipe,
                mode=mode,
                settings=wandb.Settings(
                    init_timeout=WANDB_START_SECONDS,
                    finish_timeout=WANDB_FINISH_SECONDS,
                    finish_timeout_raises=True,
                    console="off",
                    silent=True,
                ),
            )

        decided = os.environ.get("WANDB_MODE") or wandb.login(prompt=False, verify=False)
        try:
            self._wandb = start(None if decided else "offline")
        except wandb.Error as error:
            wandb.teardown()  # or its service would say that the run's id is in use
            self._console.say(f"W&B is offline: {reason(error)}; `wandb sync` sends later what is in {folder}/wandb")
            self._wandb = start("offline")
        self.wandb_id = self._wandb.id
        self._wandb.define_metric("step")
        self._wandb.define_metric("*", step_metric="step")

    def _finish_wandb(self, summary: Mapping[str, Any] | None, exit_code: int) -> None:
        run, self._wandb = self._wandb, None
        if summary is not None:
            run.summary.update({**summary})
        run.finish(exit_code=exit_code)

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - whatever a service does must not end a training run
            self._wandb = None
            self._console.say(f"W&B is off from here: {reason(error)}; metrics.jsonl goes on")
