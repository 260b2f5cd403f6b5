"""The states of texts at one prefix depth, in memory that the processes of a machine share."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtl_dist.activation_cache.groups import ComputeGroups, SlotAllocator
from mtl_dist.activation_cache.policy import CacheAllocation
from mtl_dist.activation_cache.shared_memory import shared_bytes
from mtl_dist.distributed.process_group import ProcessGroup

_UNSIGNED = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}
"""Unsigned types by size in bytes. States are copied as integers, because numpy has no bfloat16."""


class ActivationStore:
    """The states of one span, by text."""

    def __init__(
        self,
        allocation: CacheAllocation,
        compute_groups: ComputeGroups,
        widths: np.ndarray,
        dtype: torch.dtype,
        group: ProcessGroup,
        folder: Path | None,
    ) -> None:
        """`widths`: number of elements of `dtype` of each text. Every rank calls this."""
        self.span = allocation.span
        self.depth = allocation.span.depth
        self.compute_groups = compute_groups
        self._dtype = dtype
        self._bits = _UNSIGNED[dtype.itemsize]
        self._widths = widths
        capacity = allocation.capacity // dtype.itemsize
        self._slots = SlotAllocator(widths, capacity)
        self._num_allocated = 0
        """Number of compute groups that have slots."""
        self._known = np.zeros(len(widths), dtype=bool)
        """For each text, whether this process knows that its states are in the store."""
        self._unpublished: list[np.ndarray] = []
        memory = shared_bytes(capacity * dtype.itemsize + len(widths), group, folder)
        self._states = np.frombuffer(memory, f"u{dtype.itemsize}", capacity)
        # If all texts have the same width, also as a table of slots: then a batch is read by one index operation.
        uniform = len(widths) and (widths == widths[0]).all()
        self._table = self._states[: capacity - capacity % widths[0]].reshape(-1, widths[0]) if uniform else None
        self._published = np.frombuffer(memory, np.uint8, len(widths), capacity * dtype.itemsize)
        """For each text, a flag in shared memory: its states can be read by every process of the machine."""

    def next_step(self) -> None:
        """Publishes what this process wrote in the last step, and allocates slots for new compute groups.

        Flags are set one step late. All ranks have exchanged gradients in between, so that a process that sees a flag
        also sees all states behind it.
        """
        for texts in self._unpublished:
            self._published[texts] = 1
        self._unpublished.clear()
        for group in self.compute_groups.groups[self._num_allocated :]:
            self._slots.allocate(group)
        self._num_allocated = len(self.compute_groups.groups)

    def has_slot(self, texts: np.ndarray) -> np.ndarray:
        """Whether there is room for each of `texts`."""
        return self._slots.offsets[texts] >= 0

    def is_cached(self, texts: np.ndarray) -> np.ndarray:
        """Whether the states of each of `texts` can be read here."""
        known = self._known[texts]
        if not known.all():
            known = self._known[texts] = known | self._published[texts].astype(bool)
        return known

    def write(self, texts: np.ndarray, states: Tensor) -> None:
        """Writes the `states` [n, ...] of those `texts` that have slots, without padding."""
        lines = states.detach().cpu().contiguous().view(len(texts), -1).view(self._bits).numpy()
        for text, line in zip(texts, lines, strict=True):
            start, width = self._slots.offsets[text], self._widths[text]
            if start >= 0:
                self._states[start : start + width] = line[:width]
        written = texts[self.has_slot(texts)]
        self._known[written] = True
        self._unpublished.append(written)

    def read(self, texts: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        """Reads the states [n, *shape] of `texts`, padded with zeros, to the CPU."""
        if self._table is not None and self._table.shape[1] == math.prod(shape):
            found = self._table[self._slots.offsets[texts] // self._table.shape[1]]
            return torch.from_numpy(found).view(self._dtype).view(len(texts), *shape)
        states = torch.zeros(len(texts), math.prod(shape), dtype=self._dtype)
        lines = states.view(self._bits).numpy()
        starts, widths = self._slots.offsets[texts], self._widths[texts]
        for line, start, width in zip(lines, starts.tolist(), widths.tolist(), strict=True):
            line[:width] = self._states[start : start + width]
        return states.view(len(texts), *shape)
