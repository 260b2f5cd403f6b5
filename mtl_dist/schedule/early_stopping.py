"""When a phase has trained long enough: the rule of a phase's `until`, on plain numbers."""

import math
from collections.abc import Mapping, Sequence

from mtl_dist.config.metric_names import SIGNS, task_and_name
from mtl_dist.config.recipe import UntilConfig


def value_of(metric: str, figures: Mapping[str, Mapping[str, float]]) -> float:
    """The value of `metric` in the figures of an evaluation, by task and name."""
    task, name = task_and_name(metric)
    if task is not None:
        return figures[task][name]
    return math.fsum(of_task[name] for of_task in figures.values()) / len(figures)


def best_of(values: Sequence[float], until: UntilConfig) -> int | None:
    """Index of the last of `values`, in the order of their measurement, that was an improvement; None if none was.

    The first finite value is one; a value that is not finite never is.
    """
    sign = SIGNS[task_and_name(until.metric)[1]]
    best = None
    for index, value in enumerate(values):
        gain = math.inf if best is None else sign * (value - values[best])
        if math.isfinite(value) and gain > 0 and gain >= until.min_delta:
            best = index
    return best


def patience_exhausted(values: Sequence[float], until: UntilConfig) -> bool:
    """Whether the patience of `until` ends with the last of `values`."""
    best = best_of(values, until)
    return len(values) - (0 if best is None else best + 1) >= until.patience


def earliest_stop(until: UntilConfig) -> int:
    """Steps after which it can end a phase at the earliest, if what it measures is finite."""
    return (1 + until.patience) * until.every_steps


def describe_until(until: UntilConfig) -> str:
    """When a phase ends before its length is reached, in words."""
    least = f", min_delta {until.min_delta:g}" if until.min_delta else ""
    return f"{until.metric} stops improving (patience {until.patience}, every_steps {until.every_steps}{least})"


def stop_reason(values: Sequence[float], until: UntilConfig, start: int) -> str:
    """Why a phase that began after `start` steps ends with the last of `values`, in words."""
    best = best_of(values, until)
    if best is None:
        return f"{until.metric} was never finite"
    step = start + (best + 1) * until.every_steps
    return f"{until.metric} stopped improving; its best was {values[best]:.4f} after step {step}"
