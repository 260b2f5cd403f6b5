"""The rules of a recipe that need neither data nor encoder, checked before any data is read."""

import re
from collections.abc import Sequence

from pydantic import ValidationError

from mtl_dist.config.data_recipe import SPLITS, ReadConfig, SourceConfig, SourceFields, TaskConfig
from mtl_dist.config.messages import recipe_error
from mtl_dist.config.metric_names import task_and_name
from mtl_dist.config.recipe import Recipe, UntilConfig
from mtl_dist.config.section import refuse_repeated
from mtl_dist.config.selectors import check_selectors
from mtl_dist.config.sources import (
    FILE_BUILDERS,
    builder_of,
    example_sets,
    missing_path,
    source_of,
    splits_by_recipe,
)
from mtl_dist.errors import UserError, did_you_mean


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError, beginning with the key, for the first rule that `recipe` breaks."""
    _check_sections(recipe)
    tasks = list(recipe.tasks)
    if not tasks:
        raise UserError("tasks: none; a run needs at least one")
    _check_tasks(recipe)
    _check_batch_size(recipe)
    _check_sampling_weights(recipe)
    _check_gradient_cosine(recipe)
    check_selectors(recipe.model.freeze, tasks, "model.freeze")
    _check_phases(recipe, tasks)


def _check_sections(recipe: Recipe) -> None:
    """Checks each section by itself again, since attributes may have been assigned after construction."""
    content = recipe.model_dump(warnings=False)
    try:
        Recipe.model_validate(content)
    except ValidationError as error:
        raise recipe_error(error, content) from None


def _check_tasks(recipe: Recipe) -> None:
    for kind, names in (("source", recipe.sources), ("task", recipe.tasks)):
        for name in names:
            if not re.fullmatch("[A-Za-z0-9_-]+", name):
                raise UserError(f"{kind}s: {name!r} is no name for a {kind}; use letters, digits, _ and -")
    for name, source in recipe.sources.items():
        _check_source(f"sources.{name}", source, recipe)
    for name, task in recipe.tasks.items():
        _check_task(f"tasks.{name}", task, recipe)
        if task.source is None:
            _check_source(f"tasks.{name}", source_of(recipe, name), recipe)
    _check_names_of_sets(recipe)


def _check_task(key: str, task: TaskConfig, recipe: Recipe) -> None:
    """Checks that a task has its rows from one place."""
    if task.source is None and not task.path:
        raise UserError(missing_path(key, task.data_files, recipe.sources))
    if task.source is None:
        return
    if task.source not in recipe.sources:
        raise UserError(f"{key}.source: no source {task.source!r}{did_you_mean(task.source, recipe.sources)}")
    defaults = TaskConfig()
    for field in SourceFields.model_fields:
        if getattr(task, field) != getattr(defaults, field):
            raise UserError(
                f"{key}.{field}: the rows come from the source {task.source}; set sources.{task.source}.{field},"
                f" or {key}.source: null"
            )


def _check_source(key: str, source: SourceConfig, recipe: Recipe) -> None:
    if not source.data_files and (builder := builder_of(source.path)):
        raise UserError(f"{key}.path: {source.path} is a file; write path: {builder}, data_files: {source.path}")
    for split in source.data_files:
        if split not in SPLITS:
            raise UserError(f"{key}.data_files: no split {split!r}{did_you_mean(split, SPLITS)}")
    for split in source.split.held_out:
        if split in source.data_files:
            raise UserError(f"{key}.split.{split}: there are files for this split too; leave out one of both")
    _check_read(key, source)
    if source.path not in FILE_BUILDERS and not source.data_files:
        return
    if not source.data_files:
        raise UserError(f"{key}.data_files: missing; path {source.path} reads files")
    found = splits_by_recipe(source) or ()
    for split in ("test", "train", "validation") if recipe.evaluation.split == "validation" else ("test", "train"):
        if split not in found:
            hint = "" if split == "train" else f"; name one, or hold out rows, e.g. split: {{{split}: 0.2}}"
            raise UserError(f"{key}.data_files: no file for the split {split}{hint}")


def _check_read(key: str, source: SourceConfig) -> None:
    """Refuses a way of reading text files where there are none."""
    defaults = ReadConfig()
    for field in ReadConfig.model_fields:
        paths = ("csv", "json", "text") if field == "encoding" else ("csv",)
        if source.path not in paths and getattr(source.read, field) != getattr(defaults, field):
            raise UserError(f"{key}.read.{field}: goes with path {' or '.join(paths)}, not {source.path}")


def _check_names_of_sets(recipe: Recipe) -> None:
    """Refuses a source that has the name of a task with other rows: both would stand under one name in logs."""
    for name in dict.fromkeys(task.source for task in recipe.tasks.values()):
        task = recipe.tasks.get(name) if name is not None else None
        if task is not None and task.source != name:
            raise UserError(f"sources.{name}: a task with other rows has this name; rename one of both")


def _check_batch_size(recipe: Recipe) -> None:
    """Checks that a mixed batch has room for a row of each task, of tasks that share rows for one."""
    tasks = len(recipe.tasks)
    drawn = tasks if recipe.sampling.rows == "per_task" else len(example_sets(recipe))
    if recipe.sampling.batches == "mixed" and recipe.batch_size < drawn:
        what = "tasks" if drawn == tasks else "groups of tasks with rows of their own"
        raise UserError(f"batch_size: {recipe.batch_size} is smaller than its {drawn} {what}")


def _check_sampling_weights(recipe: Recipe) -> None:
    sampling, tasks = recipe.sampling, list(recipe.tasks)
    if sampling.strategy != "weighted":
        return
    for name in sampling.weights:
        if name not in tasks:
            raise UserError(f"sampling.weights: no task {name!r}{did_you_mean(name, tasks)}")
    for task in tasks:
        if task not in sampling.weights:
            raise UserError(f"sampling.weights: no weight for task {task}")
    if sampling.rows == "per_task":
        return
    for one in example_sets(recipe):
        first, *others = one.tasks
        for other in others:
            if sampling.weights[other] != sampling.weights[first]:
                raise UserError(
                    f"sampling.weights: {first} and {other} share rows, and so one weight;"
                    " or set sampling.rows: per_task"
                )


def _check_gradient_cosine(recipe: Recipe) -> None:
    if recipe.tracking.gradient_cosine_every_steps is None:
        return
    key = "tracking.gradient_cosine_every_steps"
    if len(recipe.tasks) < 2:
        raise UserError(f"{key}: compares the gradients of two tasks or more, and the recipe has one; set null")
    if recipe.sampling.batches == "one_task":
        raise UserError(f"{key}: compares tasks in one batch; set sampling.batches: mixed, or null here")


def _check_phases(recipe: Recipe, tasks: Sequence[str]) -> None:
    if not recipe.phases:
        raise UserError("phases: none; a run needs at least one")
    try:
        refuse_repeated([phase.name for phase in recipe.phases])
    except ValueError as error:
        raise UserError(f"phases: {error}") from None
    for index, phase in enumerate(recipe.phases):
        check_selectors(phase.train, tasks, f"phases[{index}].train")
        if phase.until is not None:
            _check_until(f"phases[{index}].until", phase.until, recipe)


def _check_until(key: str, until: UntilConfig, recipe: Recipe) -> None:
    task, _ = task_and_name(until.metric)
    if task is not None and task not in recipe.tasks:
        raise UserError(f"{key}.metric: no task {task!r}{did_you_mean(task, recipe.tasks)}")
    if recipe.evaluation.split == "test":
        raise UserError(f"{key}: would steer the run by the split that it reports on; set evaluation.split: validation")
    measured = [task] if task is not None else list(recipe.tasks)
    known = [splits_by_recipe(source_of(recipe, name)) for name in measured]
    if all(splits is not None and "validation" not in splits for splits in known):
        raise UserError(
            f"{key}: would steer the run by the split that it reports on; give {' or '.join(measured)} validation data,"
            " e.g. split: {validation: 0.1}"
        )
