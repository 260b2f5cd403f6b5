"""From (seed, step) to the global batch of that step, without state: any step is answered at once, in any order.

Three functions follow each other: how many examples of each task a step draws (`cumulative_draws`), which rows these
are (`permutation.shuffled`), and how the rows of a window of steps are dealt to its steps by length (`Plan`).
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Literal

import numpy as np

from mtl_dist.config.recipe import SamplingConfig
from mtl_dist.schedule.index_shuffle import shuffled


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The examples of one optimizer step, longest first; like lengths are ordered by task, then row."""

    step: int
    """Counted from 0."""
    task_ids: np.ndarray
    """[B] int64: each example's task, by its place in the recipe."""
    rows: np.ndarray
    """[B] int64: each example's row in the task's training split."""
    lengths: np.ndarray
    """[B] int32: each example's tokens."""
    counts: np.ndarray
    """[num_tasks] int64: examples of each task."""

    @cached_property
    def digest(self) -> str:
        """BLAKE2b-128 of (task, row) of all examples in order."""
        pairs = np.stack([self.task_ids, self.rows], axis=1).astype("<i8")
        return hashlib.blake2b(pairs.tobytes(), digest_size=16).hexdigest()


def task_shares(sampling: SamplingConfig, sizes: Mapping[str, int]) -> dict[str, Fraction]:
    """Each task's exact share of the draws; they sum to 1. `sizes` are training rows by task."""
    weights: Mapping[str, float]
    match sampling.strategy:
        case "uniform":
            weights = dict.fromkeys(sizes, 1)
        case "proportional":
            weights = sizes
        case "weighted":
            weights = sampling.weights
    exact = {task: _exact(weights[task]) for task in sizes}
    return {task: weight / sum(exact.values()) for task, weight in exact.items()}


def _exact(number: float | Fraction) -> Fraction:
    """The number as it is written: 0.1 is a tenth, not the nearest binary fraction."""
    return Fraction(str(number))


def cumulative_draws(weights: Sequence[int], total: int) -> list[int]:
    """How many of the first `total` draws go to each task, in closed form and exact integers.

    The tasks are halved again and again, and each node's draws are split between its halves by rounding. A node's
    count grows by at most 1 with each draw, so no count ever falls; each level of the tree adds at most 1/2 to a
    task's distance from its exact share. Any stretch of draws is thus within ceil(log2(tasks)) of it.
    """
    if len(weights) == 1:
        return [total]
    middle = len(weights) // 2
    left, both = sum(weights[:middle]), sum(weights)
    to_left = (2 * total * left + both) // (2 * both)
    return cumulative_draws(weights[:middle], to_left) + cumulative_draws(weights[middle:], total - to_left)


@dataclass(frozen=True)
class _Window:
    """The batches of `length_window` steps: arrays of [steps, B], each line in the order of GlobalBatch."""

    index: int
    task_ids: np.ndarray
    rows: np.ndarray
    lengths: np.ndarray


class TaskBalancedSampler:
    """Which examples train the model at which step: a function of its arguments and the step alone.

    Quotas: over any stretch of steps a task's draws are within ceil(log2(tasks)) of its exact share, counted in
    examples for `mixed` batches and in whole batches for `one_task`. With uniform shares and at least as many examples
    as tasks, every mixed batch has all tasks.

    Passes: a task's draws run through its rows in random order, all of them before any comes again. So after every
    step the numbers of times that two of its rows have been drawn differ by at most 1.

    Lengths: within aligned windows of `length_window` steps rows change places with others of the same task and pass,
    so that a step has rows of like length: each step has a random rank among the window's steps, the same for all
    tasks, and gets its quota of the longest rows if it ranks first. Windows are counted from step 0, and nothing
    depends on how long the run is.
    """

    def __init__(
        self,
        lengths: Mapping[str, np.ndarray],
        *,
        batch_size: int,
        seed: int,
        shares: Mapping[str, float | Fraction],
        batches: Literal["mixed", "one_task"],
        length_window: int,
    ) -> None:
        """`lengths`: tokens per training row, [rows] of integers, by task in the recipe's order; may be memory-mapped.

        Only the rows of one window are read at a time. `batch_size` is in examples, `length_window` in steps;
        `shares` are above 0 and need not sum to 1.
        """
        self._lengths = dict(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._batches = batches
        self._length_window = length_window
        exact = [_exact(shares[task]) for task in lengths]
        unit = math.lcm(*(share.denominator for share in exact))
        self._weights = [int(share * unit) for share in exact]
        self._last_window: _Window | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the settings and the number of rows of each task; what the rows hold is not read."""
        sizes = {task: len(lengths) for task, lengths in self._lengths.items()}
        settings = [sizes, self._weights, self._batch_size, self._seed, self._batches, self._length_window]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def draws(self, start: int, stop: int) -> dict[str, int]:
        """Examples of each task in the steps from `start` up to `stop`, in closed form."""
        counts = zip(self._drawn_before(start), self._drawn_before(stop), strict=True)
        return {task: after - before for task, (before, after) in zip(self._lengths, counts, strict=True)}

    def batch(self, step: int) -> GlobalBatch:
        """The global batch of `step`. Steps of one window share its work if they are asked for one after another."""
        index, line = divmod(step, self._length_window)
        window = self._last_window
        if window is None or window.index != index:
            window = self._last_window = self._window(index)
        task_ids, rows = window.task_ids[line].copy(), window.rows[line].copy()
        return GlobalBatch(
            step=step,
            task_ids=task_ids,
            rows=rows,
            lengths=window.lengths[line].copy(),
            counts=np.bincount(task_ids, minlength=len(self._lengths)),
        )

    def _drawn_before(self, step: int) -> list[int]:
        """Examples of each task in all steps before `step`."""
        if self._batches == "mixed":
            return cumulative_draws(self._weights, step * self._batch_size)
        return [batches * self._batch_size for batches in cumulative_draws(self._weights, step)]

    def _window(self, index: int) -> _Window:
        steps = self._length_window
        ranks = shuffled(index * steps, (index + 1) * steps, steps, self._seed, "ranks of the steps")
        drawn = [self._drawn_before(step) for step in range(index * steps, (index + 1) * steps + 1)]
        parts = [
            self._dealt(task, task_id, [before[task_id] for before in drawn], ranks)
            for task_id, task in enumerate(self._lengths)
        ]
        lines, task_ids, rows, lengths = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        order = np.lexsort((rows, task_ids, -lengths, lines)).reshape(steps, self._batch_size)
        return _Window(index, task_ids[order], rows[order], lengths[order])

    def _dealt(self, task: str, task_id: int, drawn: Sequence[int], ranks: np.ndarray) -> tuple[np.ndarray, ...]:
        """A task's examples in a window: their step's place in the window, task id, row and length, [draws] each.

        `drawn` are the task's draws before each of the window's steps and after the last one.
        """
        lines = np.repeat(np.arange(len(ranks)), np.diff(drawn))
        passes = np.arange(drawn[0], drawn[-1]) // len(self._lengths[task])
        rows = shuffled(drawn[0], drawn[-1], len(self._lengths[task]), self._seed, f"rows of {task}")
        lengths = self._lengths[task][rows].astype(np.int32)
        # Pass by pass, the longest row goes to the first place of the step that ranks first. Both sorts are stable,
        # so that rows of equal length stay in their random order.
        places, longest = np.lexsort((ranks[lines], passes)), np.lexsort((-lengths, passes))
        return lines[places], np.full(len(rows), task_id), rows[longest], lengths[longest]
