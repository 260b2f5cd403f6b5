"""Names of the metrics that a recipe can refer to, and which direction of change is an improvement."""

SIGNS = {"loss": -1, "accuracy": 1, "macro_f1": 1}
"""Figures that a phase may depend on, and the sign of a change for the better."""


def task_and_name(metric: str) -> tuple[str | None, str]:
    """The parts of `<task>/<name>`; for just a name, which is the mean over tasks, no task."""
    task, slash, name = metric.rpartition("/")
    return (task if slash else None), name
