"""Communication among processes: one process here, and two real ones that write their results to files."""

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


ROUNDS = [(0, 0), (0, 2), (1, 0), (0, 1), (0, 0), (0, 0)]
"""Values of both ranks, round by round."""


def run_cases(rank: int, folder: str) -> None:
    """Runs all cases on one rank. A collective that one rank calls alone hangs here until the fixture kills it."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    processes = ProcessGroup(rank, WORLD, rank)

    def compare(*by_rank: dict[str, str]) -> list[object]:
        return outcome(lambda: require_equal(processes, "start", by_rank[rank]))

    def raising(error: Exception | None = None) -> list[object]:
        def work() -> None:
            with processes.raise_together():
                if error is not None:
                    raise error

        return outcome(work)

    outcomes = {
        "gather": processes.all_gather({"rank": rank, "main": processes.is_main}),
        "equal": compare({"a": "1", "b": "2"}, {"a": "1", "b": "2"}),
        "value": compare({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "c": "9"}),
        "name": compare({"a": "1"}, {"a": "1", "b": "2"}),
        "none fails": raising(),
        "first fails": raising(UserError("zero") if rank == 0 else None),
        "second fails": raising(TrainingError("one") if rank == 1 else None),
        "both fail": raising(UserError("zero") if rank == 0 else TrainingError("one")),
    }
    greatest = processes.async_max()
    outcomes["maxima"] = [greatest.reduce(values[rank]) for values in ROUNDS]
    outcomes["main process"] = outcome(lambda: processes.on_main_process(lambda: Path(folder, f"main {rank}").touch()))
    outcomes["main process fails"] = outcome(lambda: processes.on_main_process(lambda: fail(UserError("zero"))))
    Path(folder, f"{rank}.json").write_text(json.dumps(outcomes))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank, how each case ended."""
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=run_cases, args=(rank, str(folder))) for rank in range(WORLD)]
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


def test_equal_digests_pass(outcomes: list[dict[str, Any]]) -> None:
    assert [of_rank["equal"] for of_rank in outcomes] == [["returned", None]] * WORLD


def test_a_difference_is_named_on_all_ranks(outcomes: list[dict[str, Any]]) -> None:
    value = "start: rank 1 differs from rank 0 in b (2 differences in all)"
    name = "start: rank 1 differs from rank 0 in b (1 differences in all)"
    for of_rank in outcomes:
        assert of_rank["value"] == ["TrainingError", value]
        assert of_rank["name"] == ["TrainingError", name]


def test_raise_together_without_an_error_passes(outcomes: list[dict[str, Any]]) -> None:
    assert [of_rank["none fails"] for of_rank in outcomes] == [["returned", None]] * WORLD


def test_an_error_of_one_rank_is_raised_on_all(outcomes: list[dict[str, Any]]) -> None:
    for of_rank in outcomes:
        assert of_rank["first fails"] == ["UserError", "zero"]
        assert of_rank["second fails"] == ["TrainingError", "one"]
        assert of_rank["both fail"] == ["UserError", "zero"]


def test_async_max_returns_the_maximum_of_the_previous_round(outcomes: list[dict[str, Any]]) -> None:
    for of_rank in outcomes:
        assert of_rank["maxima"] == [0, *map(max, ROUNDS[:-1])]


def test_only_the_main_process_works(outcomes: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    for of_rank in outcomes:
        assert of_rank["main process"] == ["returned", None]
        assert of_rank["main process fails"] == ["UserError", "zero"]
    assert {path.name for path in tmp_path_factory.getbasetemp().glob("processes*/main *")} == {"main 0"}


def test_async_max_of_one_process_is_not_late() -> None:
    greatest = ProcessGroup().async_max()
    assert [greatest.reduce(value) for value in (0, 2, 1)] == [0, 2, 1]


def test_one_process_needs_no_group() -> None:
    processes = ProcessGroup()
    assert processes.is_main
    assert processes.is_local_main
    assert processes.all_gather("value") == ["value"]
    error = UserError("mine")
    with pytest.raises(UserError) as raised, processes.raise_together():
        raise error
    assert raised.value is error


def test_other_errors_are_raised_at_once() -> None:
    """A defect shows with its traceback; the launcher ends the other processes."""
    with pytest.raises(ZeroDivisionError), ProcessGroup().raise_together():
        raise ZeroDivisionError


def test_each_machine_has_a_local_main_process() -> None:
    later = ProcessGroup(rank=4, world_size=1, local_rank=0)
    assert later.is_local_main
    assert not later.is_main
    assert not ProcessGroup(rank=5, world_size=1, local_rank=1).is_local_main
