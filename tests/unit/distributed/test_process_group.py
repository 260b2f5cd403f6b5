"""What processes say to each other: one process here, and two real ones that leave what they saw in files."""

import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from mtl_dist.distributed.consistency import require_equal
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import TrainingError, UserError

WORLD = 2


def outcome(work: Callable[[], object]) -> list[object]:
    """What `work` returned, or the class and message of its error."""
    try:
        return ["returned", work()]
    except (UserError, TrainingError) as error:
        return [type(error).__name__, str(error)]


def fail(error: Exception) -> None:
    raise error


VOTES = [(0, 0), (0, 2), (1, 0), (0, 1), (0, 0), (0, 0)]
"""Wishes of both ranks, round by round."""


def talk(rank: int, folder: str) -> None:
    """All cases on one rank; a call that one rank makes alone would hang here, and the fixture would stop it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    processes = ProcessGroup(rank, WORLD, rank)

    def compare(*by_rank: dict[str, str]) -> list[object]:
        return outcome(lambda: require_equal(processes, "start", by_rank[rank]))

    def work(*by_rank: Callable[[], object]) -> list[object]:
        return outcome(lambda: processes.together(by_rank[rank]))

    outcomes = {
        "gather": processes.all_gather({"rank": rank, "main": processes.is_main}),
        "equal": compare({"a": "1", "b": "2"}, {"a": "1", "b": "2"}),
        "value": compare({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "c": "9"}),
        "name": compare({"a": "1"}, {"a": "1", "b": "2"}),
        "together": work(lambda: "zero", lambda: "one"),
        "first fails": work(lambda: fail(UserError("zero")), lambda: "one"),
        "second fails": work(lambda: "zero", lambda: fail(TrainingError("one"))),
        "both fail": work(lambda: fail(UserError("zero")), lambda: fail(TrainingError("one"))),
    }
    vote = processes.async_max()
    outcomes["votes"] = [vote.reduce(wish[rank]) for wish in VOTES]
    outcomes["on first"] = outcome(lambda: processes.on_main_process(lambda: Path(folder, f"first {rank}").touch()))
    outcomes["first fails alone"] = outcome(lambda: processes.on_main_process(lambda: fail(UserError("zero"))))
    Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank, how each case ended."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=talk, args=(rank, str(folder))) for rank in range(WORLD)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=300)
        process.kill()  # where it hangs
        process.join()
    assert [process.exitcode for process in ranks] == [0] * WORLD
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]


def test_values_are_gathered_in_rank_order(outcomes: list[dict[str, Any]]) -> None:
    expected = [{"rank": 0, "main": True}, {"rank": 1, "main": False}]
    assert [of_rank["gather"] for of_rank in outcomes] == [expected] * WORLD


def test_equal_digests_let_all_go_on(outcomes: list[dict[str, Any]]) -> None:
    assert [of_rank["equal"] for of_rank in outcomes] == [["returned", None]] * WORLD


def test_a_difference_stops_all_with_its_name(outcomes: list[dict[str, Any]]) -> None:
    value = "start: rank 1 differs from rank 0 in b (2 differences in all)"
    name = "start: rank 1 differs from rank 0 in b (1 differences in all)"
    for of_rank in outcomes:
        assert of_rank["value"] == ["TrainingError", value]
        assert of_rank["name"] == ["TrainingError", name]


def test_work_is_done_by_each(outcomes: list[dict[str, Any]]) -> None:
    assert [of_rank["together"] for of_rank in outcomes] == [["returned", "zero"], ["returned", "one"]]


def test_an_error_of_one_is_raised_by_all(outcomes: list[dict[str, Any]]) -> None:
    for of_rank in outcomes:
        assert of_rank["first fails"] == ["UserError", "zero"]
        assert of_rank["second fails"] == ["TrainingError", "one"]
        assert of_rank["both fail"] == ["UserError", "zero"]


def test_the_greatest_wish_of_a_round_is_the_outcome_of_the_next(outcomes: list[dict[str, Any]]) -> None:
    for of_rank in outcomes:
        assert of_rank["votes"] == [0, *map(max, VOTES[:-1])]


def test_the_first_works_for_all(outcomes: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    for of_rank in outcomes:
        assert of_rank["on first"] == ["returned", None]
        assert of_rank["first fails alone"] == ["UserError", "zero"]
    assert {path.name for path in tmp_path_factory.getbasetemp().glob("processes*/first *")} == {"first 0"}


def test_alone_a_wish_is_granted_at_once() -> None:
    vote = ProcessGroup().async_max()
    assert [vote.reduce(wish) for wish in (0, 2, 1)] == [0, 2, 1]


def test_one_process_needs_no_group() -> None:
    processes = ProcessGroup()
    assert processes.is_main
    assert processes.is_local_main
    assert processes.all_gather("value") == ["value"]
    assert processes.together(lambda: 3) == 3
    error = UserError("mine")
    with pytest.raises(UserError) as raised:
        processes.together(lambda: fail(error))
    assert raised.value is error


def test_other_errors_are_not_held_back() -> None:
    """A fault of the program shows with its traceback; the launcher ends the other processes."""
    with pytest.raises(ZeroDivisionError):
        ProcessGroup().together(lambda: 1 / 0)


def test_a_machine_has_a_first_process_of_its_own() -> None:
    later = ProcessGroup(rank=4, world_size=1, local_rank=0)
    assert later.is_local_main
    assert not later.is_main
    assert not ProcessGroup(rank=5, world_size=1, local_rank=1).is_local_main
