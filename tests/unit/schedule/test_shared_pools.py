"""Pools whose rows count for several tasks, or that are some of the rows of an example set."""

import tracemalloc
from collections import Counter
from fractions import Fraction
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.config.recipe import SamplingConfig
from mtl_dist.schedule.sampler import Pool, TaskBalancedSampler, pool_shares

modest = settings(deadline=None, derandomize=True, max_examples=50)


def sampler_of(
    *pools: Pool,
    batch_size: int = 8,
    batches: Literal["mixed", "one_task"] = "mixed",
    length_window: int = 4,
) -> TaskBalancedSampler:
    """A sampler with uniform shares."""
    return TaskBalancedSampler(
        pools,
        batch_size=batch_size,
        seed=3,
        shares={pool.name: 1 for pool in pools},
        batches=batches,
        length_window=length_window,
    )


@st.composite
def shared(draw: st.DrawFn) -> tuple[Pool, ...]:
    """Two pools: rows for the tasks 0 and 2 with holes in their labels, and rows for the task 1 without."""
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    sizes = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    labels = {task: generator.integers(-1, 2, sizes[0]) for task in (0, 2)}
    lengths = [generator.integers(1, 9, size) for size in sizes]
    return Pool("both", lengths[0], labels), Pool("one", lengths[1], {1: None})


@modest
@given(shared(), st.integers(0, 60), st.integers(2, 12), st.sampled_from(["mixed", "one_task"]), st.integers(1, 7))
def test_the_counts_are_the_rows_with_each_label(
    pools: tuple[Pool, ...], step: int, batch_size: int, batches: Literal["mixed", "one_task"], window: int
) -> None:
    batch = sampler_of(*pools, batch_size=batch_size, batches=batches, length_window=window).batch(step)
    counts = [0, 0, 0]
    for pool, row in zip(batch.pool_ids, batch.rows, strict=True):
        for task, labels in pools[pool].labels.items():
            counts[task] += labels is None or labels[row] != -1
    assert batch.counts.tolist() == counts
    assert batch.counts.dtype == np.int64


def test_labels_do_not_change_which_rows_are_drawn() -> None:
    lengths = np.arange(1, 30)
    plain = sampler_of(Pool("a", lengths, {0: None}))
    labelled = sampler_of(Pool("a", lengths, {0: np.full(29, -1), 1: np.zeros(29, dtype=np.int64)}))
    for step in range(20):
        assert labelled.batch(step).digest == plain.batch(step).digest
    assert labelled.digest == plain.digest


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_a_pool_of_some_rows_passes_over_these(dtype: type[np.integer]) -> None:
    """The pools of two tasks have rows of one example set; each pass draws each of its rows once."""
    lengths = np.random.default_rng(0).integers(1, 9, 40)
    of_tasks = [np.arange(0, 40, 2), np.arange(5, 35, 3)]
    pools = [Pool(f"t{task}", lengths, {task: None}, rows.astype(dtype)) for task, rows in enumerate(of_tasks)]
    sampler = sampler_of(*pools, batch_size=10, length_window=3)
    drawn: list[Counter[int]] = [Counter(), Counter()]
    for step in range(12):
        batch = sampler.batch(step)
        assert batch.rows.dtype == np.int64
        assert batch.lengths.tolist() == lengths[batch.rows].tolist()
        assert batch.counts.tolist() == np.bincount(batch.pool_ids, minlength=2).tolist()
        for task in range(2):
            drawn[task].update(batch.rows[batch.pool_ids == task].tolist())
    for task, rows in enumerate(of_tasks):
        assert drawn[task] == dict.fromkeys(rows.tolist(), 60 // len(rows))
        assert pools[task].size == len(rows)


def test_a_pool_of_all_rows_by_number_draws_the_same_as_one_without_numbers() -> None:
    lengths = np.random.default_rng(0).integers(1, 9, 40)
    without, numbered = (sampler_of(Pool("a", lengths, {0: None}, rows)) for rows in (None, np.arange(40)))
    assert [numbered.batch(step).digest for step in range(9)] == [without.batch(step).digest for step in range(9)]


def test_labels_of_a_billion_rows_are_read_for_one_window_at_a_time() -> None:
    many = 10**9
    label, length = np.broadcast_to(np.int64(-1), many), np.broadcast_to(np.int32(20), many)
    tracemalloc.start()
    try:
        batch = sampler_of(Pool("a", length, {0: label, 1: None}), batch_size=32, length_window=64).batch(10**6)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch.counts.tolist() == [0, 32]
    assert peak < 50e6


def test_shares_are_those_of_pools() -> None:
    sizes, tasks = {"tickets": 300, "c": 100}, {"tickets": ("a", "b"), "c": ("c",)}
    assert pool_shares(SamplingConfig(), sizes, tasks) == dict.fromkeys(sizes, Fraction(1, 2))
    proportional = pool_shares(SamplingConfig(strategy="proportional"), sizes, tasks)
    assert proportional == {"tickets": Fraction(3, 4), "c": Fraction(1, 4)}
    weighted = SamplingConfig(strategy="weighted", weights={"a": 0.4, "b": 0.4, "c": 0.1})
    assert pool_shares(weighted, sizes, tasks) == {"tickets": Fraction(4, 5), "c": Fraction(1, 5)}
