"""Which ranks a watchdog finds missing, from their heartbeats; the campaign on hangs tests that it ends real runs."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mtl_dist.distributed.watchdog import SAME_PLACE_FACTOR, SILENT_SECONDS, Heartbeat, Watchdog

TIMEOUT = 10.0
HERE = Heartbeat(7, 20, "step 3: applying the gradient", suspended=False)


def watchdog(*others: Heartbeat, silent: tuple[int, ...] = (), store_answers: bool = True) -> Watchdog:
    """The watchdog of rank 0, which is at HERE, with the last heartbeats of ranks 1 and up."""
    processes = SimpleNamespace(rank=0, world_size=1 + len(others))
    made = Watchdog(processes, TIMEOUT, Path("stacks"))  # pyrefly: ignore
    now = time.monotonic()
    made._own = HERE
    made._last = {
        rank: (heartbeat, now - (SILENT_SECONDS + 1 if rank in silent else 0))
        for rank, heartbeat in enumerate((HERE, *others))
    }
    made._last_exchange = now - (0 if store_answers else SILENT_SECONDS + 1)
    return made


BEHIND, AHEAD = HERE._replace(count=19, place="step 3: reading"), HERE._replace(count=21, place="step 4: reading")
ELSEWHERE, BUSY = HERE._replace(place="an evaluation"), BEHIND._replace(suspended=True)


@pytest.mark.parametrize(
    ("others", "silent", "missing"),
    [
        ((BEHIND,), (), [1]),
        ((AHEAD,), (), [0]),
        ((HERE, BEHIND, HERE), (), [2]),
        ((HERE, BEHIND, HERE), (3,), [3]),  # a rank that does not run is the reason for the one behind
        ((BUSY, BEHIND), (), []),  # the others wait for a rank that saves
        ((BUSY,), (1,), [1]),  # it was saving when it was stopped
        ((HERE, HERE), (), []),  # a long step of all ranks
        ((ELSEWHERE,), (), [0, 1]),
    ],
)
def test_missing_ranks(others: tuple[Heartbeat, ...], silent: tuple[int, ...], missing: list[int]) -> None:
    assert watchdog(*others, silent=silent)._missing(TIMEOUT + 1) == missing


def test_a_step_of_all_ranks_may_take_long_but_not_forever() -> None:
    assert watchdog(HERE)._missing(SAME_PLACE_FACTOR * TIMEOUT - 1) == []
    assert watchdog(HERE)._missing(SAME_PLACE_FACTOR * TIMEOUT + 1) == [0, 1]
    assert watchdog()._missing(SAME_PLACE_FACTOR * TIMEOUT - 1) == []
    assert watchdog()._missing(SAME_PLACE_FACTOR * TIMEOUT + 1) == [0]


def test_rank_0_is_missing_if_the_store_does_not_answer() -> None:
    assert watchdog(HERE, store_answers=False)._missing(TIMEOUT + 1) == [0]
