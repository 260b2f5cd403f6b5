"""Compilation of a recipe's phases into steps and units."""

import dataclasses
from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.config.recipe import ModelConfig, PhaseConfig, Recipe, TaskConfig, UntilConfig, default_phases
from mtl_dist.config.selectors import select
from mtl_dist.errors import UserError
from mtl_dist.schedule.phases import Phase, Schedule, compile_schedule, format_units, phase_steps, trainable_units

TASKS = ("topic", "sentiment")
HEADS = ("heads.topic", "heads.sentiment")
BLOCKS = tuple(f"blocks.{index}" for index in range(12))


def recipe(*phases: PhaseConfig, freeze: tuple[str, ...] = (), batch_size: int = 8) -> Recipe:
    """The seed design's phases unless others are given."""
    return Recipe(
        batch_size=batch_size,
        model=ModelConfig(freeze=list(freeze)),
        tasks={task: TaskConfig(path="json") for task in TASKS},
        phases=list(phases) or default_phases(),
    )


def units_of(schedule: Schedule) -> list[tuple[str, ...]]:
    return [phase.units for phase in schedule.phases]


def refusal(of: Recipe, num_blocks: int = 12) -> str:
    with pytest.raises(UserError) as error:
        compile_schedule(of, num_blocks, 100)
    return str(error.value)


def test_the_seeds_three_phases() -> None:
    schedule = compile_schedule(recipe(), 12, 100)
    upper = BLOCKS[-4:] + HEADS
    everything = ("embeddings", *BLOCKS, *HEADS)
    # 100 rows in batches of 8 are 13 steps.
    assert schedule.phases == (
        Phase("heads", 0, 13, HEADS, ()),
        Phase("upper", 13, 26, upper, BLOCKS[-4:]),
        Phase("all", 26, 39, everything, ("embeddings", *BLOCKS[:-4])),
    )
    assert schedule.total_steps == 39
    assert [phase.steps for phase in schedule.phases] == [13, 13, 13]


def test_scenario_everything_frozen() -> None:
    schedule = compile_schedule(recipe(freeze=("all",)), 12, 100)
    assert schedule.phases == ()
    assert schedule.total_steps == 0
    assert compile_schedule(recipe(freeze=("backbone", "heads")), 12, 100) == schedule


def test_scenario_backbone_frozen() -> None:
    schedule = compile_schedule(recipe(freeze=("backbone",)), 12, 100)
    assert units_of(schedule) == [HEADS] * 3
    assert [phase.unfrozen for phase in schedule.phases] == [()] * 3


def test_scenario_one_head_frozen() -> None:
    schedule = compile_schedule(recipe(freeze=("heads.sentiment",)), 12, 100)
    whole = compile_schedule(recipe(), 12, 100)
    assert units_of(schedule) == [
        tuple(unit for unit in units if unit != "heads.sentiment") for units in units_of(whole)
    ]
    assert [phase.steps for phase in schedule.phases] == [phase.steps for phase in whole.phases]


def test_freezing_everything_that_a_phase_trains_is_refused() -> None:
    message = "phases[0].train: model.freeze leaves phase 'heads' nothing to train"
    assert refusal(recipe(freeze=("heads",))) == message


@pytest.mark.parametrize(
    ("epochs", "rows", "batch_size", "steps"),
    [(1.0, 96, 8, 12), (1.0, 97, 8, 13), (0.5, 97, 8, 7), (3.0, 5, 8, 2), (0.001, 5, 8, 1), (1.1, 100, 10, 11)],
)
def test_epochs_are_steps_rounded_up(epochs: float, rows: int, batch_size: int, steps: int) -> None:
    assert phase_steps(PhaseConfig(name="a", epochs=epochs), rows, batch_size) == steps


@settings(deadline=None)
@given(st.decimals("0.01", "50", places=2), st.integers(1, 10**7), st.integers(1, 4096))
def test_epochs_are_exact_decimals(epochs: Decimal, rows: int, batch_size: int) -> None:
    """In binary, 1.1 times 100 rows are a little more than 110."""
    exact = (epochs * rows / batch_size).to_integral_value(ROUND_CEILING)
    assert phase_steps(PhaseConfig(name="a", epochs=float(epochs)), rows, batch_size) == exact


def test_steps_may_be_given_instead() -> None:
    phases = [
        PhaseConfig(name="a", train=["heads"], steps=5),
        PhaseConfig(name="b", train=["all"], epochs=2),
        PhaseConfig(name="c", train=["all"], steps=1),
    ]
    schedule = compile_schedule(recipe(*phases), 12, 40)
    assert [(phase.name, phase.start, phase.stop) for phase in schedule.phases] == [
        ("a", 0, 5),
        ("b", 5, 15),
        ("c", 15, 16),
    ]


def test_unfrozen_units_are_those_that_were_frozen_in_the_previous_phase() -> None:
    trains = (["all"], ["heads.topic"], ["heads", "blocks[0]"], ["heads", "blocks[0]"], ["embeddings", "blocks[0]"])
    schedule = compile_schedule(
        recipe(*(PhaseConfig(name=str(i), train=t, steps=1) for i, t in enumerate(trains))), 12, 40
    )
    assert [phase.unfrozen for phase in schedule.phases] == [
        (),
        (),
        ("blocks.0", "heads.sentiment"),
        (),
        ("embeddings",),
    ]


def test_overlapping_selectors_are_refused() -> None:
    one = PhaseConfig(name="one", train=["heads"], steps=1)
    message = refusal(recipe(one, PhaseConfig(name="two", train=["blocks[-3:]", "blocks[8:10]"], steps=1)))
    assert message == "phases[1].train: blocks[-3:] and blocks[8:10] both name blocks.9"


@pytest.mark.parametrize("selector", ["blocks[6]", "blocks[-7:]"])
def test_blocks_that_the_encoder_lacks_are_refused(selector: str) -> None:
    in_phase = recipe(
        PhaseConfig(name="one", train=["heads"], steps=1), PhaseConfig(name="two", train=[selector], steps=1)
    )
    assert refusal(in_phase, 6) == f"phases[1].train: {selector}: the encoder has 6 blocks, 0 to 5"
    assert refusal(recipe(freeze=(selector,)), 6) == f"model.freeze: {selector}: the encoder has 6 blocks, 0 to 5"
    assert compile_schedule(in_phase, 7, 40).total_steps == 2


def test_trainable_units_need_no_rows() -> None:
    assert trainable_units(recipe(freeze=("blocks[0]",)), 12) == units_of(
        compile_schedule(recipe(freeze=("blocks[0]",)), 12, 1)
    )
    assert trainable_units(recipe(freeze=("all",)), 12) == [(), (), ()]


def test_the_digest_depends_on_every_field() -> None:
    phase = Phase("a", 0, 2, ("blocks.0",), ())
    schedules = [
        Schedule(()),
        Schedule((phase,)),
        Schedule((phase, phase)),
        *(
            Schedule((other,))
            for other in (
                dataclasses.replace(phase, name="b"),
                dataclasses.replace(phase, start=1),
                dataclasses.replace(phase, stop=3),
                dataclasses.replace(phase, units=("blocks.1",)),
                dataclasses.replace(phase, unfrozen=("blocks.0",)),
                dataclasses.replace(phase, until=UntilConfig(metric="loss")),
                dataclasses.replace(phase, until=UntilConfig(metric="accuracy")),
                dataclasses.replace(phase, early=1),
            )
        ),
    ]
    assert len({schedule.digest for schedule in schedules}) == len(schedules)
    assert compile_schedule(recipe(), 12, 100).digest == compile_schedule(recipe(), 12, 100).digest


def spans(schedule: Schedule) -> list[tuple[int, int, int]]:
    return [(phase.start, phase.stop, phase.early) for phase in schedule.phases]


def test_phases_after_an_early_stop_start_earlier() -> None:
    schedule = compile_schedule(recipe(), 12, 100)
    assert spans(schedule) == [(0, 13, 0), (13, 26, 0), (26, 39, 0)]
    assert schedule.with_early_stops({}) == schedule
    assert spans(schedule.with_early_stops({"heads": 10})) == [(0, 10, 0), (10, 23, 3), (23, 36, 3)]
    # The second stop is a step of the run as it was, in which the first phase was short.
    assert spans(schedule.with_early_stops({"heads": 10, "upper": 15})) == [(0, 10, 0), (10, 15, 3), (15, 28, 11)]
    assert spans(schedule.with_early_stops({"all": 30})) == [(0, 13, 0), (13, 26, 0), (26, 30, 0)]
    assert Schedule(()).with_early_stops({}) == Schedule(())


@settings(deadline=None)
@given(st.data())
def test_early_stops_change_only_the_steps_of_phases(data: st.DataObject) -> None:
    """Against lists of (phase, step in the phase), without the steps that early stops leave out."""
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    schedule = compile_schedule(
        recipe(*(PhaseConfig(name=str(i), train=["all"], steps=n) for i, n in enumerate(lengths))), 12, 9
    )
    kept = [data.draw(st.integers(1, length)) for length in lengths]
    stops = {str(i): sum(kept[: i + 1]) for i in range(len(lengths)) if kept[i] < lengths[i]}
    stopped = schedule.with_early_stops(stops)
    planned = [(i, step) for i, length in enumerate(lengths) for step in range(length)]
    expected = [(i, step) for i, length in enumerate(kept) for step in range(length)]
    assert stopped.total_steps == len(expected)
    assert [planned[stopped.planned(step)] for step in range(stopped.total_steps)] == expected
    assert [int(stopped.phase_at(step).name) for step in range(stopped.total_steps)] == [i for i, _ in expected]
    assert (stopped == schedule) == (not stops)
    assert [(phase.name, phase.units, phase.unfrozen) for phase in stopped.phases] == [
        (phase.name, phase.units, phase.unfrozen) for phase in schedule.phases
    ]
    one_by_one = schedule
    for name, stop in stops.items():
        one_by_one = one_by_one.with_early_stops({name: stop})
    assert one_by_one == stopped


def test_measurements_count_from_the_phases_start_and_not_at_its_end() -> None:
    until = UntilConfig(metric="loss", every_steps=3)
    phase = Phase("a", 5, 14, ("blocks.0",), (), until)
    assert [done for done in range(6, 15) if phase.measures_after(done)] == [8, 11]
    assert not any(dataclasses.replace(phase, until=None).measures_after(done) for done in range(6, 15))
    second = PhaseConfig(name="b", train=["all"], steps=2, until=until)
    compiled = compile_schedule(recipe(PhaseConfig(name="a", train=["heads"], steps=2), second), 12, 9)
    assert [one.until for one in compiled.phases] == [None, until]


@pytest.mark.parametrize(
    ("units", "text"),
    [
        ((), ""),
        (("blocks.3",), "blocks[3]"),
        (("blocks.2", "blocks.3", "blocks.4", "heads.domain"), "blocks[2:5] heads.domain"),
        (("embeddings", "blocks.0", "blocks.1", "blocks.3"), "embeddings blocks[0:2] blocks[3]"),
        (("blocks.9", "blocks.10", "blocks.11"), "blocks[9:12]"),
    ],
)
def test_units_as_text(units: tuple[str, ...], text: str) -> None:
    assert format_units(units) == text


@settings(deadline=None)
@given(st.sets(st.sampled_from(("embeddings", *BLOCKS, *HEADS))))
def test_units_as_text_are_selectors_of_the_same_units(chosen: set[str]) -> None:
    units = tuple(unit for unit in ("embeddings", *BLOCKS, *HEADS) if unit in chosen)
    assert select(format_units(units).split(), TASKS, 12, "train") == units
