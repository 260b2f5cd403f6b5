"""The rules of a recipe that need neither data nor encoder, checked before any data is read."""

import re
from collections.abc import Sequence

from pydantic import ValidationError

from mtl_dist.config.messages import recipe_error
from mtl_dist.config.metric_names import task_and_name
from mtl_dist.config.recipe import Recipe, SamplingConfig, UntilConfig
from mtl_dist.config.section import refuse_repeated
from mtl_dist.config.selectors import check_selectors
from mtl_dist.errors import UserError, did_you_mean

FILE_BUILDERS = ("csv", "json", "parquet", "text")
"""Names of the `datasets.load_dataset` builders that read plain files."""


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError, beginning with the key, for the first rule that `recipe` breaks."""
    _check_sections(recipe)
    tasks = list(recipe.tasks)
    if not tasks:
        raise UserError("tasks: none; a run needs at least one")
    _check_tasks(recipe)
    if recipe.sampling.batches == "mixed" and recipe.batch_size < len(tasks):
        raise UserError(f"batch_size: {recipe.batch_size} is smaller than its {len(tasks)} tasks")
    _check_sampling_weights(recipe.sampling, tasks)
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
    for name, task in recipe.tasks.items():
        if not re.fullmatch("[A-Za-z0-9_-]+", name):
            raise UserError(f"tasks: {name!r} is no name for a task; use letters, digits, _ and -")
        if task.path in FILE_BUILDERS or task.data_files:
            for split in sorted({"train", "test", recipe.evaluation.split}):
                if split not in task.data_files:
                    raise UserError(f"tasks.{name}.data_files: no file for the split {split}")


def _check_sampling_weights(sampling: SamplingConfig, tasks: Sequence[str]) -> None:
    if sampling.strategy != "weighted":
        return
    for name in sampling.weights:
        if name not in tasks:
            raise UserError(f"sampling.weights: no task {name!r}{did_you_mean(name, tasks)}")
    for task in tasks:
        if task not in sampling.weights:
            raise UserError(f"sampling.weights: no weight for task {task}")


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
