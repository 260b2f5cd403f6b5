"""Spans of phases, allocation of the budget, compute groups and slots."""

from collections.abc import Sequence

import numpy as np
import pytest

from mtl_dist.activation_cache.groups import ComputeGroups, DistinctTexts, Group, SlotAllocator
from mtl_dist.activation_cache.policy import (
    GPU_MAX_FORWARD_BYTES,
    GPU_MIN_SAVED_FRACTION,
    MIB,
    MIN_SAVED_FRACTION,
    CacheAllocation,
    Span,
    TextCounts,
    choose_what_to_cache,
    find_spans,
    prefix_depth,
    reason_not_to_count_texts,
    saved_fraction,
)
from mtl_dist.config.recipe import CacheConfig
from mtl_dist.schedule.partition import partition_batch
from mtl_dist.schedule.phases import Phase, Schedule
from mtl_dist.schedule.sampler import TaskBalancedSampler
from tests.utils.pools import pools_of_tasks

BLOCKS = 4
HEADS = ("heads.a", "heads.b")
UNITS = {
    "heads": HEADS,
    "one head": ("heads.b",),
    "from 3": ("blocks.3", *HEADS),
    "from 2": ("blocks.2", "blocks.3"),
    "from 1": ("blocks.1", "blocks.3", *HEADS),
    "from 0": ("blocks.0", *HEADS),
    "all": ("embeddings", *(f"blocks.{i}" for i in range(BLOCKS)), *HEADS),
    "embeddings": ("embeddings", *HEADS),
}
DEPTHS = {"heads": 4, "one head": 4, "from 3": 3, "from 2": 2, "from 1": 1, "from 0": 0, "all": 0, "embeddings": 0}
STEPS = 10


def schedule_of(*names: str) -> Schedule:
    return Schedule(
        tuple(
            Phase(f"{index} {name}", STEPS * index, STEPS * (index + 1), UNITS[name], ())
            for index, name in enumerate(names)
        )
    )


@pytest.mark.parametrize("name", UNITS)
def test_the_depth_is_the_first_block_that_is_trained(name: str) -> None:
    assert prefix_depth(schedule_of(name).phases[0], BLOCKS) == DEPTHS[name]


@pytest.mark.parametrize(
    ("names", "spans"),
    [
        (("heads", "from 2", "all"), [Span(4, 0, 0, (0,)), Span(2, 0, 1, (1,))]),
        (("heads", "heads"), [Span(4, 0, 1, (0, 1))]),
        (("heads", "from 3", "from 1"), [Span(4, 0, 0, (0,)), Span(3, 0, 1, (1,)), Span(1, 0, 2, (2,))]),
        (("from 1", "heads", "from 3"), [Span(1, 0, 0, (0,)), Span(4, 1, 1, (1,)), Span(3, 1, 2, (2,))]),
        (("from 2", "all", "from 2"), [Span(2, 0, 0, (0,)), Span(2, 2, 2, (2,))]),
        (("heads", "from 2", "heads"), [Span(4, 0, 0, (0,)), Span(2, 0, 1, (1,)), Span(4, 2, 2, (2,))]),
        (("heads", "from 3", "heads"), [Span(4, 0, 0, (0,)), Span(3, 0, 1, (1,)), Span(4, 2, 2, (2,))]),
        (("all", "from 0", "embeddings"), []),
        ((), []),
    ],
)
def test_spans(names: Sequence[str], spans: list[Span]) -> None:
    assert find_spans(schedule_of(*names), BLOCKS) == spans


@pytest.mark.parametrize("names", [("heads", "from 2", "all"), ("from 1", "heads", "from 3", "from 1", "heads")])
def test_no_layer_below_the_depth_is_trained_in_a_span(names: Sequence[str]) -> None:
    schedule = schedule_of(*names)
    for span in find_spans(schedule, BLOCKS):
        below = {"embeddings", *(f"blocks.{index}" for index in range(span.depth))}
        for phase in schedule.phases[span.first : span.last + 1]:
            assert not below.intersection(phase.units)
        if span.first > 0:
            assert below.intersection(schedule.phases[span.first - 1].units)


ROWS, TOKENS, BATCH = 60, 5, 12


def sampler_of(rows: int = ROWS) -> TaskBalancedSampler:
    lengths = {task: np.full(rows, TOKENS, dtype=np.int32) for task in ("a", "b")}
    return TaskBalancedSampler(
        pools_of_tasks(lengths), batch_size=BATCH, seed=1, shares={"a": 1, "b": 1}, batches="mixed", length_window=4
    )


APART = TextCounts(2 * ROWS, 2 * ROWS * TOKENS, {"a": ROWS, "b": ROWS})
SHARED = TextCounts(ROWS, ROWS * TOKENS, {"a": ROWS, "b": ROWS})


def allocated(
    config: CacheConfig, *names: str, texts: TextCounts = APART, gpu_rows: float | None = None
) -> tuple[list[CacheAllocation], list[str]]:
    return choose_what_to_cache(config, schedule_of(*names), BLOCKS, sampler_of(), texts, MIB, gpu_rows)


def test_the_saved_fraction_counts_reads_after_the_first() -> None:
    """Ten steps draw each of 120 texts once."""
    heads, upper = find_spans(schedule_of("heads", "from 2", "all"), BLOCKS)
    assert saved_fraction(heads, schedule_of("heads", "from 2", "all"), sampler_of(), APART) == 0
    assert saved_fraction(upper, schedule_of("heads", "from 2", "all"), sampler_of(), APART) == 1  # filled on the way
    assert saved_fraction(heads, schedule_of("heads", "from 2", "all"), sampler_of(), SHARED) == 0.5
    (twice,) = find_spans(schedule_of("heads", "heads"), BLOCKS)
    assert saved_fraction(twice, schedule_of("heads", "heads"), sampler_of(), APART) == 0.5


def test_auto_caches_spans_that_pay_and_spans_that_fill_them() -> None:
    auto = CacheConfig()
    kept, lines = allocated(auto, "heads", "from 2", "all")
    assert [one.span.depth for one in kept] == [4, 2]  # the vectors save nothing themselves, but fill span 2
    assert [line.startswith("cache: ") for line in lines] == [True, True]
    assert allocated(auto, "heads", "all")[0] == []
    assert "saves" not in allocated(auto, "heads", "all")[1][0]
    assert [one.span.depth for one in allocated(CacheConfig(mode="always"), "heads", "all")[0]] == [4]
    assert allocated(CacheConfig(mode="never"), "heads", "from 2", "all") == ([], [])


def test_the_budget_is_divided_in_the_order_of_reading() -> None:
    names = ("heads", "from 2", "all")
    kept, _ = allocated(CacheConfig(budget_gb=0.5), *names)
    assert [one.capacity for one in kept] == [120 * MIB, 392 * MIB]  # of 512, and 600 would be needed
    kept, lines = allocated(CacheConfig(budget_gb=0.125), *names)
    assert [one.span.depth for one in kept] == [4]
    assert "no states before block 2" in lines[1]
    kept, _ = allocated(CacheConfig(mode="always", budget_gb=0.125), *names)
    assert [one.capacity for one in kept] == [120 * MIB, 8 * MIB]


def test_hidden_states_have_to_save_more_on_a_gpu() -> None:
    """Sentence vectors have the same threshold on all devices."""
    few = TextCounts(count=160, tokens=160 * TOKENS, by_pool={"a": 80, "b": 80})
    shares = []
    for names in (("from 2", "from 2"), ("from 2", "from 2", "from 2")):
        schedule = schedule_of(*names)
        (span,) = find_spans(schedule, BLOCKS)
        shares.append(saved_fraction(span, schedule, sampler_of(), few))
        on_cpu, on_gpu = (allocated(CacheConfig(), *names, texts=few, gpu_rows=rows)[0] for rows in (None, 1))
        assert len(on_cpu) == 1
        assert len(on_gpu) == (shares[-1] >= GPU_MIN_SAVED_FRACTION)
    assert MIN_SAVED_FRACTION < shares[0] < GPU_MIN_SAVED_FRACTION < shares[1]
    vectors, _ = allocated(CacheConfig(), "heads", "heads", texts=few, gpu_rows=1)
    assert [one.span.depth for one in vectors] == [4]


def test_hidden_states_of_large_forward_passes_are_not_cached_on_a_gpu() -> None:
    """A text has TOKENS MiB of them here. Sentence vectors are cached at any size."""
    names, most = ("heads", "heads", "from 2"), GPU_MAX_FORWARD_BYTES / MIB / TOKENS
    for rows, depths in ((most, [4, 2]), (most + 1, [4])):
        kept, lines = allocated(CacheConfig(), *names, gpu_rows=rows)
        assert [one.span.depth for one in kept] == depths
        assert ("about as fast as its host reads them" in lines[1]) == (depths == [4])
    assert len(allocated(CacheConfig(mode="always"), *names, gpu_rows=most + 1)[0]) == 2


@pytest.mark.parametrize(("rows", "tasks"), [(150, 2), (600, 2), (900, 2), (300, 6), (2000, 6)])
def test_the_cache_is_skipped_only_if_it_saves_little(rows: int, tasks: int) -> None:
    names = [f"t{index}" for index in range(tasks)]
    sampler = TaskBalancedSampler(
        pools_of_tasks({name: np.full(rows, TOKENS) for name in names}),
        batch_size=BATCH,
        seed=3,
        shares=dict.fromkeys(names, 1),
        batches="mixed",
        length_window=4,
    )
    schedule = schedule_of("heads")
    drawn = np.concatenate([sampler.batch(step).rows for step in range(STEPS)])
    saved = 1 - len(np.unique(drawn)) / len(drawn)
    skipped = reason_not_to_count_texts(CacheConfig(mode="auto"), schedule, sampler, dict.fromkeys(names, rows), MIB)
    assert (skipped is not None) == (tasks * (STEPS * BATCH / tasks / rows) < 2 * MIN_SAVED_FRACTION)
    if skipped:
        assert saved < MIN_SAVED_FRACTION
        assert "120 draws" in skipped
        assert (
            reason_not_to_count_texts(CacheConfig(mode="always"), schedule, sampler, dict.fromkeys(names, rows), MIB)
            is None
        )


def test_the_cache_is_skipped_if_the_budget_is_less_than_a_tenth() -> None:
    def skipped(mib: float) -> str | None:
        return reason_not_to_count_texts(
            CacheConfig(mode="auto", budget_gb=mib / 1024),
            schedule_of("heads"),
            sampler_of(),
            dict.fromkeys(("a", "b"), ROWS),
            MIB,
        )

    assert skipped(MIN_SAVED_FRACTION * ROWS + 0.1) is None
    assert "less than 10% of 60 rows" in str(skipped(MIN_SAVED_FRACTION * ROWS - 0.1))


def distinct_texts(texts: Sequence[Sequence[int]]) -> DistinctTexts:
    """The texts of two example sets, each with one pool; each text has as many tokens as its number."""
    hashes = [np.array([[7, text] for text in of_set], dtype=np.uint64) for of_set in texts]
    return DistinctTexts(hashes, [np.array(of_set) for of_set in texts], range(len(texts)))


def test_equal_texts_have_the_same_number_in_all_example_sets() -> None:
    distinct = distinct_texts([[4, 9, 4], [9, 2]])
    numbers = distinct.numbers(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1]))
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[3]
    assert len(set(numbers.tolist())) == 3
    assert distinct.lengths[numbers].tolist() == [4, 9, 4, 9, 2]
    assert [distinct.count(0, None), distinct.count(1, None), distinct.count(0, np.array([0, 2]))] == [2, 2, 1]


def test_every_text_belongs_to_the_first_part_that_contains_it() -> None:
    """Against a linear search through all earlier parts, for a machine with the last two of three ranks."""
    source = np.random.default_rng(0)
    distinct = distinct_texts([source.integers(1, 40, ROWS).tolist(), source.integers(1, 40, ROWS).tolist()])
    sampler, ranks = sampler_of(), range(1, 3)
    compute_groups = ComputeGroups(distinct, ranks, 0)
    expected: list[list[int]] = []
    for step in range(12):
        batch = sampler.batch(step)
        parts = partition_batch(batch.lengths, 3, 2, None)
        compute_groups.add_step(batch, parts)
        for of_ranks in parts:
            for rank in ranks:
                at = of_ranks[rank]
                texts = dict.fromkeys(distinct.numbers(batch.pool_ids[at], batch.rows[at]).tolist())
                fresh = [text for text in texts if not any(text in group for group in expected)]
                expected += [fresh] if fresh else []
        assert [group.texts.tolist() for group in compute_groups.groups] == expected
    for number, group in enumerate(compute_groups.groups):
        assert distinct.numbers(group.pool_ids, group.rows).tolist() == group.texts.tolist()
        assert (compute_groups.group_of[group.texts] == number).all()


def test_slots_do_not_overlap_and_stay_within_the_capacity() -> None:
    sizes = np.array([5, 3, 4, 2, 6, 1])
    slots = SlotAllocator(sizes, 15)
    for texts in ([1, 4], [0, 2], [5]):
        array = np.array(texts)
        slots.allocate(Group(array, array, array))
    taken = [
        set(range(at, at + size)) for at, size in zip(slots.offsets.tolist(), sizes.tolist(), strict=True) if at >= 0
    ]
    assert slots.offsets[2] == -1  # 4 more than the 14 that are taken
    assert sum(map(len, taken)) == len(set().union(*taken)) == 15
    assert max(set().union(*taken)) == 14
