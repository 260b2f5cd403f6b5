"""Named points of a run at which a hook kills it: before or after the n-th call of a function."""

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

Noticed = Callable[[str, int, str], None]
"""Told of a point's name, the number of the call from 1, and whether it is "before" or "after" it."""


def watch(noticed: Noticed) -> None:
    """Has `noticed` told of every call at every point of this process."""
    for name, (owner, attribute) in POINTS.items():
        setattr(owner, attribute, _watched(name, getattr(owner, attribute), noticed))


def _watched(name: str, function: Callable[..., Any], noticed: Noticed) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        call = calls
        noticed(name, call, "before")
        result = function(*arguments, **named)
        noticed(name, call, "after")
        return result

    return watched


def kill_at(point: str, call: int, side: str) -> None:
    """A hook: the first rank that comes to this point kills all at once."""

    def noticed(*at: object) -> None:
        if at == (point, call, side):
            kill_job()

    watch(noticed)


def kill_job() -> NoReturn:
    """Ends all processes of this job, this one included, as `kill -9` does."""
    os.killpg(os.getpgrp(), signal.SIGKILL)
    raise AssertionError("not reached")


def count_calls(file: Path) -> None:
    """A hook: keeps in `file`, as JSON, how often rank 0 came to each point."""
    counts: dict[str, int] = {}

    def noticed(name: str, call: int, side: str) -> None:
        counts[name] = call
        if name == "summary":
            file.write_text(json.dumps(counts), encoding="utf-8")

    if os.environ.get("RANK", "0") == "0":
        watch(noticed)
