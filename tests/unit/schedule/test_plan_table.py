"""The printed table against the sampler, the schedule and the learning rates."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from mtl_dist.config.recipe import (
    ModelConfig,
    OptimizerConfig,
    PhaseConfig,
    Recipe,
    SamplingConfig,
    TaskConfig,
    UntilConfig,
)
from mtl_dist.config.selectors import select
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.phases import compile_schedule
from mtl_dist.schedule.plan_table import CELL_WIDTH, HEADER, ONE_TASK_EACH, SEVERAL_TASKS, PoolSize, plan_table
from mtl_dist.schedule.sampler import Pool, TaskBalancedSampler, pool_shares
from tests.utils.pools import pools_of_tasks

SIZES = {"topic": 1000, "mood": 350}
POOLS = {task: PoolSize(rows, {task: rows}) for task, rows in SIZES.items()}
NUM_BLOCKS = 6
UNIT_SIZES = {
    "embeddings": 50_000,
    **{f"blocks.{i}": 1_000 + i for i in range(NUM_BLOCKS)},
    "heads.topic": 300,
    "heads.mood": 200,
}
PHASES = [
    PhaseConfig(name="heads", train=["heads"], steps=30),
    PhaseConfig(name="upper", train=["heads", "blocks[-2:]"], epochs=1.0),
    PhaseConfig(name="all", train=["all"], steps=1),
]


def rates_and_sampler(
    optimizer: OptimizerConfig,
    *freeze: str,
    strategy: SamplingConfig | None = None,
    phases: Sequence[PhaseConfig] = PHASES,
) -> tuple[LearningRates, TaskBalancedSampler]:
    """Learning rates and sampler of a recipe with these phases."""
    recipe = Recipe(
        batch_size=16,
        model=ModelConfig(freeze=list(freeze)),
        tasks={task: TaskConfig(path="json") for task in SIZES},
        phases=list(phases),
        optimizer=optimizer,
    )
    sampler = TaskBalancedSampler(
        pools_of_tasks({task: np.ones(rows, dtype=np.int32) for task, rows in SIZES.items()}),
        batch_size=recipe.batch_size,
        seed=0,
        shares=pool_shares(strategy or recipe.sampling, SIZES, {task: [task] for task in SIZES}),
        batches="mixed",
        length_window=4,
    )
    return LearningRates(optimizer, compile_schedule(recipe, NUM_BLOCKS, sum(SIZES.values())), NUM_BLOCKS), sampler


def cells(
    rates: LearningRates,
    sampler: TaskBalancedSampler,
    pools: Mapping[str, PoolSize] = POOLS,
    unit_sizes: Mapping[str, int] = UNIT_SIZES,
) -> list[list[str]]:
    """The table's rows in columns, header and rule left out; cells of several lines are joined."""
    header, rule, *lines = plan_table(rates, sampler, pools, unit_sizes).splitlines()
    shared = any(len(pool.labels) > 1 for pool in pools.values())
    assert tuple(re.split(" {2,}", header)) == HEADER + (SEVERAL_TASKS if shared else ONE_TASK_EACH)
    assert set(rule) == {"-", " "}
    starts = [match.start() for match in re.finditer("-+", rule)]
    rows: list[list[str]] = []
    for line in lines:
        parts = [line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)]
        if parts[0]:
            rows.append(parts)
        else:
            rows[-1] = [f"{above} {part}".strip() for above, part in zip(rows[-1], parts, strict=True)]
    return rows


def draws_in(text: str) -> dict[str, tuple[int, float]]:
    """Task -> draws and epochs, as printed."""
    found = re.findall(r"(\w+) ([\d,]+) \(([\d.]+)\)", text)
    return {task: (int(count.replace(",", "")), float(epochs)) for task, count, epochs in found}


def test_a_line_for_each_phase() -> None:
    rates, sampler = rates_and_sampler(OptimizerConfig(warmup_steps=10))
    rows = cells(rates, sampler)
    # 1350 rows in batches of 16 are 85 steps.
    assert [row[:4] for row in rows[:-1]] == [
        ["heads", "1-30", "heads.topic heads.mood", "500 (0.9%)"],
        ["upper", "31-115", "blocks[4:6] heads.topic heads.mood", "2,509 (4.4%)"],
        ["all", "116", "embeddings blocks[0:6] heads.topic heads.mood", "56,515 (100.0%)"],
    ]
    assert rows[-1][:2] == ["whole run", "116"]


@pytest.mark.parametrize("strategy", ["uniform", "proportional"])
def test_draws_are_those_of_the_sampler(strategy: str) -> None:
    sampling = SamplingConfig(strategy="proportional") if strategy == "proportional" else SamplingConfig()
    rates, sampler = rates_and_sampler(OptimizerConfig(), strategy=sampling)
    *rows, total = cells(rates, sampler)
    counted = dict.fromkeys(SIZES, 0)
    for row, phase in zip(rows, rates.schedule.phases, strict=True):
        drawn = dict.fromkeys(SIZES, 0)
        for step in range(phase.start, phase.stop):
            for task, count in zip(SIZES, sampler.batch(step).counts, strict=True):
                drawn[task] += int(count)
                counted[task] += int(count)
        assert draws_in(row[5]) == {task: (count, round(count / SIZES[task], 2)) for task, count in drawn.items()}
    assert draws_in(total[5]) == {task: (count, round(count / SIZES[task], 2)) for task, count in counted.items()}


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerConfig(lr=1e-3, warmup_steps=10),
        OptimizerConfig(lr=1e-3, warmup_steps=60, block_lr_decay=0.5),
        OptimizerConfig(lr=1e-3, warmup_steps=500, schedule="cosine"),
        # The schedule's decay overtakes a slow warm-up: the highest rate is neither at its start nor at its end.
        OptimizerConfig(lr=1e-3, warmup_steps=0, unfreeze_warmup_steps=80),
        OptimizerConfig(lr=1e-3, warmup_steps=50, unfreeze_warmup_steps=30, schedule="constant"),
    ],
)
def test_rates_are_the_highest_and_the_last_of_each_group(optimizer: OptimizerConfig) -> None:
    rates, sampler = rates_and_sampler(optimizer)
    for row, phase in zip(cells(rates, sampler), rates.schedule.phases, strict=False):
        printed = {}
        for group in row[4].split(", "):
            *names, peak, _, final = group.split()
            printed |= dict.fromkeys(select(names, list(SIZES), NUM_BLOCKS, ""), (peak, final))
        at = [rates.at(step) for step in range(phase.start, phase.stop)]
        assert printed == {unit: (f"{max(one[unit] for one in at):.2e}", f"{at[-1][unit]:.2e}") for unit in phase.units}


def test_units_of_equal_rates_are_printed_as_one_group() -> None:
    rates, sampler = rates_and_sampler(
        OptimizerConfig(lr=1e-3, warmup_steps=0, schedule="constant", block_lr_decay=0.5)
    )
    rows = cells(rates, sampler)
    assert rows[0][4] == "heads 5.00e-03 to 5.00e-03"
    assert rows[1][4] == "blocks[4] 5.00e-04 to 5.00e-04, blocks[5] 1.00e-03 to 1.00e-03, heads 5.00e-03 to 5.00e-03"
    rates, sampler = rates_and_sampler(OptimizerConfig(lr=1e-3, warmup_steps=0, schedule="constant"))
    assert cells(rates, sampler)[2][4] == "embeddings blocks[0:6] 1.00e-03 to 1.00e-03, heads 5.00e-03 to 5.00e-03"


def test_a_phase_with_early_stopping_has_its_steps_at_most_and_the_condition() -> None:
    until = UntilConfig(metric="topic/accuracy", patience=3, every_steps=5)
    rates, sampler = rates_and_sampler(
        OptimizerConfig(), phases=[PHASES[0], PHASES[1].model_copy(update={"until": until}), PHASES[2]]
    )
    *lines, last = plan_table(rates, sampler, POOLS, UNIT_SIZES).splitlines()
    assert [re.split(" {2,}", line)[1] for line in lines[2:]] == ["1-30", "31-115 at most", "116", "116 at most"]
    assert last == "upper ends early when topic/accuracy stops improving (patience 3, every_steps 5)"


def test_everything_frozen_is_one_line() -> None:
    rates, sampler = rates_and_sampler(OptimizerConfig(), "all")
    expected = "everything is frozen (model.freeze): no training steps, evaluation only"
    assert plan_table(rates, sampler, POOLS, UNIT_SIZES) == expected


SHARED = {"tickets": PoolSize(200, {"team": 200, "mood": 50}), "topic": PoolSize(100, {"topic": 100})}


def shared_cells(*steps: int) -> list[list[str]]:
    """The table of phases of so many steps in batches of 20, half of them from a pool that two tasks share."""
    phases = [PhaseConfig(name=f"p{index}", train=["all"], steps=count) for index, count in enumerate(steps)]
    tasks = {task: TaskConfig(path="json") for pool in SHARED.values() for task in pool.labels}
    recipe = Recipe(batch_size=20, tasks=tasks, phases=phases)
    sampler = TaskBalancedSampler(
        [
            Pool("tickets", np.ones(200), {0: None, 1: np.repeat([0, -1, -1, -1], 50)}),
            Pool("topic", np.ones(100), {2: None}),
        ],
        batch_size=20,
        seed=0,
        shares=dict.fromkeys(SHARED, 1),
        batches="mixed",
        length_window=4,
    )
    rates = LearningRates(OptimizerConfig(), compile_schedule(recipe, 1, 300), 1)
    units = {"embeddings": 10, "blocks.0": 5} | {f"heads.{task}": 1 for task in tasks}
    return cells(rates, sampler, SHARED, units)


def test_shared_rows_have_their_draws_and_the_labels_of_each_task() -> None:
    """Labels are exact where a task has one for every row and in whole passes, and else about their share."""
    rows = shared_cells(20, 15, 5)
    assert [row[5:] for row in rows] == [
        ["tickets 200 (1.00), topic 200 (2.00)", "team 200, mood 50, topic 200"],
        ["tickets 150 (0.75), topic 150 (1.50)", "team 150, mood ~38, topic 150"],
        ["tickets 50 (0.25), topic 50 (0.50)", "team 50, mood ~12, topic 50"],
        ["tickets 400 (2.00), topic 400 (4.00)", "team 400, mood 100, topic 400"],
    ]


def test_labels_that_are_called_exact_are_those_of_the_batches() -> None:
    pool = Pool("tickets", np.ones(200), {0: None, 1: np.repeat([0, -1, -1, -1], 50)})
    sampler = TaskBalancedSampler(
        [pool], batch_size=10, seed=0, shares={"tickets": 1}, batches="mixed", length_window=4
    )
    assert np.sum([sampler.batch(step).counts for step in range(20)], axis=0).tolist() == [200, 50]


def test_many_tasks_go_over_several_lines() -> None:
    names = [f"task-number-{index}" for index in range(20)]
    recipe = Recipe(
        batch_size=20,
        tasks={name: TaskConfig(path="json") for name in names},
        phases=[PhaseConfig(name="all", train=["all"], steps=5)],
    )
    sampler = TaskBalancedSampler(
        pools_of_tasks(dict.fromkeys(names, np.ones(10))),
        batch_size=20,
        seed=0,
        shares=dict.fromkeys(names, 1),
        batches="mixed",
        length_window=4,
    )
    pools = {name: PoolSize(10, {name: 10}) for name in names}
    units = {"embeddings": 10, "blocks.0": 5} | {f"heads.{name}": 1 for name in names}
    rates = LearningRates(OptimizerConfig(), compile_schedule(recipe, 1, 200), 1)
    table = plan_table(rates, sampler, pools, units)
    assert max(map(len, table.splitlines())) < 3 * CELL_WIDTH + 60
    phase, total = cells(rates, sampler, pools, units)
    assert phase[2] == f"embeddings blocks[0] {' '.join(f'heads.{name}' for name in names)}"
    assert phase[5] == total[5] == ", ".join(f"{name} 5 (0.50)" for name in names)
