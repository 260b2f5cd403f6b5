import hashlib
import math
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.config.recipe import SamplingConfig
from mtl_dist.schedule import sampler as sampler_module
from mtl_dist.schedule.sampler import GlobalBatch, TaskBalancedSampler, cumulative_draws, pool_shares
from tests.utils.pools import pools_of_tasks

modest = settings(deadline=None, derandomize=True, max_examples=50)
steps = st.integers(0, 60)


class Arguments(NamedTuple):
    """Arguments of a TaskBalancedSampler."""

    lengths: Mapping[str, np.ndarray]
    batch_size: int = 8
    seed: int = 0
    shares: Mapping[str, float | Fraction] = {}
    """Empty for uniform."""
    batches: Literal["mixed", "one_task"] = "mixed"
    length_window: int = 4

    def sampler(self) -> TaskBalancedSampler:
        return TaskBalancedSampler(
            pools_of_tasks(self.lengths),
            batch_size=self.batch_size,
            seed=self.seed,
            shares=self.shares or dict.fromkeys(self.lengths, 1),
            batches=self.batches,
            length_window=self.length_window,
        )


@st.composite
def small(draw: st.DrawFn) -> Arguments:
    """Few rows, so that passes end within a step, within a window and between them."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=4))
    generator = np.random.default_rng(draw(st.integers(0, 10)))
    return Arguments(
        lengths={f"task{index}": generator.integers(1, 9, size) for index, size in enumerate(sizes)},
        batch_size=draw(st.integers(1, 12)),
        seed=draw(st.integers(0, 2**63 - 1)),
        shares={f"task{index}": draw(st.integers(1, 9)) for index in range(len(sizes))},
        batches=draw(st.sampled_from(["mixed", "one_task"])),
        length_window=draw(st.integers(1, 7)),
    )


def contents_of(batch: GlobalBatch) -> tuple[int, list[int], list[int], list[int], list[int], str]:
    arrays = (batch.pool_ids, batch.rows, batch.lengths, batch.counts)
    return batch.step, *(array.tolist() for array in arrays), batch.digest


def examples(sampler: TaskBalancedSampler, start: int, stop: int) -> Counter[tuple[int, int]]:
    """Number of draws of each (task, row) in steps `start` to `stop`."""
    batches = [sampler.batch(step) for step in range(start, stop)]
    return Counter(pair for batch in batches for pair in zip(batch.pool_ids.tolist(), batch.rows.tolist(), strict=True))


# The batch of a step


@modest
@given(small(), st.lists(steps, min_size=1, max_size=8))
def test_a_batch_depends_on_its_step_alone(arguments: Arguments, order: list[int]) -> None:
    sampler = arguments.sampler()
    for step in np.repeat(order, 2).tolist():
        batch = sampler.batch(step)
        assert contents_of(batch) == contents_of(arguments.sampler().batch(step))
        # A caller that changes its batch does not change later results.
        batch.rows[:], batch.pool_ids[:], batch.lengths[:] = 0, 0, 0


@modest
@given(small(), steps)
def test_a_batch_is_in_canonical_order_and_its_fields_agree(arguments: Arguments, step: int) -> None:
    batch = arguments.sampler().batch(step)
    lengths = list(arguments.lengths.values())
    triples = list(zip(batch.lengths.tolist(), batch.pool_ids.tolist(), batch.rows.tolist(), strict=True))
    assert batch.step == step
    assert len(triples) == arguments.batch_size
    assert triples == sorted(triples, key=lambda triple: (-triple[0], *triple[1:]))
    assert all(length == lengths[task][row] for length, task, row in triples)
    assert batch.counts.tolist() == [batch.pool_ids.tolist().count(task) for task in range(len(lengths))]
    assert [array.dtype for array in (batch.pool_ids, batch.rows, batch.lengths)] == [np.int64, np.int64, np.int32]


def test_a_batchs_digest_covers_task_and_row_ids() -> None:
    short, long = (
        Arguments({"a": np.full(50, length), "b": np.full(70, length)}).sampler().batch(5) for length in (3, 300)
    )
    pairs = np.stack([short.pool_ids, short.rows], axis=1).astype("<i8")
    assert short.digest == long.digest == hashlib.blake2b(pairs.tobytes(), digest_size=16).hexdigest()


def test_a_batch_of_all_rows_has_the_same_digest_for_every_seed_and_step() -> None:
    arguments = Arguments({"a": np.arange(1, 5), "b": np.arange(1, 5)})
    digests = {arguments._replace(seed=seed).sampler().batch(step).digest for seed in range(3) for step in range(3)}
    assert len(digests) == 1


def test_seeds_draw_different_rows() -> None:
    arguments = Arguments({"a": np.full(1000, 5)})
    assert len({arguments._replace(seed=seed).sampler().batch(0).digest for seed in range(20)}) == 20


def test_tasks_of_one_size_draw_in_different_orders() -> None:
    batch = Arguments({"a": np.full(1000, 5), "b": np.full(1000, 5)}).sampler().batch(0)
    assert batch.rows[batch.pool_ids == 0].tolist() != batch.rows[batch.pool_ids == 1].tolist()


def test_batches_are_the_same_in_every_version() -> None:
    """Stored on purpose: a run that is resumed, or repeated on another machine or version, must draw the same rows."""
    lengths = {"sentiment": np.arange(1000) % 61 + 1, "domain": np.arange(300) % 53 + 1}
    sampler = Arguments(lengths, batch_size=8, seed=42, length_window=64).sampler()
    assert {step: sampler.batch(step).digest for step in (0, 63, 64, 10**9)} == {
        0: "8fb33c9bbd1ef51e8887930d27fc5760",
        63: "5e8ba430eae2e1f81be0a2370faf1009",
        64: "5501b7f5c41790cc20c5514b017a98ab",
        10**9: "dc124140dc3ff9e3f3081e00356663e5",
    }


# Passes


@modest
@given(small())
def test_each_pass_over_a_task_visits_each_row_once(arguments: Arguments) -> None:
    sampler = arguments.sampler()
    sizes = [len(lengths) for lengths in arguments.lengths.values()]
    seen = [np.zeros(size, dtype=np.int64) for size in sizes]
    for step in range(40):
        batch = sampler.batch(step)
        for task, times in enumerate(seen):
            times += np.bincount(batch.rows[batch.pool_ids == task], minlength=sizes[task])
            assert np.ptp(times) <= 1
    assert [int(times.sum()) for times in seen] == list(sampler.draws(0, 40).values())


def test_passes_come_in_different_orders() -> None:
    sampler = Arguments({"a": np.full(64, 5)}, batch_size=16, length_window=1).sampler()
    passes = [[sampler.batch(4 * number + step).rows.tolist() for step in range(4)] for number in range(10)]
    assert len({str(batches) for batches in passes}) == 10


# Quotas


def ceil_log2(tasks: int) -> int:
    return math.ceil(math.log2(tasks))


weights_of_tasks = st.lists(st.integers(1, 1000) | st.integers(1, 10**12), min_size=1, max_size=40)


@modest
@given(weights_of_tasks, st.integers(0, 10**15), st.integers(0, 10**6))
def test_draws_of_any_range_are_close_to_the_exact_shares(weights: list[int], start: int, draws: int) -> None:
    before, after = cumulative_draws(weights, start), cumulative_draws(weights, start + draws)
    assert sum(after) == start + draws
    for weight, first, last in zip(weights, before, after, strict=True):
        assert last >= first
        assert abs(last - first - Fraction(weight * draws, sum(weights))) <= ceil_log2(len(weights))


@pytest.mark.parametrize("weights", [[1] * 15 + [112], [112] + [1] * 15, list(range(1, 12)), [1] * 9, [5, 3], [4]])
def test_the_worst_range_of_draws_is_close_to_the_exact_shares(weights: list[int]) -> None:
    """All ranges of a whole period. A chain of roundings would fail on light tasks beside a heavy one."""
    period = sum(weights)
    draws = np.array([cumulative_draws(weights, total) for total in range(period + 1)])
    # Times `period`, so that the deviations are integers.
    deviations = draws * period - np.outer(np.arange(period + 1), weights)
    assert draws[-1].tolist() == weights
    assert np.diff(draws, axis=0).min() >= 0
    assert np.ptp(deviations, axis=0).max() <= ceil_log2(len(weights)) * period


@modest
@given(small(), steps, st.integers(0, 30))
def test_quotas_hold_in_any_window_of_steps(arguments: Arguments, start: int, count: int) -> None:
    sampler = arguments.sampler()
    counts = sum((sampler.batch(step).counts for step in range(start, start + count)), np.zeros(len(arguments.lengths)))
    assert counts.tolist() == list(sampler.draws(start, start + count).values())
    # Mixed batches count in examples, one_task in whole batches.
    granularity = 1 if arguments.batches == "mixed" else arguments.batch_size
    weights = [Fraction(share) for share in arguments.shares.values()]
    for drawn, weight in zip(counts, weights, strict=True):
        exact = weight / sum(weights) * count * arguments.batch_size
        assert abs(Fraction(drawn) - exact) <= ceil_log2(len(counts)) * granularity


@modest
@given(st.integers(1, 30), st.integers(0, 20), st.integers(0, 10**12))
def test_every_mixed_batch_has_all_tasks_under_uniform_shares(tasks: int, more: int, step: int) -> None:
    lengths = {f"task{index}": np.ones(3, dtype=np.int32) for index in range(tasks)}
    assert Arguments(lengths, batch_size=tasks + more, length_window=1).sampler().batch(step).counts.min() >= 1


@modest
@given(small(), steps)
def test_one_task_batches_hold_one_task(arguments: Arguments, step: int) -> None:
    counts = arguments._replace(batches="one_task").sampler().batch(step).counts
    assert counts.max() == counts.sum() == arguments.batch_size


def test_shares_are_exact() -> None:
    sizes = {"a": 300, "b": 100, "c": 200}
    weights = {"c": 0.1, "b": 0.3, "a": 0.2}
    tasks = {task: [task] for task in sizes}
    assert pool_shares(SamplingConfig(), sizes, tasks) == dict.fromkeys(sizes, Fraction(1, 3))
    assert pool_shares(SamplingConfig(strategy="proportional"), sizes, tasks) == {
        "a": Fraction(1, 2),
        "b": Fraction(1, 6),
        "c": Fraction(1, 3),
    }
    weighted = pool_shares(SamplingConfig(strategy="weighted", weights=weights), sizes, tasks)
    assert list(weighted.items()) == [("a", Fraction(1, 3)), ("b", Fraction(1, 2)), ("c", Fraction(1, 6))]


def test_a_whole_pass_over_all_rows_in_each_proportional_batch() -> None:
    sizes = {"a": 7, "b": 1, "c": 12}
    lengths = {task: np.arange(1, size + 1) for task, size in sizes.items()}
    shares = pool_shares(SamplingConfig(strategy="proportional"), sizes, {task: [task] for task in sizes})
    sampler = Arguments(lengths, batch_size=20, shares=shares).sampler()
    every_row = Counter((task, row) for task, size in enumerate(sizes.values()) for row in range(size))
    assert all(examples(sampler, step, step + 1) == every_row for step in range(10))


def test_weights_as_written_give_whole_draws_at_every_period() -> None:
    """With 0.1 and 0.7 as binary fractions, the counts would be off by one at some of these steps."""
    sampler = Arguments({"a": np.ones(1), "b": np.ones(1)}, batch_size=8, shares={"a": 0.1, "b": 0.7}).sampler()
    for step in (1, 3, 10**6, 10**17):
        assert sampler.draws(0, step) == {"a": step, "b": 7 * step}


# Batches of similar length


@modest
@given(small(), st.integers(0, 5))
def test_a_window_has_the_same_examples_as_without_ordering_by_length(arguments: Arguments, index: int) -> None:
    start, stop = index * arguments.length_window, (index + 1) * arguments.length_window
    random_order = arguments._replace(length_window=1).sampler()
    assert examples(arguments.sampler(), start, stop) == examples(random_order, start, stop)


def test_steps_of_a_window_take_ranges_of_length_in_the_same_random_order_for_all_tasks() -> None:
    window, windows = 4, 240
    generator = np.random.default_rng(0)
    lengths = {task: generator.permutation(10_000) + 1 for task in ("a", "b")}
    sampler = Arguments(lengths, batch_size=8, length_window=window).sampler()
    orders: Counter[tuple[int, ...]] = Counter()
    for start in range(0, windows * window, window):
        batches = [sampler.batch(step) for step in range(start, start + window)]
        orders_of_tasks = set()
        for task in (0, 1):
            by_step = [batch.lengths[batch.pool_ids == task] for batch in batches]
            order = sorted(range(window), key=lambda step: -by_step[step][0])
            assert all(by_step[order[k]].min() > by_step[order[k + 1]].max() for k in range(window - 1))
            orders_of_tasks.add(tuple(order))
        assert len(orders_of_tasks) == 1
        orders.update(orders_of_tasks)
    # All 24 orders, about ten times each.
    assert len(orders) == 24
    assert max(orders.values()) <= 25


def test_a_length_window_pads_less() -> None:
    lengths = {"a": np.random.default_rng(0).lognormal(3.1, 0.6, 20_000).astype(np.int32) + 2}
    padded: dict[int, int] = {}
    for window in (1, 64):
        sampler = Arguments(lengths, batch_size=32, length_window=window).sampler()
        batches = [sampler.batch(step) for step in range(640)]
        padded[window] = sum(len(batch.lengths) * int(batch.lengths[0]) for batch in batches)
        tokens = sum(int(batch.lengths.sum()) for batch in batches)
    assert padded[64] < 0.5 * padded[1]
    assert padded[64] < 1.1 * tokens


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_memory_mapped_lengths_of_any_integer_type(dtype: type[np.integer], tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 500).astype(np.int32)
    np.save(tmp_path / "lengths.npy", lengths.astype(dtype))
    mapped = Arguments({"a": np.load(tmp_path / "lengths.npy", mmap_mode="r")}).sampler().batch(3)
    assert contents_of(mapped) == contents_of(Arguments({"a": lengths}).sampler().batch(3))


# A billion rows


def billions() -> Arguments:
    """Two tasks of 10^9 rows; the lengths are one number in memory."""
    return Arguments(dict.fromkeys("ab", np.broadcast_to(np.int32(20), 10**9)), batch_size=32, length_window=64)


def test_a_billion_rows_need_little_memory_at_any_step() -> None:
    tracemalloc.start()
    try:
        sampler = billions().sampler()
        for step in (0, 10**3, 10**6, 10**9, 10**12):
            sampler.batch(step)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6


def test_steps_of_one_window_share_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: Counter[str] = Counter()
    shuffled_indices = sampler_module.shuffled_indices

    def counting(start: int, stop: int, size: int, seed: int, name: str) -> np.ndarray:
        computed[name] += stop - start
        return shuffled_indices(start, stop, size, seed, name)

    monkeypatch.setattr(sampler_module, "shuffled_indices", counting)
    sampler = billions().sampler()
    for step in range(64 * 10**9, 64 * 10**9 + 64):
        sampler.batch(step)
    assert computed == {"rows of a": 32 * 32, "rows of b": 32 * 32, "ranks of the steps": 64}


def test_a_billion_rows_do_not_repeat_in_a_pass() -> None:
    assert set(examples(billions().sampler(), 31 * 10**6, 31 * 10**6 + 400).values()) == {1}


# The digest of a sampler


def test_a_samplers_digest_covers_every_setting_and_no_row() -> None:
    arguments = Arguments({"a": np.ones(8), "b": np.ones(9)}, shares={"a": 0.5, "b": 0.25})
    others = [
        arguments._replace(lengths={"a": np.ones(8), "b": np.ones(10)}),
        arguments._replace(lengths={"b": np.ones(8), "a": np.ones(9)}, shares={"b": 0.5, "a": 0.25}),
        arguments._replace(batch_size=9),
        arguments._replace(seed=1),
        arguments._replace(shares={"a": 0.25, "b": 0.5}),
        arguments._replace(batches="one_task"),
        arguments._replace(length_window=5),
    ]
    digests = {other.sampler().digest for other in [arguments, *others]}
    assert len(digests) == 1 + len(others)
    assert (
        arguments._replace(lengths={"a": np.zeros(8), "b": np.zeros(9)}).sampler().digest == arguments.sampler().digest
    )
