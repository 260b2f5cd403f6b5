"""Which split is measured within a run, for early stopping and the best checkpoint, and which tasks have none of it."""

from mtl_dist.config.metric_names import task_and_name
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import DataBundle
from mtl_dist.errors import UserError


def evaluation_split(recipe: Recipe, data: DataBundle) -> str:
    """The split that is measured after each phase and for `until` and `keep_best`.

    `evaluation.split: null` is validation where any task has rows of it, else test. Raises UserError where validation
    is asked for and no task has any, and where `until` would steer the run by the test split.
    """
    validated = [task for task, source in data.tasks.items() if source.rows("validation")]
    if recipe.evaluation.split == "validation" and not validated:
        raise UserError(
            "evaluation.split: no task has validation rows; give them, e.g. split: {validation: 0.1}, or set test"
        )
    split = recipe.evaluation.split or ("validation" if validated else "test")
    for index, phase in enumerate(recipe.phases):
        if split == "test" and phase.until is not None:
            raise UserError(
                f"phases[{index}].until: would steer the run by the split that it reports on; give"
                f" {task_and_name(phase.until.metric)[0] or 'a task'} validation data, e.g. split: {{validation: 0.1}}"
            )
    return split


def check_measured_tasks(recipe: Recipe, data: DataBundle, split: str) -> list[str]:
    """Returns a warning where early stopping or the best checkpoint would need tasks that have no rows of `split`.

    These tasks are left out of evaluations within the run, never replaced by test rows. Raises UserError if the metric
    of an `until` is that of such a task.
    """
    absent = [task for task, source in data.tasks.items() if not source.rows(split)]
    consequences = []
    for index, phase in enumerate(recipe.phases):
        if phase.until is None:
            continue
        key = f"phases[{index}].until.metric"
        task, name = task_and_name(phase.until.metric)
        if task in absent:
            raise UserError(f"{key}: task {task} has no {split} rows; give it some, e.g. split: {{validation: 0.1}}")
        if task is None and absent:
            consequences.append(f"{key} is the mean {name} of the others")
    if recipe.checkpoint.keep_best is not None and absent:
        consequences.append("checkpoint.keep_best keeps no best checkpoint for them")
    if not consequences:
        return []
    return [f"no {split} rows for {', '.join(absent)}: {'; '.join(consequences)}"]
