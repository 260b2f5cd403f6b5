"""Names of the metrics that a recipe can refer to, and the direction in which each improves."""

SIGNS = {"loss": -1, "accuracy": 1, "macro_f1": 1}
"""Metrics that a recipe can refer to -> sign of a change that is an improvement."""


def task_and_name(metric: str) -> tuple[str | None, str]:
    """Splits `<task>/<name>`; the task is None for a plain name, which stands for the mean over tasks."""
    task, slash, name = metric.rpartition("/")
    return (task if slash else None), name
