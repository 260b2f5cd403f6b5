"""The rules of a recipe that need neither data nor encoder, checked before anything is read."""

import math
import re
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from omegaconf import MISSING

from mtl_dist.config.metric_names import SIGNS, task_and_name
from mtl_dist.config.recipe import PhaseConfig, Recipe, SamplingConfig, TaskConfig, UntilConfig
from mtl_dist.config.selectors import GRAMMAR, check_selectors
from mtl_dist.errors import UserError, did_you_mean

FILE_BUILDERS = ("csv", "json", "parquet", "text")
"""What `datasets.load_dataset` calls its readers of plain files."""
TRACKERS = ("tensorboard", "trackio")
"""Accelerate's, by the names that it has for them."""


class _Range(NamedTuple):
    """Numbers that a key allows, in words for the message and as a test."""

    words: str
    holds: Callable[[float], bool]


_POSITIVE = _Range("a finite number above 0", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE = _Range("a finite number, 0 or above", lambda value: 0 <= value < math.inf)
_AT_LEAST_1 = _Range("at least 1", lambda value: value >= 1)
_BELOW_1 = _Range("at least 0 and below 1", lambda value: 0 <= value < 1)

_RANGES = {
    "seed": _Range("at least 0 and below 2**63", lambda value: 0 <= value < 2**63),
    "batch_size": _AT_LEAST_1,
    "micro_batch_size": _AT_LEAST_1,
    "model.dropout": _BELOW_1,
    "model.encoder_dropout": _BELOW_1,
    "data.max_length": _Range("at least 3: two special tokens and one of text", lambda value: value >= 3),
    "sampling.length_window": _AT_LEAST_1,
    "optimizer.lr": _POSITIVE,
    "optimizer.head_lr_multiplier": _POSITIVE,
    "optimizer.block_lr_decay": _Range("above 0 and at most 1", lambda value: 0 < value <= 1),
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.beta1": _BELOW_1,
    "optimizer.beta2": _BELOW_1,
    "optimizer.eps": _POSITIVE,
    "optimizer.max_grad_norm": _POSITIVE,
    "optimizer.warmup_steps": _NOT_NEGATIVE,
    "optimizer.unfreeze_warmup_steps": _NOT_NEGATIVE,
    "optimizer.max_nonfinite_steps": _AT_LEAST_1,
    "optimizer.max_rollbacks": _NOT_NEGATIVE,
    "cache.budget_gb": _POSITIVE,
    "evaluation.batch_size": _AT_LEAST_1,
    "checkpoint.every_steps": _AT_LEAST_1,
    "checkpoint.every_minutes": _POSITIVE,
    "safety.timeout_seconds": _AT_LEAST_1,
    "safety.compare_every_steps": _AT_LEAST_1,
    "checkpoint.keep": _AT_LEAST_1,
    "tracking.log_every_steps": _AT_LEAST_1,
    "tracking.gradient_cosine_every_steps": _AT_LEAST_1,
    "tracking.misclassified": _NOT_NEGATIVE,
}


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError, beginning with the key, for the first rule that `recipe` breaks."""
    if not recipe.output_dir:
        raise UserError("output_dir: empty; name a folder")
    for key, wanted in _RANGES.items():
        _require(key, attrgetter(key)(recipe), wanted)
    if not recipe.tasks:
        raise UserError("tasks: none; a run needs at least one")
    for name, task in recipe.tasks.items():
        _check_task(name, task, recipe.evaluation.split)
    if recipe.sampling.batches == "mixed" and recipe.batch_size < len(recipe.tasks):
        raise UserError(f"batch_size: {recipe.batch_size} is smaller than its {len(recipe.tasks)} tasks")
    _check_sampling_weights(recipe.sampling, list(recipe.tasks))
    _check_tracking(recipe)
    check_selectors(recipe.model.freeze, list(recipe.tasks), "model.freeze")
    if not recipe.phases:
        raise UserError("phases: none; a run needs at least one")
    _refuse_repeated("phases", [phase.name for phase in recipe.phases])
    for index, phase in enumerate(recipe.phases):
        _check_phase(f"phases[{index}]", phase, list(recipe.tasks))
        if phase.until is not None:
            _check_until(f"phases[{index}].until", phase.until, recipe)


def _require(key: str, value: float | None, wanted: _Range) -> None:
    """Null is allowed wherever the field's type allows it."""
    if value is not None and not wanted.holds(value):
        raise UserError(f"{key}: {value} is not {wanted.words}")


def _refuse_repeated(key: str, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UserError(f"{key}: {name!r} stands twice")


def _check_task(name: str, task: TaskConfig, evaluation_split: str) -> None:
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise UserError(f"tasks: {name!r} is no name for a task; use letters, digits, _ and -")
    key = f"tasks.{name}"
    if task.path in ("", MISSING):
        raise UserError(f"{key}.path: missing")
    if task.path in FILE_BUILDERS or task.data_files:
        for split in sorted({"train", "test", evaluation_split}):
            if split not in task.data_files:
                raise UserError(f"{key}.data_files: no file for the split {split}")
    if len(task.text) not in (1, 2):
        raise UserError(f"{key}.text: {len(task.text)} columns; give one, or two for a sentence pair")
    if task.labels is not None:
        if len(task.labels) < 2:
            raise UserError(f"{key}.labels: {len(task.labels)} given; a task has at least two classes")
        _refuse_repeated(f"{key}.labels", task.labels)
    _require(f"{key}.weight", task.weight, _POSITIVE)
    _require(f"{key}.max_rows", task.max_rows, _AT_LEAST_1)


def _check_sampling_weights(sampling: SamplingConfig, tasks: Sequence[str]) -> None:
    if sampling.strategy != "weighted":
        if sampling.weights:
            raise UserError(f"sampling.weights: strategy {sampling.strategy} has none; set sampling.strategy: weighted")
        return
    for name, weight in sampling.weights.items():
        if name not in tasks:
            raise UserError(f"sampling.weights: no task {name!r}{did_you_mean(name, tasks)}")
        _require(f"sampling.weights.{name}", weight, _POSITIVE)
    for task in tasks:
        if task not in sampling.weights:
            raise UserError(f"sampling.weights: no weight for task {task}")


def _check_tracking(recipe: Recipe) -> None:
    config = recipe.tracking
    _refuse_repeated("tracking.also", config.also)
    for name in config.also:
        if name == "wandb":
            raise UserError("tracking.also: wandb has a key of its own; set tracking.wandb: true")
        if name not in TRACKERS:
            raise UserError(f"tracking.also: no tracker {name!r}{did_you_mean(name, TRACKERS)}")
    if config.gradient_cosine_every_steps is None:
        return
    key = "tracking.gradient_cosine_every_steps"
    if len(recipe.tasks) < 2:
        raise UserError(f"{key}: compares the gradients of two tasks or more, and the recipe has one; set null")
    if recipe.sampling.batches == "one_task":
        raise UserError(f"{key}: compares tasks in one batch; set sampling.batches: mixed, or null here")


def _check_phase(key: str, phase: PhaseConfig, tasks: Sequence[str]) -> None:
    if phase.name in ("", MISSING):
        raise UserError(f"{key}.name: missing")
    if (phase.epochs is None) == (phase.steps is None):
        raise UserError(f"{key}: give either epochs or steps")
    _require(f"{key}.epochs", phase.epochs, _POSITIVE)
    _require(f"{key}.steps", phase.steps, _AT_LEAST_1)
    if not phase.train:
        raise UserError(f"{key}.train: empty; name what trains: {GRAMMAR}")
    check_selectors(phase.train, tasks, f"{key}.train")


def _check_until(key: str, until: UntilConfig, recipe: Recipe) -> None:
    if until.metric in ("", MISSING):
        raise UserError(f"{key}.metric: missing")
    task, name = task_and_name(until.metric)
    if name not in SIGNS:
        raise UserError(f"{key}.metric: no metric {name!r}{did_you_mean(name, SIGNS)}")
    if task is not None and task not in recipe.tasks:
        raise UserError(f"{key}.metric: no task {task!r}{did_you_mean(task, recipe.tasks)}")
    _require(f"{key}.patience", until.patience, _AT_LEAST_1)
    _require(f"{key}.every_steps", until.every_steps, _AT_LEAST_1)
    _require(f"{key}.min_delta", until.min_delta, _NOT_NEGATIVE)
    if recipe.evaluation.split == "test":
        raise UserError(f"{key}: would steer the run by the split that it reports on; set evaluation.split: validation")
