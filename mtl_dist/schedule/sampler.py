"""The global batch of each step, as a pure function of seed and step: no state, any order of steps.

`cumulative_draws` determines how many examples of each task a step draws, `index_shuffle` which rows these are, and
`TaskBalancedSampler` how the rows of a window of steps are distributed over its steps by length.
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
from mtl_dist.schedule.index_shuffle import shuffled_indices


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The examples of one optimizer step, longest first; those of equal length are ordered by task, then row."""

    step: int
    """Counted from 0."""
    task_ids: np.ndarray
    """[B] int64: each example's task, as its index in the recipe."""
    rows: np.ndarray
    """[B] int64: each example's row in the task's training split."""
    lengths: np.ndarray
    """[B] int32: each example's number of tokens."""
    counts: np.ndarray
    """[num_tasks] int64: number of examples of each task."""

    @cached_property
    def digest(self) -> str:
        """BLAKE2b-128 of (task, row) of all examples in order."""
        pairs = np.stack([self.task_ids, self.rows], axis=1).astype("<i8")
        return hashlib.blake2b(pairs.tobytes(), digest_size=16).hexdigest()


def task_shares(sampling: SamplingConfig, sizes: Mapping[str, int]) -> dict[str, Fraction]:
    """Each task's exact share of the draws; shares sum to 1. `sizes` are training rows by task."""
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
    """The number in its shortest decimal form: 0.1 is a tenth, not the nearest binary fraction."""
    return Fraction(str(number))


def cumulative_draws(weights: Sequence[int], total: int) -> list[int]:
    """Number of the first `total` draws that go to each task, in closed form and exact integers.

    Tasks form a binary tree, in which each node splits its draws between its halves by rounding. A node's count grows
    by at most 1 with each draw, so that no count ever decreases. Each level of the tree adds at most 1/2 to a task's
    distance from its exact share, so that any range of draws is within ceil(log2(tasks)) of the exact shares.
    """
    if len(weights) == 1:
        return [total]
    middle = len(weights) // 2
    left, both = sum(weights[:middle]), sum(weights)
    to_left = (2 * total * left + both) // (2 * both)
    return cumulative_draws(weights[:middle], to_left) + cumulative_draws(weights[middle:], total - to_left)


@dataclass(frozen=True)
class _WindowBatches:
    """Batches of the `length_window` steps of one window: arrays of [steps, B], with rows ordered as GlobalBatch."""

    index: int
    """Number of the window."""
    task_ids: np.ndarray
    rows: np.ndarray
    lengths: np.ndarray


class TaskBalancedSampler:
    """Samples the global batch of each step, as a function of its arguments and the step alone.

    Quotas: over any range of steps a task's draws are within ceil(log2(tasks)) of its exact share, counted in examples
    for `mixed` batches and in whole batches for `one_task`. With uniform shares and at least as many examples as tasks,
    every mixed batch has all tasks.

    Passes: a task's draws pass over its rows in random order, each row once before any is drawn again. After every
    step, the numbers of draws of two rows of a task differ by at most 1.

    Lengths: within a window of `length_window` steps, rows are exchanged with others of the same task and pass, so that
    each step has rows of similar length. The steps of a window have a random order, the same for all tasks; the first
    one gets its quota of the longest rows, and so on. Windows are counted from step 0, and nothing depends on the
    length of the run.
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
        """`lengths`: number of tokens of each training row, [rows] of integers, by task in the recipe's order.

        They may be memory-mapped: only the rows of one window are read at a time. `batch_size` is in examples,
        `length_window` in steps; `shares` are positive and need not sum to 1.
        """
        self._lengths = dict(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._batches = batches
        self._length_window = length_window
        exact = [_exact(shares[task]) for task in lengths]
        denominator = math.lcm(*(share.denominator for share in exact))
        self._weights = [int(share * denominator) for share in exact]
        self._last_window: _WindowBatches | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the settings and of each task's number of rows, but not of their lengths."""
        sizes = {task: len(lengths) for task, lengths in self._lengths.items()}
        settings = [sizes, self._weights, self._batch_size, self._seed, self._batches, self._length_window]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def draws(self, start: int, stop: int) -> dict[str, int]:
        """Number of examples of each task in steps `start` to `stop`, in closed form."""
        counts = zip(self._drawn_before(start), self._drawn_before(stop), strict=True)
        return {task: after - before for task, (before, after) in zip(self._lengths, counts, strict=True)}

    def batch(self, step: int) -> GlobalBatch:
        """The global batch of `step`. The last window is cached, so that consecutive steps share its work."""
        index, offset = divmod(step, self._length_window)
        window = self._last_window
        if window is None or window.index != index:
            window = self._last_window = self._window_batches(index)
        task_ids, rows = window.task_ids[offset].copy(), window.rows[offset].copy()
        return GlobalBatch(
            step=step,
            task_ids=task_ids,
            rows=rows,
            lengths=window.lengths[offset].copy(),
            counts=np.bincount(task_ids, minlength=len(self._lengths)),
        )

    def _drawn_before(self, step: int) -> list[int]:
        """Number of examples of each task in all steps before `step`."""
        if self._batches == "mixed":
            return cumulative_draws(self._weights, step * self._batch_size)
        return [batches * self._batch_size for batches in cumulative_draws(self._weights, step)]

    def _window_batches(self, index: int) -> _WindowBatches:
        steps = self._length_window
        ranks = shuffled_indices(index * steps, (index + 1) * steps, steps, self._seed, "ranks of the steps")
        drawn = [self._drawn_before(step) for step in range(index * steps, (index + 1) * steps + 1)]
        by_task = [
            self._assign_rows(task, task_id, [before[task_id] for before in drawn], ranks)
            for task_id, task in enumerate(self._lengths)
        ]
        offsets, task_ids, rows, lengths = (np.concatenate(arrays) for arrays in zip(*by_task, strict=True))
        order = np.lexsort((rows, task_ids, -lengths, offsets)).reshape(steps, self._batch_size)
        return _WindowBatches(index, task_ids[order], rows[order], lengths[order])

    def _assign_rows(self, task: str, task_id: int, drawn: Sequence[int], ranks: np.ndarray) -> tuple[np.ndarray, ...]:
        """Assigns a task's rows to the steps of a window.

        `drawn` are the task's draws before each of the window's steps and after the last one; `ranks` are the steps'
        places in the random order. Returns offset of the step in the window, task id, row and length, [draws] each.
        """
        offsets = np.repeat(np.arange(len(ranks)), np.diff(drawn))
        passes = np.arange(drawn[0], drawn[-1]) // len(self._lengths[task])
        rows = shuffled_indices(drawn[0], drawn[-1], len(self._lengths[task]), self._seed, f"rows of {task}")
        lengths = self._lengths[task][rows].astype(np.int32)
        # Pass by pass, the longest rows go to the step that ranks first. Both sorts are stable, so that rows of equal
        # length stay in their random order.
        places, longest = np.lexsort((ranks[offsets], passes)), np.lexsort((-lengths, passes))
        return offsets[places], np.full(len(rows), task_id), rows[longest], lengths[longest]
