"""Early stopping of a phase by a validation metric: the rule of `UntilConfig`, on plain numbers."""

import math
from collections.abc import Mapping, Sequence

from mtl_dist.config.metric_names import SIGNS, task_and_name
from mtl_dist.config.recipe import UntilConfig


def value_of(metric: str, figures: Mapping[str, Mapping[str, float]]) -> float:
    """The value of `metric` in the figures of an evaluation, which are by task and by name.

    `metric` is `<task>/<name>`, or a name alone for the mean over tasks.
    """
    task, name = task_and_name(metric)
    if task is not None:
        return figures[task][name]
    return math.fsum(by_name[name] for by_name in figures.values()) / len(figures)


def best_of(values: Sequence[float], until: UntilConfig) -> int | None:
    """Index of the last improvement among `values`, in the order of their measurement; None if there was none.

    An improvement exceeds the best value so far, by at least `min_delta`. The first finite value is an improvement; a
    value that is not finite never is.
    """
    sign = SIGNS[task_and_name(until.metric)[1]]
    best = None
    for index, value in enumerate(values):
        gain = math.inf if best is None else sign * (value - values[best])
        if math.isfinite(value) and gain > 0 and gain >= until.min_delta:
            best = index
    return best


def patience_exhausted(values: Sequence[float], until: UntilConfig) -> bool:
    """Whether the last `until.patience` of `values`, or more, were no improvement."""
    best = best_of(values, until)
    return len(values) - (0 if best is None else best + 1) >= until.patience


def earliest_stop(until: UntilConfig) -> int:
    """Fewest steps after which `until` can end a phase, provided that the first value is finite."""
    return (1 + until.patience) * until.every_steps


def describe_until(until: UntilConfig) -> str:
    """The condition under which `until` ends a phase, for messages."""
    min_delta = f", min_delta {until.min_delta:g}" if until.min_delta else ""
    return f"{until.metric} stops improving (patience {until.patience}, every_steps {until.every_steps}{min_delta})"


def stop_reason(values: Sequence[float], until: UntilConfig, start: int) -> str:
    """The reason why a phase ends with the last of `values`, for messages; `start` is the phase's first step."""
    best = best_of(values, until)
    if best is None:
        return f"{until.metric} was never finite"
    step = start + (best + 1) * until.every_steps
    return f"{until.metric} stopped improving; its best was {values[best]:.4f} after step {step}"
