"""The global batch of each step, as a pure function of seed and step: no state, any order of steps.

Rows are drawn from pools. `cumulative_draws` determines how many rows of each pool a step draws, `index_shuffle` which
ones, and `TaskBalancedSampler` how the rows of a window of steps are distributed over its steps by length. A drawn row
counts for every task of its pool whose label it has.
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
class Pool:
    """Training rows of an example set that are drawn together. Arrays may be memory-mapped."""

    name: str
    """Seeds the order of its rows."""
    lengths: np.ndarray
    """Number of tokens of each training row of the example set, [n] of integers."""
    labels: Mapping[int, np.ndarray | None]
    """Tasks that a drawn row can count for, as indices in the recipe. For each, the class index of each training row of
    the example set, [n], negative where a row has no label; None if all rows of the pool have one."""
    rows: np.ndarray | None = None
    """Numbers of the pool's rows in the example set, [size] of integers; None for all n."""

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.lengths if self.rows is None else self.rows)


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """The examples of one optimizer step, longest first; those of equal length are ordered by pool, then row."""

    step: int
    """Counted from 0."""
    pool_ids: np.ndarray
    """[B] int64: index of each example's pool."""
    rows: np.ndarray
    """[B] int64: number of each example in the training split of its pool's example set."""
    lengths: np.ndarray
    """[B] int32: each example's number of tokens."""
    counts: np.ndarray
    """[num_tasks] int64: number of examples that have each task's label, in the recipe's order. An example can count
    for several tasks."""

    @cached_property
    def digest(self) -> str:
        """BLAKE2b-128 of (pool, row) of all examples in order."""
        pairs = np.stack([self.pool_ids, self.rows], axis=1).astype("<i8")
        return hashlib.blake2b(pairs.tobytes(), digest_size=16).hexdigest()


def pool_shares(
    sampling: SamplingConfig, sizes: Mapping[str, int], tasks: Mapping[str, Sequence[str]]
) -> dict[str, Fraction]:
    """Each pool's exact share of the draws; shares sum to 1.

    `sizes` are the numbers of rows and `tasks` the names of the tasks by pool. With strategy `weighted`, the tasks of a
    pool have one weight.
    """
    weights: Mapping[str, float]
    match sampling.strategy:
        case "uniform":
            weights = dict.fromkeys(sizes, 1)
        case "proportional":
            weights = sizes
        case "weighted":
            weights = {pool: sampling.weights[of_pool[0]] for pool, of_pool in tasks.items()}
    exact = {pool: _exact(weights[pool]) for pool in sizes}
    return {pool: weight / sum(exact.values()) for pool, weight in exact.items()}


def _exact(number: float | Fraction) -> Fraction:
    """The number in its shortest decimal form: 0.1 is a tenth, not the nearest binary fraction."""
    return Fraction(str(number))


def cumulative_draws(weights: Sequence[int], total: int) -> list[int]:
    """Number of the first `total` draws that go to each pool, in closed form and exact integers.

    Pools form a binary tree, in which each node splits its draws between its halves by rounding. A node's count grows
    by at most 1 with each draw, so that no count ever decreases. Each level of the tree adds at most 1/2 to a pool's
    distance from its exact share, so that any range of draws is within ceil(log2(pools)) of the exact shares.
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
    pool_ids: np.ndarray
    rows: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    """[steps, num_tasks]"""


class TaskBalancedSampler:
    """Samples the global batch of each step, as a function of its arguments and the step alone.

    Quotas: over any range of steps a pool's draws are within ceil(log2(pools)) of its exact share, counted in examples
    for `mixed` batches and in whole batches for `one_task`. With uniform shares and at least as many examples as pools,
    every mixed batch has rows of all pools.

    Passes: a pool's draws pass over its rows in random order, each row once before any is drawn again. After every
    step, the numbers of draws of two rows of a pool differ by at most 1.

    Lengths: within a window of `length_window` steps, rows are exchanged with others of the same pool and pass, so that
    each step has rows of similar length. The steps of a window have a random order, the same for all pools; the first
    one gets its quota of the longest rows, and so on. Windows are counted from step 0, and nothing depends on the
    length of the run.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        *,
        batch_size: int,
        seed: int,
        shares: Mapping[str, float | Fraction],
        batches: Literal["mixed", "one_task"],
        length_window: int,
    ) -> None:
        """`pools` are in the order of their first tasks in the recipe, each task being in one of them.

        Of their arrays only the rows of one window are read at a time. `batch_size` is in examples, `length_window` in
        steps; `shares` by pool are positive and need not sum to 1.
        """
        self._pools = tuple(pools)
        self._num_tasks = sum(len(pool.labels) for pool in pools)
        self._batch_size = batch_size
        self._seed = seed
        self._batches = batches
        self._length_window = length_window
        exact = [_exact(shares[pool.name]) for pool in pools]
        denominator = math.lcm(*(share.denominator for share in exact))
        self._weights = [int(share * denominator) for share in exact]
        self._last_window: _WindowBatches | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the settings and of each pool's number of rows, but not of their lengths."""
        sizes = {pool.name: pool.size for pool in self._pools}
        settings = [sizes, self._weights, self._batch_size, self._seed, self._batches, self._length_window]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def draws(self, start: int, stop: int) -> dict[str, int]:
        """Number of rows drawn from each pool in steps `start` to `stop`, in closed form."""
        counts = zip(self._drawn_before(start), self._drawn_before(stop), strict=True)
        return {pool.name: after - before for pool, (before, after) in zip(self._pools, counts, strict=True)}

    def batch(self, step: int) -> GlobalBatch:
        """The global batch of `step`. The last window is cached, so that consecutive steps share its work."""
        index, offset = divmod(step, self._length_window)
        window = self._last_window
        if window is None or window.index != index:
            window = self._last_window = self._window_batches(index)
        return GlobalBatch(
            step=step,
            pool_ids=window.pool_ids[offset].copy(),
            rows=window.rows[offset].copy(),
            lengths=window.lengths[offset].copy(),
            counts=window.counts[offset].copy(),
        )

    def _drawn_before(self, step: int) -> list[int]:
        """Number of rows drawn from each pool in all steps before `step`."""
        if self._batches == "mixed":
            return cumulative_draws(self._weights, step * self._batch_size)
        return [batches * self._batch_size for batches in cumulative_draws(self._weights, step)]

    def _window_batches(self, index: int) -> _WindowBatches:
        steps = self._length_window
        ranks = shuffled_indices(index * steps, (index + 1) * steps, steps, self._seed, "ranks of the steps")
        drawn = [self._drawn_before(step) for step in range(index * steps, (index + 1) * steps + 1)]
        by_pool = [
            self._assign_rows(pool, [before[pool_id] for before in drawn], ranks)
            for pool_id, pool in enumerate(self._pools)
        ]
        counts = [
            self._count_labels(pool, offsets, rows)
            for pool, (offsets, rows, _) in zip(self._pools, by_pool, strict=True)
        ]
        offsets, rows, lengths = (np.concatenate(arrays) for arrays in zip(*by_pool, strict=True))
        pool_ids = np.repeat(np.arange(len(by_pool)), [len(of_pool) for of_pool, _, _ in by_pool])
        order = np.lexsort((rows, pool_ids, -lengths, offsets)).reshape(steps, self._batch_size)
        return _WindowBatches(index, pool_ids[order], rows[order], lengths[order], np.sum(counts, axis=0))

    def _assign_rows(self, pool: Pool, drawn: Sequence[int], ranks: np.ndarray) -> tuple[np.ndarray, ...]:
        """Assigns a pool's rows to the steps of a window.

        `drawn` are the pool's draws before each of the window's steps and after the last one; `ranks` are the steps'
        places in the random order. Returns offset of the step in the window, row and length, [draws] each.
        """
        offsets = np.repeat(np.arange(len(ranks)), np.diff(drawn))
        passes = np.arange(drawn[0], drawn[-1]) // pool.size
        rows = shuffled_indices(drawn[0], drawn[-1], pool.size, self._seed, f"rows of {pool.name}")
        if pool.rows is not None:
            rows = pool.rows[rows].astype(np.int64)
        lengths = pool.lengths[rows].astype(np.int32)
        # Pass by pass, the longest rows go to the step that ranks first. Both sorts are stable, so that rows of equal
        # length stay in their random order.
        places, longest = np.lexsort((ranks[offsets], passes)), np.lexsort((-lengths, passes))
        return offsets[places], rows[longest], lengths[longest]

    def _count_labels(self, pool: Pool, offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Counts the drawn rows that have each task's label, [steps, num_tasks]; `offsets` as in `_assign_rows`."""
        counts = np.zeros((self._length_window, self._num_tasks), dtype=np.int64)
        for task_id, labels in pool.labels.items():
            labelled = offsets if labels is None else offsets[labels[rows] >= 0]
            counts[:, task_id] = np.bincount(labelled, minlength=self._length_window)
        return counts
