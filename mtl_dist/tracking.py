"""What a run tells: metrics.jsonl always, Weights & Biases by choice, progress on a terminal or in a log.

Only rank 0 writes. A failure of W&B is reported once and never stops training: metrics.jsonl has every figure.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from mtl_dist.recipe import TrackingConfig

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
    """Writes metrics of a run, one line of JSON per call of `log`."""

    def __init__(self, folder: Path, config: TrackingConfig, recipe: dict[str, Any], console: Console) -> None:
        self._console = console
        self._file: TextIO | None = None
        self._wandb: Any = None
        if console.speaks:
            self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")
            if config.wandb:
                self._guarded(lambda: self._start_wandb(folder, config, recipe))

    def log(self, step: int, phase: str, values: Mapping[str, float | str]) -> None:
        """One line: `values` with the number of steps done and the phase's name; null for what is not a number."""
        if self._file is None:
            return
        line = {"step": step, "phase": phase, **values}
        # JSON has no NaN, and readers other than Python's refuse it.
        finite = {key: None if isinstance(it, float) and not math.isfinite(it) else it for key, it in line.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()
        if self._wandb is not None:
            self._guarded(lambda: self._wandb.log(line))

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int = 0) -> None:
        """Closes the files; `summary` goes into W&B's run summary."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._wandb is not None:
            self._guarded(lambda: self._finish_wandb(summary, exit_code))

    def _start_wandb(self, folder: Path, config: TrackingConfig, recipe: dict[str, Any]) -> None:
        # Imported here because a run without W&B should not pay for it, nor need it.
        import wandb

        decided = os.environ.get("WANDB_MODE") or wandb.login(prompt=False, verify=False)
        self._wandb = wandb.init(
            project=config.wandb_project,
            dir=str(folder),
            config=recipe,
            mode=None if decided else "offline",
            settings=wandb.Settings(
                init_timeout=WANDB_START_SECONDS,
                finish_timeout=WANDB_FINISH_SECONDS,
                finish_timeout_raises=True,
                console="off",
                silent=True,
            ),
        )
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
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._console.say(f"W&B is off from here: {first}; metrics.jsonl goes on")
