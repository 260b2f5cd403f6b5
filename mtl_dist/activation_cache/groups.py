"""Which texts are computed together: the first global batch that contains a text decides, on every rank and restart.

In its last bits a hidden state depends on the batch that it is computed in. A run that resumes has an empty cache, so
these batches must follow from the sampler alone: a *compute group* is the texts that one rank has in a micro-step and
that no earlier step had. Imports no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mtl_dist.schedule.sampler import GlobalBatch

UNSEEN = -1
"""Group number of a text that no step has contained yet."""
NO_SLOT = -1
"""Offset of a text for which there was no room."""


class DistinctTexts:
    """Numbers for the distinct texts among the training rows of all example sets."""

    def __init__(self, hashes: Sequence[np.ndarray], lengths: Sequence[np.ndarray], set_of_pool: Sequence[int]) -> None:
        """`hashes` [rows, 2] uint64 of the tokens and `lengths` [rows] in tokens, of each example set.

        `set_of_pool` is the index of each row pool's example set.
        """
        all_hashes = np.concatenate(hashes)
        order = np.lexsort((all_hashes[:, 1], all_hashes[:, 0]))
        is_first = np.ones(len(order), dtype=bool)
        is_first[1:] = (all_hashes[order[1:]] != all_hashes[order[:-1]]).any(axis=1)
        self._numbers = np.empty(len(order), dtype=np.int64)
        self._numbers[order] = np.cumsum(is_first) - 1
        offsets = np.cumsum([0, *(len(of_set) for of_set in hashes)])
        self._offsets = offsets[np.asarray(set_of_pool)]
        """Number of rows in the example sets before that of each pool."""
        self._stops = offsets[np.asarray(set_of_pool) + 1]
        self.lengths = np.concatenate(lengths)[order[is_first]]
        """Number of tokens of each distinct text."""

    def numbers(self, pool_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Numbers of the texts in training rows `rows[i]` of the example set of the `pool_ids[i]`-th pool."""
        return self._numbers[self._offsets[pool_ids] + rows]

    def count(self, pool_id: int, rows: np.ndarray | None) -> int:
        """Number of distinct texts among `rows` of the example set of a pool; None for all of its rows."""
        of_set = self._numbers[self._offsets[pool_id] : self._stops[pool_id]]
        return len(np.unique(of_set if rows is None else of_set[rows]))


@dataclass(frozen=True)
class Group:
    """A compute group: texts that are computed together, in this order."""

    texts: np.ndarray
    pool_ids: np.ndarray
    rows: np.ndarray
    """A training row of each text."""


class ComputeGroups:
    """The compute groups of the ranks of one machine, from one training step on."""

    def __init__(self, distinct: DistinctTexts, ranks: range, start: int) -> None:
        """`ranks`: the ranks of this machine. `start`: the first step."""
        self.start = start
        self.next_step = start
        """The step to add next."""
        self._distinct = distinct
        self._ranks = ranks
        self.group_of = np.full(len(distinct.lengths), UNSEEN, dtype=np.int64)
        """Index into `groups` of each text's group, or UNSEEN."""
        self.groups: list[Group] = []
        self._num_unseen = len(distinct.lengths)

    def add_step(self, batch: GlobalBatch, parts: Sequence[Sequence[np.ndarray]]) -> None:
        """Adds the groups of the next step, whose batch is partitioned into `parts` [micro-step][rank]."""
        self.next_step = batch.step + 1
        if not self._num_unseen:
            return
        texts = self._distinct.numbers(batch.pool_ids, batch.rows)
        if (self.group_of[texts] != UNSEEN).all():
            return
        for by_rank in parts:
            for rank in self._ranks:
                positions = by_rank[rank]
                positions = positions[self.group_of[texts[positions]] == UNSEEN]
                _, first = np.unique(texts[positions], return_index=True)
                positions = positions[np.sort(first)]
                if len(positions):
                    group = Group(texts[positions], batch.pool_ids[positions], batch.rows[positions])
                    self.group_of[group.texts] = len(self.groups)
                    self.groups.append(group)
                    self._num_unseen -= len(positions)


class SlotAllocator:
    """Offsets of the texts' states in a block of memory, allocated in the order of the compute groups."""

    def __init__(self, sizes: np.ndarray, capacity: int) -> None:
        """`sizes` of all texts and the `capacity` of the block, in the same unit of memory."""
        self._sizes = sizes
        self._capacity = capacity
        self._used = 0
        self.offsets = np.full(len(sizes), NO_SLOT, dtype=np.int64)
        """Start of each text's slot, or NO_SLOT."""

    def allocate(self, group: Group) -> None:
        """Allocates slots for the texts of `group`, as far as there is room."""
        ends = self._used + np.cumsum(self._sizes[group.texts])
        fits = ends <= self._capacity
        if fits.any():
            self.offsets[group.texts[fits]] = (ends - self._sizes[group.texts])[fits]
            self._used = int(ends[fits][-1])
