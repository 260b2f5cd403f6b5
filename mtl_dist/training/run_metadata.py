"""The content of setup.json: tasks, units, planned phases and each start of a run, written before its first step.

A run that resumes adds another start: engine, machine and versions may have changed in between.
"""

import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mtl_dist import __version__
from mtl_dist.engines.base import Engine
from mtl_dist.io import write_text_atomically
from mtl_dist.run_layout import SETUP
from mtl_dist.schedule.early_stopping import describe_until
from mtl_dist.schedule.phases import Phase
from mtl_dist.schedule.plan_table import peak_and_final_rates
from mtl_dist.training.context import RunContext

LIBRARIES = ("torch", "transformers", "accelerate", "datasets")


def versions() -> dict[str, str]:
    """Returns the versions of this package and of the libraries that determine what a run computes."""
    # A copy of the repository that is not installed has no metadata.
    return {"mtl_dist": __version__} | {library: version(library) for library in LIBRARIES}


def describe(context: RunContext) -> dict[str, Any]:
    """Returns the tasks, the units with their sizes and the planned phases; the same on every rank."""
    tasks = {
        name: {
            "labels": list(source.labels),
            "rows": {split: source.rows(split) for split in source.examples.splits},
            "missing": dict(source.missing),
            "pool": context.data.pool_of[name].name,
        }
        for name, source in context.data.tasks.items()
    }
    return {
        "model_type": context.engine.model.sentence_transformer.encoder.config.model_type,
        "tasks": tasks,
        "pools": {pool.name: {"tasks": list(pool.tasks), "rows": pool.size} for pool in context.data.pools},
        "evaluation_split": context.evaluation_split,
        "units": dict(context.unit_sizes),
        "phases": [_phase(context, phase) for phase in context.rates.schedule.phases],
        "digests": dict(context.digests),
    }


def start_of(engine: Engine, step: int, micro_steps: int) -> dict[str, Any]:
    """Returns engine, device and versions of this start, which follows `step` steps of the run."""
    device = engine.device
    return {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "engine": engine.name,
        "world_size": engine.processes.world_size,
        "micro_steps": micro_steps,
        "mixed_precision": engine.accelerator.mixed_precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "python": platform.python_version(),
        "versions": versions(),
    }


def write_setup(folder: Path, description: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """Writes setup.json, with `start` after the earlier starts. Called by one rank; raises TrainingError."""
    path = folder / SETUP
    # A new run finds no file: that of an earlier run has been moved aside.
    earlier = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.exists() else []
    write_text_atomically(path, json.dumps({**description, "starts": [*earlier, start]}) + "\n")


def _phase(context: RunContext, phase: Phase) -> dict[str, Any]:
    until = phase.until
    rates = peak_and_final_rates(context.rates, phase)
    return {
        "name": phase.name,
        "start": phase.start,
        "stop": phase.stop,
        "units": list(phase.units),
        "parameters": sum(context.unit_sizes[unit] for unit in phase.units),
        "until": None if until is None else {**until.model_dump(), "condition": describe_until(until)},
        "rates": {unit: list(of_unit) for unit, of_unit in rates.items()},
        "draws": context.draws_by_task(phase.start, phase.stop),
    }
