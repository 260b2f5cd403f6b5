"""Finds out that the ranks wait for one that does not come: says which, keeps every rank's stack, ends the run.

Each rank counts the places that it passes, the same ones in the same order, and a thread of its own tells the others
the count through the store by which they met. When a rank has stood still for `timeout` seconds, it writes its stack
down and looks at the others: a rank whose thread is silent is stopped or gone, one with a lower count did not arrive.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from mtl_dist.errors import TrainingError
from mtl_dist.processes import Processes

BEAT_SECONDS = 1.0
SILENT_SECONDS = 5.0
"""A thread that has told nothing for so long is not running."""
PATIENCE_WITH_ALL = 4
"""Times the timeout that ranks may take which all stand at the same place: a long step, more likely than not."""


@dataclass(frozen=True)
class Beat:
    """What a rank tells the others."""

    number: int
    """Of beats so far."""
    count: int
    """Of places passed."""
    place: str
    excused: bool
    """Whether the rank does something that may take long."""


class Watchdog:
    """Watches this rank, and the others through it. Does nothing until `start`."""

    def __init__(self, processes: Processes, timeout: float, folder: Path) -> None:
        """`timeout` is in seconds; stacks go into `folder`, as `rank-<rank>.txt`."""
        self._processes = processes
        self._timeout = timeout
        self._folder = folder
        self._count = 0
        self._place = "the start"
        self._since = time.monotonic()
        self._excused = False
        self._beats = 0
        self._ended = threading.Event()
        self._store: Any = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around what is watched."""
        if self._processes.world_size > 1:
            # A connection of its own: one that waits for a key keeps all others of its connection waiting.
            met_by: Any = distributed_c10d._get_default_store()
            self._store = dist.PrefixStore("watchdog", met_by.clone())
        self._since = time.monotonic()
        thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def passing(self, place: str) -> None:
        """Says that this rank is at `place` now. Every rank passes the same places in the same order."""
        self._count += 1
        self._place = place
        self._since = time.monotonic()

    @contextmanager
    def excusing(self, place: str) -> Iterator[None]:
        """Around what may take long on one rank, while the others wait for it."""
        self.passing(place)
        self._excused = True
        try:
            yield
        finally:
            self._excused = False
            self._since = time.monotonic()

    def _watch(self) -> None:
        try:
            while not self._ended.wait(BEAT_SECONDS):
                self._tell()
                if not self._excused and time.monotonic() - self._since > self._timeout:
                    self._look_around()
        except dist.DistError:
            return  # who kept the store is gone, and the launcher is about to end this process as well

    def _tell(self) -> None:
        self._beats += 1
        if self._store is not None:
            beat = Beat(self._beats, self._count, self._place, self._excused)
            self._store.set(str(self._processes.rank), json.dumps(asdict(beat)))

    def _look_around(self) -> None:
        """Ends the run if a rank is missing; returns if there is a reason to wait on."""
        first = self._told()
        deadline = time.monotonic() + SILENT_SECONDS
        while time.monotonic() < deadline:
            if self._ended.wait(BEAT_SECONDS):
                return
            self._tell()
        beats = self._told()
        silent = [rank for rank, beat in beats.items() if beat == first.get(rank)]
        if any(beat.excused for rank, beat in beats.items() if rank not in silent):
            return
        stood = time.monotonic() - self._since
        counts = {rank: beat.count for rank, beat in beats.items()}
        late = [rank for rank, count in counts.items() if count == min(counts.values())]
        if stood <= self._timeout or (
            not silent and len(late) == len(counts) and stood < PATIENCE_WITH_ALL * self._timeout
        ):
            return
        self._end(silent or late, beats, stood)

    def _told(self) -> dict[int, Beat]:
        """The last beat of every rank that has told any."""
        if self._store is None:
            return {0: Beat(self._beats, self._count, self._place, self._excused)}
        ranks = [rank for rank in range(self._processes.world_size) if self._store.check([str(rank)])]
        return {rank: Beat(**json.loads(self._store.get(str(rank)))) for rank in ranks}

    def _end(self, missing: list[int], beats: dict[int, Beat], stood: float) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        stacks = self._folder / f"rank-{self._processes.rank}.txt"
        with stacks.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        # Of those that are there, the first speaks; the others give it the time to, and to write their own stacks.
        speaker = min(rank for rank in beats if len(missing) == len(beats) or rank not in missing)
        time.sleep(BEAT_SECONDS if self._processes.rank == speaker else 3 * BEAT_SECONDS)
        if self._processes.rank == speaker:
            names = ", ".join(f"rank {rank} did not come past {beats[rank].place!r}" for rank in missing)
            print(
                f"error: {names}; rank {speaker} has waited at {self._place!r} for {stood:.0f} seconds"
                f" (safety.timeout_seconds); every rank's stack is in {self._folder}",
                file=sys.stderr,
                flush=True,
            )
        os._exit(TrainingError.exit_code)
