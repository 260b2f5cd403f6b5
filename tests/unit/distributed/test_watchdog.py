"""Whom a watchdog misses, from what the ranks have told; that it ends real runs, the campaign on hangs shows."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mtl_dist.distributed.watchdog import PATIENCE_WITH_ALL, SILENT_SECONDS, Beat, Watchdog

TIMEOUT = 10.0
HERE = Beat(7, 20, "step 3: applying the gradient", excused=False)


def watchdog(*others: Beat, silent: tuple[int, ...] = (), mute: bool = False) -> Watchdog:
    """That of rank 0, which is at HERE, with what it has heard of ranks 1 and up; `mute`: the store does not answer."""
    processes = SimpleNamespace(rank=0, world_size=1 + len(others))
    made = Watchdog(processes, TIMEOUT, Path("stacks"))  # pyrefly: ignore
    now = time.monotonic()
    made._own = HERE
    made._heard = {
        rank: (beat, now - (SILENT_SECONDS + 1 if rank in silent else 0)) for rank, beat in enumerate((HERE, *others))
    }
    made._told = now - (SILENT_SECONDS + 1 if mute else 0)
    return made


BEHIND, AHEAD = HERE._replace(count=19, place="step 3: reading"), HERE._replace(count=21, place="step 4: reading")
ELSEWHERE, BUSY = HERE._replace(place="an evaluation"), BEHIND._replace(excused=True)


@pytest.mark.parametrize(
    ("others", "silent", "missing"),
    [
        ((BEHIND,), (), [1]),
        ((AHEAD,), (), [0]),
        ((HERE, BEHIND, HERE), (), [2]),
        ((HERE, BEHIND, HERE), (3,), [3]),  # a rank that does not run is the reason for the one behind
        ((BUSY, BEHIND), (), []),  # the others wait for one that saves
        ((BUSY,), (1,), [1]),  # it saved, and was stopped
        ((HERE, HERE), (), []),  # a long step of all
        ((ELSEWHERE,), (), [0, 1]),
    ],
)
def test_who_is_missing(others: tuple[Beat, ...], silent: tuple[int, ...], missing: list[int]) -> None:
    assert watchdog(*others, silent=silent)._missing(TIMEOUT + 1) == missing


def test_a_step_of_all_may_take_long_but_not_for_ever() -> None:
    assert watchdog(HERE)._missing(PATIENCE_WITH_ALL * TIMEOUT - 1) == []
    assert watchdog(HERE)._missing(PATIENCE_WITH_ALL * TIMEOUT + 1) == [0, 1]
    assert watchdog()._missing(PATIENCE_WITH_ALL * TIMEOUT - 1) == []
    assert watchdog()._missing(PATIENCE_WITH_ALL * TIMEOUT + 1) == [0]


def test_where_the_store_does_not_answer_its_keeper_is_missing() -> None:
    assert watchdog(HERE, mute=True)._missing(TIMEOUT + 1) == [0]
