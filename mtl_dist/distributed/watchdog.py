"""Finds out that the ranks wait for one that does not come: says which, keeps every rank's stack, ends the run.

Each rank counts the places that it passes, the same ones in the same order, and a thread of its own exchanges the
counts with the others through the store by which they met. When a rank has stood still for `timeout` seconds, it looks
at the others: one whose thread is silent is stopped or gone, one with a lower count did not arrive.
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

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""A thread that has told nothing for so long is not running."""
PATIENCE_WITH_ALL = 4
"""Times the timeout that ranks may take which all stand at the same place: a long step, more likely than not."""


class Beat(NamedTuple):
    """What a rank tells the others."""

    number: int
    """Of beats so far."""
    count: int
    """Of places passed."""
    place: str
    excused: bool
    """Whether the rank does something that may take long."""


class Watchdog:
    """Watches this rank, and the others through what they tell."""

    def __init__(self, processes: ProcessGroup, timeout: float, folder: Path) -> None:
        """`timeout` is in seconds; stacks go into `folder`, as `rank-<rank>.txt`."""
        self._rank = processes.rank
        self._ranks = range(processes.world_size)
        self._timeout = timeout
        self._folder = folder
        self._own = Beat(0, 0, "the start", False)
        self._since = 0.0
        self._heard: dict[int, tuple[Beat, float]] = {}
        """The last beat of each rank, and when it was first seen here."""
        self._told = 0.0
        """When the last exchange was complete."""
        self._ended = threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around what is watched."""
        self._since = self._told = time.monotonic()
        self._heard = dict.fromkeys(self._ranks, (self._own, self._since))
        threads = [threading.Thread(target=self._watch, daemon=True, name="watchdog")]
        if len(self._ranks) > 1:
            # A connection of its own: one that waits for a key keeps all others of its connection waiting.
            met_by: Any = distributed_c10d._get_default_store()
            store = dist.PrefixStore("watchdog", met_by.clone())
            # A thread of its own: where the keeper of the store is stopped, its answer never comes.
            threads.append(threading.Thread(target=self._exchange, args=(store,), daemon=True, name="beats"))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(SILENT_SECONDS)

    def heartbeat(self, place: str) -> None:
        """Says that this rank is at `place` now. Every rank passes the same places in the same order."""
        self._own = Beat(0, self._own.count + 1, place, self._own.excused)
        self._since = time.monotonic()

    @contextmanager
    def suspended(self, place: str) -> Iterator[None]:
        """Around what may take long on one rank, while the others wait for it."""
        self.heartbeat(place)
        self._own = self._own._replace(excused=True)
        try:
            yield
        finally:
            self._own = self._own._replace(excused=False)
            self._since = time.monotonic()

    def _exchange(self, store: dist.Store) -> None:
        try:
            for number in itertools.count(1):
                if self._ended.wait(BEAT_SECONDS):
                    return
                store.set(str(self._rank), json.dumps(self._own._replace(number=number)._asdict()))
                for rank in self._ranks:
                    beat = Beat(**json.loads(store.get(str(rank)))) if store.check([str(rank)]) else None
                    if beat is not None and beat != self._heard[rank][0]:
                        self._heard[rank] = beat, time.monotonic()
                self._told = time.monotonic()
        except dist.DistError:
            return  # its keeper is gone; the launcher will end this process, or `_watch` will

    def _watch(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            stood = time.monotonic() - self._since
            if stood > self._timeout and not self._own.excused:
                missing = self._missing(stood)
                if missing:
                    self._end(missing, stood)

    def _missing(self, stood: float) -> list[int]:
        """The ranks for which the others wait; none where there is a reason to wait on."""
        now = time.monotonic()
        if now - self._told > SILENT_SECONDS and len(self._ranks) > 1:
            return [0]  # with the store, which the first rank keeps, or its launcher
        silent = [rank for rank, (_, at) in self._heard.items() if now - at > SILENT_SECONDS and rank != self._rank]
        if any(beat.excused for rank, (beat, _) in self._heard.items() if rank not in silent):
            return []
        beats = {rank: beat for rank, (beat, _) in self._heard.items()} | {self._rank: self._own}
        at_one_place = len({(beat.count, beat.place) for beat in beats.values()}) == 1
        if not silent and at_one_place and stood < PATIENCE_WITH_ALL * self._timeout:
            return []
        least = min(beat.count for beat in beats.values())
        return silent or [rank for rank, beat in beats.items() if beat.count == least]

    def _end(self, missing: list[int], stood: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rank-{self._rank}.txt").open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        # Of those that are there the first speaks; the others give it the time to, and for stacks of their own.
        speaker = min((rank for rank in self._ranks if rank not in missing), default=0)
        time.sleep(BEAT_SECONDS if self._rank == speaker else 3 * BEAT_SECONDS)
        if self._rank == speaker:
            names = ", ".join(f"rank {rank} did not come past {self._heard[rank][0].place!r}" for rank in missing)
            print(
                f"error: {names}; rank {speaker} has waited at {self._own.place!r} for {stood:.0f} seconds"
                f" (safety.timeout_seconds); the ranks' stacks are in {self._folder}",
                file=sys.stderr,
                flush=True,
            )
        record_exit_code(TrainingError.exit_code)
        os._exit(TrainingError.exit_code)
