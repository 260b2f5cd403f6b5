"""Ends a run whose ranks wait for one that does not arrive, names that rank, and saves every rank's stack.

Each rank counts the places in the code that it passes, the same ones in the same order on all ranks. A thread of its
own exchanges these heartbeats with the other ranks, through the store with which they initialized the process group. A
rank that has stayed at one place for `timeout` seconds looks at the others: one without recent heartbeats is stopped or
gone, one with a lower count did not arrive.
"""

import faulthandler
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.distributed import distributed_c10d

from mtl_dist.distributed.exit_codes import record_exit_code
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import TrainingError

HEARTBEAT_SECONDS = 1.0
"""Interval of the exchange."""
SILENT_SECONDS = 5.0
"""Age of a rank's last heartbeat beyond which its thread is taken not to run."""
SAME_PLACE_FACTOR = 4
"""Multiple of the timeout that ranks may stay at the same place, all of them: most likely that is one long step."""


class Heartbeat(NamedTuple):
    """What a rank reports to the others."""

    number: int
    """Heartbeats sent so far."""
    count: int
    """Places passed so far."""
    place: str
    """The last one of these, for messages."""
    suspended: bool
    """Whether the rank does something that may take long, such as saving."""


class Watchdog:
    """Compares this rank's progress with the heartbeats of the others."""

    def __init__(self, processes: ProcessGroup, timeout: float, folder: Path) -> None:
        """`timeout` is in seconds; stacks are written to `rank-<rank>.txt` in `folder`."""
        self._rank = processes.rank
        self._ranks = range(processes.world_size)
        self._timeout = timeout
        self._folder = folder
        self._own = Heartbeat(0, 0, "the start", False)
        self._own_since = 0.0
        """When this rank came to its place, by the monotonic clock."""
        self._last: dict[int, tuple[Heartbeat, float]] = {}
        """Last heartbeat of each rank, and when it was first seen here."""
        self._last_exchange = 0.0
        """When the last exchange with the store was complete."""
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of the code that is watched."""
        self._own_since = self._last_exchange = time.monotonic()
        self._last = dict.fromkeys(self._ranks, (self._own, self._own_since))
        threads = [threading.Thread(target=self._watch, daemon=True, name="watchdog")]
        if len(self._ranks) > 1:
            # A clone has a connection of its own: a rank that waits for a key blocks its whole connection.
            default_store: Any = distributed_c10d._get_default_store()
            store = dist.PrefixStore("watchdog", default_store.clone())
            # Not in the thread that watches: if the process that keeps the store is stopped, calls never return.
            threads.append(threading.Thread(target=self._exchange, args=(store,), daemon=True, name="heartbeats"))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(SILENT_SECONDS)

    def heartbeat(self, place: str) -> None:
        """Reports that this rank is at `place` now. Every rank passes the same places in the same order."""
        self._own = Heartbeat(0, self._own.count + 1, place, self._own.suspended)
        self._own_since = time.monotonic()

    @contextmanager
    def suspended(self, place: str) -> Iterator[None]:
        """Context of work that may take long on one rank while the others wait for it."""
        self.heartbeat(place)
        self._own = self._own._replace(suspended=True)
        try:
            yield
        finally:
            self._own = self._own._replace(suspended=False)
            self._own_since = time.monotonic()

    def _exchange(self, store: dist.Store) -> None:
        try:
            for number in itertools.count(1):
                if self._ended.wait(HEARTBEAT_SECONDS):
                    return
                store.set(str(self._rank), json.dumps(self._own._replace(number=number)._asdict()))
                for rank in self._ranks:
                    received = Heartbeat(**json.loads(store.get(str(rank)))) if store.check([str(rank)]) else None
                    if received is not None and received != self._last[rank][0]:
                        self._last[rank] = received, time.monotonic()
                self._last_exchange = time.monotonic()
        except dist.DistError:
            return  # the store is gone; the launcher will end this process, or `_watch` will

    def _watch(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            waited = time.monotonic() - self._own_since
            if waited > self._timeout and not self._own.suspended:
                missing = self._missing(waited)
                if missing:
                    self._end(missing, waited)

    def _missing(self, waited: float) -> list[int]:
        """The ranks for which the others wait; none if there is a reason to wait longer."""
        now = time.monotonic()
        if now - self._last_exchange > SILENT_SECONDS and len(self._ranks) > 1:
            return [0]  # rank 0, or its launcher, keeps the store, which does not answer
        silent = [rank for rank, (_, seen) in self._last.items() if now - seen > SILENT_SECONDS and rank != self._rank]
        if any(last.suspended for rank, (last, _) in self._last.items() if rank not in silent):
            return []
        ranks = {rank: last for rank, (last, _) in self._last.items()} | {self._rank: self._own}
        at_one_place = len({(last.count, last.place) for last in ranks.values()}) == 1
        if not silent and at_one_place and waited < SAME_PLACE_FACTOR * self._timeout:
            return []
        least = min(last.count for last in ranks.values())
        return silent or [rank for rank, last in ranks.items() if last.count == least]

    def _end(self, missing: list[int], waited: float) -> None:
        """Saves this rank's stack and ends its process; the first rank that is not missing prints the error."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rank-{self._rank}.txt").open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        speaker = min((rank for rank in self._ranks if rank not in missing), default=0)
        # The first process to end makes the launcher end the others: they need time for their stacks, and the speaker
        # for its message.
        time.sleep(HEARTBEAT_SECONDS if self._rank == speaker else 3 * HEARTBEAT_SECONDS)
        if self._rank == speaker:
            names = ", ".join(f"rank {rank} did not come past {self._last[rank][0].place!r}" for rank in missing)
            print(
                f"error: {names}; rank {speaker} has waited at {self._own.place!r} for {waited:.0f} seconds"
                f" (safety.timeout_seconds); the ranks' stacks are in {self._folder}",
                file=sys.stderr,
                flush=True,
            )
        record_exit_code(TrainingError.exit_code)
        os._exit(TrainingError.exit_code)
