"""Which levels stay the same through which phases, what is kept within a budget, and which texts go together."""

from collections.abc import Sequence

import numpy as np
import pytest

from mtl_dist.activation_cache.groups import ComputeGroups, Group, SlotAllocator, TextIds
from mtl_dist.activation_cache.policy import (
    MIB,
    READ_FAST,
    WORTHWHILE,
    WORTHWHILE_ON_GPU,
    CacheAllocation,
    Span,
    Texts,
    hopeless,
    level_of,
    provide,
    saved_part,
    spans_of,
)
from mtl_dist.config.recipe import CacheConfig
from mtl_dist.schedule.partition import partition_batch
from mtl_dist.schedule.phases import Phase, Schedule
from mtl_dist.schedule.sampler import TaskBalancedSampler

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
LEVELS = {"heads": 4, "one head": 4, "from 3": 3, "from 2": 2, "from 1": 1, "from 0": 0, "all": 0, "embeddings": 0}
STEPS = 10


def schedule_of(*names: str) -> Schedule:
    return Schedule(
        tuple(
            Phase(f"{index} {name}", STEPS * index, STEPS * (index + 1), UNITS[name], ())
            for index, name in enumerate(names)
        )
    )


@pytest.mark.parametrize("name", UNITS)
def test_the_level_is_the_lowest_block_that_trains(name: str) -> None:
    assert level_of(schedule_of(name).phases[0], BLOCKS) == LEVELS[name]


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
    assert spans_of(schedule_of(*names), BLOCKS) == spans


@pytest.mark.parametrize("names", [("heads", "from 2", "all"), ("from 1", "heads", "from 3", "from 1", "heads")])
def test_nothing_below_the_level_trains_in_a_span(names: Sequence[str]) -> None:
    schedule = schedule_of(*names)
    for span in spans_of(schedule, BLOCKS):
        below = {"embeddings", *(f"blocks.{index}" for index in range(span.level))}
        for phase in schedule.phases[span.first : span.last + 1]:
            assert not below.intersection(phase.units)
        if span.first > 0:
            assert below.intersection(schedule.phases[span.first - 1].units)


ROWS, TOKENS, BATCH = 60, 5, 12


def plan_of(rows: int = ROWS) -> TaskBalancedSampler:
    lengths = {task: np.full(rows, TOKENS, dtype=np.int32) for task in ("a", "b")}
    return TaskBalancedSampler(
        lengths, batch_size=BATCH, seed=1, shares={"a": 1, "b": 1}, batches="mixed", length_window=4
    )


APART = Texts(2 * ROWS, 2 * ROWS * TOKENS, {"a": ROWS, "b": ROWS})
SHARED = Texts(ROWS, ROWS * TOKENS, {"a": ROWS, "b": ROWS})


def provided(
    config: CacheConfig, *names: str, texts: Texts = APART, gpu_rows: float | None = None
) -> tuple[list[CacheAllocation], list[str]]:
    return provide(config, schedule_of(*names), BLOCKS, plan_of(), texts, MIB, gpu_rows)


def test_what_is_saved_is_what_is_read_more_than_once() -> None:
    """Ten steps draw each of 120 texts once."""
    heads, upper = spans_of(schedule_of("heads", "from 2", "all"), BLOCKS)
    assert saved_part(heads, schedule_of("heads", "from 2", "all"), plan_of(), APART) == 0
    assert saved_part(upper, schedule_of("heads", "from 2", "all"), plan_of(), APART) == 1  # filled on the way
    assert saved_part(heads, schedule_of("heads", "from 2", "all"), plan_of(), SHARED) == 0.5
    (twice,) = spans_of(schedule_of("heads", "heads"), BLOCKS)
    assert saved_part(twice, schedule_of("heads", "heads"), plan_of(), APART) == 0.5


def test_auto_keeps_what_pays_and_what_serves_it() -> None:
    auto = CacheConfig()
    kept, lines = provided(auto, "heads", "from 2", "all")
    assert [one.span.level for one in kept] == [4, 2]  # the vectors pay nothing, and are computed on the way
    assert [line.startswith("cache: ") for line in lines] == [True, True]
    assert provided(auto, "heads", "all")[0] == []
    assert "saves" not in provided(auto, "heads", "all")[1][0]
    assert [one.span.level for one in provided(CacheConfig(mode="always"), "heads", "all")[0]] == [4]
    assert provided(CacheConfig(mode="never"), "heads", "from 2", "all") == ([], [])


def test_a_budget_is_given_to_spans_in_the_order_in_which_they_are_read() -> None:
    names = ("heads", "from 2", "all")
    kept, _ = provided(CacheConfig(budget_gb=0.5), *names)
    assert [one.capacity for one in kept] == [120 * MIB, 392 * MIB]  # of 512, and 600 would be needed
    kept, lines = provided(CacheConfig(budget_gb=0.125), *names)
    assert [one.span.level for one in kept] == [4]
    assert "no states before block 2" in lines[1]
    kept, _ = provided(CacheConfig(mode="always", budget_gb=0.125), *names)
    assert [one.capacity for one in kept] == [120 * MIB, 8 * MIB]


def test_on_a_gpu_states_have_to_save_more() -> None:
    """Sentence vectors do not."""
    few = Texts(count=160, tokens=160 * TOKENS, by_task={"a": 80, "b": 80})
    shares = []
    for names in (("from 2", "from 2"), ("from 2", "from 2", "from 2")):
        schedule = schedule_of(*names)
        (span,) = spans_of(schedule, BLOCKS)
        shares.append(saved_part(span, schedule, plan_of(), few))
        on_cpu, on_gpu = (provided(CacheConfig(), *names, texts=few, gpu_rows=rows)[0] for rows in (None, 1))
        assert len(on_cpu) == 1
        assert len(on_gpu) == (shares[-1] >= WORTHWHILE_ON_GPU)
    assert WORTHWHILE < shares[0] < WORTHWHILE_ON_GPU < shares[1]
    vectors, _ = provided(CacheConfig(), "heads", "heads", texts=few, gpu_rows=1)
    assert [one.span.level for one in vectors] == [4]


def test_on_a_gpu_states_of_large_forwards_are_not_kept() -> None:
    """A text has TOKENS MiB of them here. Sentence vectors are kept in any case."""
    names, most = ("heads", "heads", "from 2"), READ_FAST / MIB / TOKENS
    for rows, levels in ((most, [4, 2]), (most + 1, [4])):
        kept, lines = provided(CacheConfig(), *names, gpu_rows=rows)
        assert [one.span.level for one in kept] == levels
        assert ("about as fast as its host reads them" in lines[1]) == (levels == [4])
    assert len(provided(CacheConfig(mode="always"), *names, gpu_rows=most + 1)[0]) == 2


@pytest.mark.parametrize(("rows", "tasks"), [(150, 2), (600, 2), (900, 2), (300, 6), (2000, 6)])
def test_nothing_is_given_up_that_pays_where_tasks_share_their_texts(rows: int, tasks: int) -> None:
    names = [f"t{index}" for index in range(tasks)]
    plan = TaskBalancedSampler(
        {name: np.full(rows, TOKENS) for name in names},
        batch_size=BATCH,
        seed=3,
        shares=dict.fromkeys(names, 1),
        batches="mixed",
        length_window=4,
    )
    schedule = schedule_of("heads")
    drawn = np.concatenate([plan.batch(step).rows for step in range(STEPS)])
    saved = 1 - len(np.unique(drawn)) / len(drawn)
    given_up = hopeless(CacheConfig(mode="auto"), schedule, plan, dict.fromkeys(names, rows), MIB)
    assert (given_up is not None) == (tasks * (STEPS * BATCH / tasks / rows) < 2 * WORTHWHILE)
    if given_up:
        assert saved < WORTHWHILE
        assert "120 draws" in given_up
        assert hopeless(CacheConfig(mode="always"), schedule, plan, dict.fromkeys(names, rows), MIB) is None


def test_what_the_budget_cannot_hold_a_tenth_of_is_not_numbered() -> None:
    def given_up(mib: float) -> str | None:
        return hopeless(
            CacheConfig(mode="auto", budget_gb=mib / 1024),
            schedule_of("heads"),
            plan_of(),
            dict.fromkeys(("a", "b"), ROWS),
            MIB,
        )

    assert given_up(WORTHWHILE * ROWS + 0.1) is None
    assert "less than 10% of 60 rows" in str(given_up(WORTHWHILE * ROWS - 0.1))


def ids_of(texts: Sequence[Sequence[int]]) -> TextIds:
    """Two tasks with these texts, each of which is as long as its number."""
    hashes = {
        str(task): np.array([[7, text] for text in of_task], dtype=np.uint64) for task, of_task in enumerate(texts)
    }
    return TextIds(hashes, {str(task): np.array(of_task) for task, of_task in enumerate(texts)})


def test_equal_texts_have_one_number_over_all_tasks() -> None:
    ids = ids_of([[4, 9, 4], [9, 2]])
    numbers = ids.of(np.array([0, 0, 0, 1, 1]), np.array([0, 1, 2, 0, 1]))
    assert numbers[0] == numbers[2]
    assert numbers[1] == numbers[3]
    assert len(set(numbers.tolist())) == 3
    assert ids.lengths[numbers].tolist() == [4, 9, 4, 9, 2]
    assert ids.by_task == {"0": 2, "1": 2}


def test_every_text_belongs_to_the_part_that_has_it_first() -> None:
    """Against a plain search through all parts so far; on a machine that has the last two of three ranks."""
    source = np.random.default_rng(0)
    ids = ids_of([source.integers(1, 40, ROWS).tolist(), source.integers(1, 40, ROWS).tolist()])
    plan, ranks = plan_of(), range(1, 3)
    ledger = ComputeGroups(ids, ranks, 0)
    expected: list[list[int]] = []
    for step in range(12):
        batch = plan.batch(step)
        parts = partition_batch(batch.lengths, 3, 2, None)
        ledger.enter(batch, parts)
        for of_ranks in parts:
            for rank in ranks:
                at = of_ranks[rank]
                texts = dict.fromkeys(ids.of(batch.task_ids[at], batch.rows[at]).tolist())
                fresh = [text for text in texts if not any(text in group for group in expected)]
                expected += [fresh] if fresh else []
        assert [group.texts.tolist() for group in ledger.groups] == expected
    for number, group in enumerate(ledger.groups):
        assert ids.of(group.task_ids, group.rows).tolist() == group.texts.tolist()
        assert (ledger.group_of[group.texts] == number).all()


def test_places_do_not_overlap_and_end_with_the_room() -> None:
    sizes = np.array([5, 3, 4, 2, 6, 1])
    places = SlotAllocator(sizes, 15)
    for texts in ([1, 4], [0, 2], [5]):
        array = np.array(texts)
        places.give(Group(array, array, array))
    taken = [set(range(at, at + size)) for at, size in zip(places.at.tolist(), sizes.tolist(), strict=True) if at >= 0]
    assert places.at[2] == -1  # 4 more than the 14 that are taken
    assert sum(map(len, taken)) == len(set().union(*taken)) == 15
    assert max(set().union(*taken)) == 14
