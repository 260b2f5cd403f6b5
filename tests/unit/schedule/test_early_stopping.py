"""Early stopping by a metric, against a plain implementation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_dist.config.metric_names import SIGNS
from mtl_dist.config.recipe import UntilConfig
from mtl_dist.schedule.early_stopping import (
    best_of,
    describe_until,
    earliest_stop,
    patience_exhausted,
    stop_reason,
    value_of,
)
from mtl_dist.tasks.classification import ClassificationMetrics

# Few values, so that equal ones and gains of exactly `min_delta` are common; halves are exact.
VALUES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, math.nan, math.inf, -math.inf]), max_size=12)


def ends_after(values: list[float], until: UntilConfig) -> int | None:
    """Early stopping as it is usually written: the number of measurements after which it ends the phase."""
    lower_is_better = until.metric.endswith("loss")
    best, waited = None, 0
    for number, value in enumerate(values, start=1):
        if not math.isfinite(value):
            better = False
        elif best is None:
            better = True
        elif lower_is_better:
            better = value < best and value <= best - until.min_delta
        else:
            better = value > best and value >= best + until.min_delta
        if better:
            best, waited = value, 0
        else:
            waited += 1
        if waited == until.patience:
            return number
    return None


@given(
    VALUES, st.sampled_from(["loss", "a/loss", "a/accuracy", "macro_f1"]), st.integers(1, 4), st.sampled_from([0, 1])
)
def test_patience_is_that_of_usual_early_stopping(
    values: list[float], metric: str, patience: int, min_delta: float
) -> None:
    until = UntilConfig(metric=metric, patience=patience, min_delta=min_delta)
    exhausted = [number for number in range(1, len(values) + 1) if patience_exhausted(values[:number], until)]
    assert (exhausted[0] if exhausted else None) == ends_after(values, until)


def test_what_counts_as_improvement() -> None:
    loss, accuracy = UntilConfig(metric="a/loss"), UntilConfig(metric="a/accuracy")
    values = [math.nan, 1.0, 1.0, 0.5, math.inf, -math.inf, 2.0]
    assert [best_of(values[:number], loss) for number in range(8)] == [None, None, 1, 1, 3, 3, 3, 3]
    assert [best_of(values[:number], accuracy) for number in range(8)] == [None, None, 1, 1, 1, 1, 1, 6]
    # Small steps add up: each is compared with the best, not with the one before.
    assert best_of([1.0, 1.5, 2.0], accuracy.model_copy(update={"min_delta": 1.0})) == 2


FIGURES = {
    "a": {"loss": 0.25, "accuracy": 0.5, "macro_f1": 0.125},
    "b": {"loss": 0.75, "accuracy": 1.0, "macro_f1": 0.375},
}


@pytest.mark.parametrize(
    ("metric", "value"), [("a/loss", 0.25), ("b/accuracy", 1.0), ("loss", 0.5), ("accuracy", 0.75), ("macro_f1", 0.25)]
)
def test_a_metric_is_of_one_task_or_the_mean_over_tasks(metric: str, value: float) -> None:
    assert value_of(metric, FIGURES) == value


def test_the_metrics_are_those_of_an_evaluation() -> None:
    figures = ClassificationMetrics(np.eye(2, dtype=np.int64), 0.5).as_dict()
    assert list(SIGNS) == list(figures)
    assert all(value_of(f"task/{name}", {"task": figures}) == figures[name] for name in SIGNS)


def test_the_earliest_stop() -> None:
    until = UntilConfig(metric="loss", patience=2, every_steps=5)
    assert earliest_stop(until) == 15
    numbers = [number for number in (1, 2, 3) if patience_exhausted([1.0] * number, until)]
    assert numbers == [3]


def test_texts_for_messages() -> None:
    until = UntilConfig(metric="a/accuracy", patience=2, every_steps=50)
    assert describe_until(until) == "a/accuracy stops improving (patience 2, every_steps 50)"
    text = "a/accuracy stops improving (patience 2, every_steps 50, min_delta 0.01)"
    assert describe_until(until.model_copy(update={"min_delta": 0.01})) == text
    text = "a/accuracy stopped improving; its best was 0.7500 after step 200"
    assert stop_reason([0.5, 0.75, 0.5, 0.75], until, start=100) == text
    assert stop_reason([math.nan, math.inf], until, start=100) == "a/accuracy was never finite"
