import hashlib
import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.errors import UserError
from mtl_dist.schedule.partition import micro_steps_for, partition_batch
from mtl_dist.schedule.sampler import TaskBalancedSampler
from tests.utils.pools import pools_of_tasks


@st.composite
def partitions(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int | None]:
    """Valid arguments of `partition_batch`."""
    world_size, micro_steps = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    parts = world_size * micro_steps
    tokens = draw(st.lists(st.integers(1, 40), min_size=parts, max_size=parts + 20))
    needed = -(-len(tokens) // parts)
    micro_batch_size = draw(st.none() | st.integers(needed, needed + 3))
    return np.array(sorted(tokens, reverse=True), dtype=np.int32), world_size, micro_steps, micro_batch_size


def cost(lengths: np.ndarray, part: np.ndarray) -> int:
    """Tokens of a part after padding."""
    return len(part) * int(lengths[part].max())


def least_cost(lengths: np.ndarray, parts: int, micro_batch_size: int | None) -> int:
    """Lowest possible highest cost of a part, found by trying every split into ranges."""
    tokens, most = lengths.tolist(), micro_batch_size or len(lengths)

    @cache
    def least(start: int, parts: int) -> float:
        left = len(tokens) - start
        if parts == 1:
            return left * tokens[start] if left <= most else float("inf")
        sizes = range(1, min(most, left - parts + 1) + 1)
        return min(max(size * tokens[start], least(start + size, parts - 1)) for size in sizes)

    return int(least(0, parts))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(partitions())
def test_parts_are_a_partition_into_ranges_of_similar_length(
    arguments: tuple[np.ndarray, int, int, int | None],
) -> None:
    lengths, world_size, micro_steps, micro_batch_size = arguments
    micro_batches = partition_batch(*arguments)
    assert [len(parts) for parts in micro_batches] == [world_size] * micro_steps
    start = 0
    for parts in micro_batches:
        for part in sorted(parts, key=lambda part: part[0]):
            assert part.dtype == np.int64
            assert 1 <= len(part) <= (micro_batch_size or len(lengths))
            assert np.array_equal(part, np.arange(start, start + len(part)))
            start += len(part)
    assert start == len(lengths)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(partitions())
def test_the_highest_cost_is_the_lowest_possible_in_each_micro_step(
    arguments: tuple[np.ndarray, int, int, int | None],
) -> None:
    lengths, world_size, micro_steps, micro_batch_size = arguments
    micro_batches = partition_batch(*arguments)
    for first in range(micro_steps):
        left = micro_batches[first:]
        start = min(part[0] for part in left[0])
        costliest = max(cost(lengths, part) for parts in left for part in parts)
        assert costliest == least_cost(lengths[start:], len(left) * world_size, micro_batch_size)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(partitions())
def test_ranks_differ_by_no_more_than_the_parts_of_one_micro_step(
    arguments: tuple[np.ndarray, int, int, int | None],
) -> None:
    costs = np.array([[cost(arguments[0], part) for part in parts] for parts in partition_batch(*arguments)])
    assert np.ptp(costs.sum(axis=0)) <= np.ptp(costs, axis=1).max()


def test_tokens_of_ranks_are_balanced_on_real_looking_lengths() -> None:
    lengths = np.sort(np.random.default_rng(0).lognormal(3.3, 0.6, 256).astype(np.int32) + 2)[::-1]
    for world_size, micro_steps in itertools.product([2, 4, 8], [1, 2, 4]):
        micro_batches = partition_batch(lengths, world_size, micro_steps, None)
        tokens = np.array([[cost(lengths, part) for part in parts] for parts in micro_batches]).sum(axis=0)
        assert tokens.max() < 1.05 * tokens.mean()


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 200), st.sampled_from([None, 2, 5]))
def test_any_world_size_and_accumulation_give_the_same_global_batch(
    world_size: int, accumulation: int, step: int, micro_batch_size: int | None
) -> None:
    lengths = {task: np.random.default_rng(seed).integers(1, 60, 50) for seed, task in enumerate(["a", "b", "c"])}
    sampler = TaskBalancedSampler(
        pools_of_tasks(lengths),
        batch_size=32,
        seed=3,
        shares=dict.fromkeys(lengths, 1),
        batches="mixed",
        length_window=8,
    )
    batch = sampler.batch(step)
    micro_steps = micro_steps_for(32, world_size, micro_batch_size, accumulation)
    trained = np.concatenate(
        list(itertools.chain(*partition_batch(batch.lengths, world_size, micro_steps, micro_batch_size)))
    )
    tasks, rows = batch.pool_ids[trained], batch.rows[trained]
    order = np.lexsort((rows, tasks, -batch.lengths[trained]))
    pairs = np.stack([tasks, rows], axis=1)[order]
    assert hashlib.blake2b(pairs.astype("<i8").tobytes(), digest_size=16).hexdigest() == batch.digest


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 30), st.integers(1, 8))
def test_micro_steps_are_the_fewest_that_fit(
    batch_size: int, world_size: int, micro_batch_size: int, accumulation: int
) -> None:
    expected = next(
        steps for steps in itertools.count(accumulation) if world_size * steps * micro_batch_size >= batch_size
    )
    if batch_size < world_size * expected:
        key = "batch_size" if batch_size < world_size * accumulation else "micro_batch_size"
        with pytest.raises(UserError, match=f"^{key}: .* is too small"):
            micro_steps_for(batch_size, world_size, micro_batch_size, accumulation)
    else:
        assert micro_steps_for(batch_size, world_size, micro_batch_size, accumulation) == expected
        partition_batch(np.ones(batch_size, dtype=np.int32), world_size, expected, micro_batch_size)


def test_without_micro_batch_size_the_accumulation_is_kept() -> None:
    assert micro_steps_for(32, 2, None, 4) == 4


def test_fewer_examples_than_parts_are_refused() -> None:
    message = "^batch_size: 5 is too small for 3 processes x 2 micro-steps; at least 6, one example for each$"
    with pytest.raises(UserError, match=message):
        micro_steps_for(5, 3, None, 2)
    with pytest.raises(UserError, match=message):
        partition_batch(np.ones(5, dtype=np.int32), 3, 2, None)


def test_more_examples_than_micro_batches_hold_are_refused() -> None:
    message = "^micro_batch_size: 2 is too small for 9 examples in 2 processes x 2 micro-steps; at least 3$"
    with pytest.raises(UserError, match=message):
        partition_batch(np.ones(9, dtype=np.int32), 2, 2, 2)
