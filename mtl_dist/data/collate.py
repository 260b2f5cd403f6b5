"""Collation: from rows of tokenized splits to one padded batch for several tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mtl_dist.data.token_files import NO_LABEL, ListColumn, Split
from mtl_dist.device import to_device_batched


@dataclass(frozen=True)
class Batch:
    """Examples of several tasks, padded to the longest: n examples of at most T tokens."""

    input_ids: Tensor
    """Token IDs, [n, T] int64."""
    attention_mask: Tensor
    """1 on tokens and 0 on padding, [n, T] int64."""
    token_type_ids: Tensor | None
    """Token type IDs, [n, T] int64; None if no task of the run has them."""
    rows: dict[str, Tensor]
    """Positions in the batch of the examples that count for each task, [examples of the task] int64, may be empty. One
    example can count for several tasks."""
    labels: dict[str, Tensor]
    """Class indices of the examples of each task, in the order of `rows`, int64."""

    def to(self, device: torch.device | str) -> "Batch":
        """Copies all tensors to `device` in one transfer, without synchronizing with the device."""
        device = torch.device(device)
        if self.input_ids.device == device:
            return self
        types = [] if self.token_type_ids is None else [self.token_type_ids]
        tensors = [self.input_ids, self.attention_mask, *types, *self.rows.values(), *self.labels.values()]
        moved = iter(to_device_batched(tensors, device))
        return Batch(
            next(moved),
            next(moved),
            None if self.token_type_ids is None else next(moved),
            {task: next(moved) for task in self.rows},
            {task: next(moved) for task in self.labels},
        )


def collate(
    parts: Sequence[tuple[Split, Sequence[str]]],
    part_ids: np.ndarray,
    rows: np.ndarray,
    tasks: Sequence[str],
    pad_token_id: int,
    with_tokens: bool = True,
) -> Batch:
    """Builds a batch, in this order, of the examples `rows[i]` of the `part_ids[i]`-th of `parts`.

    A part is a split, and the tasks that an example of it counts for if it has their label. The batch has all `tasks`.
    Without tokens, each example consists of a single padding token; for examples whose sentence vectors are cached.
    """
    positions = [np.flatnonzero(part_ids == index) for index in range(len(parts))]
    lengths = np.ones(len(rows), dtype=np.int64)
    if with_tokens:
        for (split, _), at in zip(parts, positions, strict=True):
            lengths[at] = split.lengths[rows[at]]
    shape = (len(rows), int(lengths.max(initial=1)))
    attended = np.arange(shape[1]) < lengths[:, None]
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    has_types = any(split.has_token_type_ids for split, _ in parts)
    token_type_ids = np.zeros(shape, dtype=np.int64) if has_types else None
    nothing = np.zeros(0, dtype=np.int64)
    examples, labels = dict.fromkeys(tasks, nothing), dict.fromkeys(tasks, nothing)
    for (split, of_part), at in zip(parts, positions, strict=True):
        for task in of_part:
            found = split.labels[task][rows[at]]
            examples[task], labels[task] = at[found != NO_LABEL], found[found != NO_LABEL]
        if with_tokens:
            _copy_rows(input_ids, at, split.input_ids, rows[at])
            if token_type_ids is not None and split.has_token_type_ids:
                _copy_rows(token_type_ids, at, split.token_type_ids, rows[at])
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(attended.astype(np.int64)),
        None if token_type_ids is None else torch.from_numpy(token_type_ids),
        {task: torch.from_numpy(at) for task, at in examples.items()},
        {task: torch.from_numpy(found) for task, found in labels.items()},
    )


def _copy_rows(padded: np.ndarray, positions: np.ndarray, column: ListColumn, rows: np.ndarray) -> None:
    """Copies the list of each of `rows` to the beginning of the row of `padded` at the same index of `positions`."""
    for position, row in zip(positions.tolist(), rows.tolist(), strict=True):
        values = column[row]
        padded[position, : len(values)] = values
