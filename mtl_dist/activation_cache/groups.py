"""Which texts are computed together: the first global batch that has a text decides, whoever computes it and when.

What a text gives depends, in its last bits, on the batch that it is computed in. A run that goes on after a kill has
lost what was kept, so the batch must follow from the plan alone: a *group* is the texts that one process's part of a
micro-step has and no earlier step had. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtl_dist.schedule.sampler import GlobalBatch

UNSEEN = -1


class DistinctTexts:
    """A number for each unlike text among the training rows of all tasks."""

    def __init__(self, hashes: Mapping[str, np.ndarray], lengths: Mapping[str, np.ndarray]) -> None:
        """`hashes` [rows, 2] uint64 of the tokens and `lengths` [rows] in tokens, by task in the recipe's order."""
        both = np.concatenate(list(hashes.values()))
        order = np.lexsort((both[:, 1], both[:, 0]))
        unlike = np.ones(len(order), dtype=bool)
        unlike[1:] = (both[order[1:]] != both[order[:-1]]).any(axis=1)
        self._ids = np.empty(len(order), dtype=np.int64)
        self._ids[order] = np.cumsum(unlike) - 1
        sizes = [len(of_task) for of_task in hashes.values()]
        self._offsets = np.cumsum([0, *sizes[:-1]])
        self.lengths = np.concatenate([np.asarray(of_task) for of_task in lengths.values()])[order[unlike]]
        """Tokens of each text."""
        parts = np.split(self._ids, self._offsets[1:])
        self.counts_by_task = {task: len(np.unique(part)) for task, part in zip(hashes, parts, strict=True)}
        """Unlike texts of each task."""

    def numbers(self, task_ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The numbers of rows `rows[i]` of the `task_ids[i]`-th task."""
        return self._ids[self._offsets[task_ids] + rows]


@dataclass(frozen=True)
class Group:
    """Texts that are computed together, in this order."""

    texts: np.ndarray
    task_ids: np.ndarray
    rows: np.ndarray
    """A training row of each text."""


class ComputeGroups:
    """The groups of the steps from one on, over the processes of one machine."""

    def __init__(self, ids: DistinctTexts, ranks: range, start: int) -> None:
        """`ranks`: those of this machine. `start`: the first step."""
        self.start = start
        self.next_step = start
        """The step that is to be entered next."""
        self._text_ids = ids
        self._ranks = ranks
        self.group_of = np.full(len(ids.lengths), UNSEEN, dtype=np.int64)
        """The group of each text, or UNSEEN."""
        self.groups: list[Group] = []
        self._unseen = len(ids.lengths)

    def add_step(self, batch: GlobalBatch, parts: Sequence[Sequence[np.ndarray]]) -> None:
        """Takes the next step's batch, cut into `parts` [micro-step][rank]."""
        self.next_step = batch.step + 1
        if not self._unseen:
            return
        ids = self._text_ids.numbers(batch.task_ids, batch.rows)
        if (self.group_of[ids] != UNSEEN).all():
            return
        for of_ranks in parts:
            for rank in self._ranks:
                positions = of_ranks[rank]
                positions = positions[self.group_of[ids[positions]] == UNSEEN]
                _, first = np.unique(ids[positions], return_index=True)
                positions = positions[np.sort(first)]
                if len(positions):
                    group = Group(ids[positions], batch.task_ids[positions], batch.rows[positions])
                    self.group_of[group.texts] = len(self.groups)
                    self.groups.append(group)
                    self._unseen -= len(positions)


class SlotAllocator:
    """Where each text's states lie in a stretch of memory, given out in the order of the compute_groups."""

    def __init__(self, sizes: np.ndarray, capacity: int) -> None:
        """`sizes` of all texts and `capacity` of the stretch, in the same unit."""
        self._sizes = sizes
        self._capacity = capacity
        self._used = 0
        self.offsets = np.full(len(sizes), -1, dtype=np.int64)
        """The first place of each text; -1 where it has none."""

    def allocate(self, group: Group) -> None:
        """Places for the texts of `group`, as far as there is room."""
        ends = self._used + np.cumsum(self._sizes[group.texts])
        fit = ends <= self._capacity
        if fit.any():
            self.offsets[group.texts[fit]] = (ends - self._sizes[group.texts])[fit]
            self._used = int(ends[fit][-1])
