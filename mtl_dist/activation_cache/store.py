"""The states that texts have at one depth of the encoder, in memory that the processes of a machine share."""

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
"""Types by size: bits are copied, and numpy knows no bfloat16."""


class ActivationStore:
    """One span's states, text by text."""

    def __init__(
        self,
        allocation: CacheAllocation,
        compute_groups: ComputeGroups,
        widths: np.ndarray,
        dtype: torch.dtype,
        processes: ProcessGroup,
        folder: Path | None,
    ) -> None:
        """`widths`: elements of `dtype` that each text takes. Every rank calls this."""
        self.span = allocation.span
        self.depth = allocation.span.depth
        self.compute_groups = compute_groups
        self._dtype = dtype
        self._bits = _UNSIGNED[dtype.itemsize]
        self._widths = widths
        capacity = allocation.capacity // dtype.itemsize
        self._slots = SlotAllocator(widths, capacity)
        self._entered = 0
        self._has = np.zeros(len(widths), dtype=bool)
        self._finished: list[np.ndarray] = []
        memory = shared_bytes(capacity * dtype.itemsize + len(widths), processes, folder)
        self._states = np.frombuffer(memory, f"u{dtype.itemsize}", capacity)
        # Where all take the same, by place: whole batches are read at once.
        uniform = len(widths) and (widths == widths[0]).all()
        self._table = self._states[: capacity - capacity % widths[0]].reshape(-1, widths[0]) if uniform else None
        self._published = np.frombuffer(memory, np.uint8, len(widths), capacity * dtype.itemsize)
        """By text, whether its states are there for all to read."""

    def next_step(self) -> None:
        """Gives places to what the compute_groups has new, and says what this process has finished.

        That is said a step late. All ranks have exchanged gradients since, so who sees it said sees all of it.
        """
        for texts in self._finished:
            self._published[texts] = 1
        self._finished.clear()
        for group in self.compute_groups.groups[self._entered :]:
            self._slots.allocate(group)
        self._entered = len(self.compute_groups.groups)

    def has_slot(self, texts: np.ndarray) -> np.ndarray:
        """Of each text, whether there is room for it."""
        return self._slots.offsets[texts] >= 0

    def is_cached(self, texts: np.ndarray) -> np.ndarray:
        """Of each text, whether this process knows its states to be here."""
        has = self._has[texts]
        if not has.all():
            has = self._has[texts] = has | self._published[texts].astype(bool)
        return has

    def write(self, texts: np.ndarray, states: Tensor) -> None:
        """Keeps the `states` [n, ...] of each text that has a place; of padded ones, as many as it has tokens."""
        lines = states.detach().cpu().contiguous().view(len(texts), -1).view(self._bits).numpy()
        for text, line in zip(texts, lines, strict=True):
            at, width = self._slots.offsets[text], self._widths[text]
            if at >= 0:
                self._states[at : at + width] = line[:width]
        placed = texts[self.has_slot(texts)]
        self._has[placed] = True
        self._finished.append(placed)

    def read(self, texts: np.ndarray, shape: tuple[int, ...]) -> Tensor:
        """The states of each text, padded with zeros to `shape`, on the CPU."""
        if self._table is not None and self._table.shape[1] == math.prod(shape):
            found = self._table[self._slots.offsets[texts] // self._table.shape[1]]
            return torch.from_numpy(found).view(self._dtype).view(len(texts), *shape)
        states = torch.zeros(len(texts), math.prod(shape), dtype=self._dtype)
        lines = states.view(self._bits).numpy()
        starts, widths = self._slots.offsets[texts], self._widths[texts]
        for line, start, width in zip(lines, starts.tolist(), widths.tolist(), strict=True):
            line[:width] = self._states[start : start + width]
        return states.view(len(texts), *shape)
