"""Named points of a run, before or after the n-th call of a function, at which hooks inject faults."""

import functools
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.engines.base import Engine
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.training import build, finish, run
from mtl_dist.training.callbacks.evaluator import Evaluator
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer

POINTS: dict[str, tuple[Any, str]] = {
    "encoder": (build, "check_encoder"),
    "data": (build, "prepare"),
    "model": (build, "build_model"),
    "run folder": (run, "open_run_folder"),
    "resume": (Engine, "load"),
    "boundary": (Engine, "enter_phase"),
    "step": (LayerwiseLearningRateTrainer, "training_step"),
    "micro-step": (LayerwiseLearningRateTrainer, "_micro_step"),
    "optimizer": (Engine, "step"),
    "log": (Tracker, "log"),
    "evaluation": (Evaluator, "measure"),
    "save": (checkpoint, "save"),
    "last model": (finish, "save_model"),
    "summary": (finish, "write_summary"),
}

OnCall = Callable[[str, int, str], None]
"""Callback with a point's name, the number of the call from 1, and "before" or "after"."""


def watch(on_call: OnCall) -> None:
    """Calls `on_call` before and after every call at every point of this process."""
    for name, (owner, attribute) in POINTS.items():
        setattr(owner, attribute, _watched(name, getattr(owner, attribute), on_call))


def _watched(name: str, function: Callable[..., Any], on_call: OnCall) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        call = calls
        on_call(name, call, "before")
        result = function(*arguments, **named)
        on_call(name, call, "after")
        return result

    return watched


def kill_at(point: str, call: int, side: str) -> None:
    """Hook: the first rank that reaches the point kills all ranks at once."""

    def on_call(*at: object) -> None:
        if at == (point, call, side):
            kill_job()

    watch(on_call)


def kill_job() -> NoReturn:
    """Kills all processes of this job, including this one, with SIGKILL."""
    os.killpg(os.getpgrp(), signal.SIGKILL)
    raise AssertionError("not reached")


def count_calls(file: Path) -> None:
    """Hook: writes to `file`, as JSON, how often rank 0 reached each point."""
    counts: dict[str, int] = {}

    def on_call(name: str, call: int, side: str) -> None:
        counts[name] = call
        if name == "summary":
            file.write_text(json.dumps(counts), encoding="utf-8")

    if os.environ.get("RANK", "0") == "0":
        watch(on_call)
