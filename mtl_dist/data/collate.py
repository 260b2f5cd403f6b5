"""From rows of tokenised splits to one padded batch for several tasks."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mtl_dist.device import to_device_batched


class ListColumn:
    """A column of lists of numbers, read where it lies, a row at a time: `datasets` takes longer than a small step."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        """`column` has lists, no nulls."""
        self._firsts: list[int] = []
        """Of each chunk, the number of its first row."""
        self._chunks: list[tuple[np.ndarray, np.ndarray]] = []
        """Of each chunk, the places in its numbers at which rows start and the last one ends, and these numbers."""
        first = 0
        for chunk in column.chunks:
            self._firsts.append(first)
            self._chunks.append((chunk.offsets.to_numpy(), chunk.values.to_numpy()))
            first += len(chunk)

    def __getitem__(self, row: int) -> np.ndarray:
        """The list of a row that there is, as a view."""
        at = bisect_right(self._firsts, row) - 1
        places, numbers = self._chunks[at]
        within = row - self._firsts[at]
        return numbers[places[within] : places[within + 1]]


@dataclass(frozen=True)
class Split:
    """One split of one task, tokenised and memory-mapped."""

    rows: datasets.Dataset
    """In arrow format: `input_ids` (list of int32), `label` (class index), `row` (row in the source, from 0) and, for
    sentence pairs where the tokenizer makes them, `token_type_ids` (list of int32)."""
    lengths: np.ndarray
    """Tokens of each row, int32."""
    labels: np.ndarray
    """Class index of each row, int64."""
    hashes: np.ndarray
    """128 bits of each row's tokens, [rows, 2] uint64."""
    vocabulary: np.ndarray
    """The token ids that its rows have, sorted, int32."""

    @cached_property
    def has_token_type_ids(self) -> bool:
        """Whether its rows have `token_type_ids`."""
        return "token_type_ids" in self.rows.column_names

    @cached_property
    def input_ids(self) -> ListColumn:
        """Tokens of each row."""
        return ListColumn(self.rows.data.column("input_ids"))

    @cached_property
    def token_type_ids(self) -> ListColumn:
        """Types of each row's tokens, where it has them."""
        return ListColumn(self.rows.data.column("token_type_ids"))


@dataclass(frozen=True)
class Batch:
    """Examples of several tasks, padded to the longest of them; n examples of at most T tokens."""

    input_ids: Tensor
    """[n, T] int64."""
    attention_mask: Tensor
    """[n, T] int64, 0 on padding."""
    token_type_ids: Tensor | None
    """[n, T] int64 where a task of the run has them, else None."""
    rows: dict[str, Tensor]
    """For every task: where its examples stand in the batch, int64, maybe none."""
    labels: dict[str, Tensor]
    """For every task: the class indices of those examples, int64."""

    def to(self, device: torch.device | str) -> "Batch":
        """All of it on `device`, in one piece and without waiting for it."""
        device = torch.device(device)
        if self.input_ids.device == device:
            return self
        types = [] if self.token_type_ids is None else [self.token_type_ids]
        pieces = [self.input_ids, self.attention_mask, *types, *self.rows.values(), *self.labels.values()]
        there = iter(to_device_batched(pieces, device))
        return Batch(
            next(there),
            next(there),
            None if self.token_type_ids is None else next(there),
            {task: next(there) for task in self.rows},
            {task: next(there) for task in self.labels},
        )


def collate(
    splits: Mapping[str, Split], task_ids: np.ndarray, rows: np.ndarray, pad_token_id: int, with_tokens: bool = True
) -> Batch:
    """The batch of examples `rows[i]` of the `task_ids[i]`-th split, in this order; `splits` is by task.

    Without its tokens each example is one of padding, for who has its sentence vector already.
    """
    positions = {task: np.flatnonzero(task_ids == index) for index, task in enumerate(splits)}
    lengths = np.ones(len(rows), dtype=np.int64)
    if with_tokens:
        for task, at in positions.items():
            lengths[at] = splits[task].lengths[rows[at]]
    shape = (len(rows), int(lengths.max(initial=1)))
    attended = np.arange(shape[1]) < lengths[:, None]
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    typed = any(split.has_token_type_ids for split in splits.values())
    token_type_ids = np.zeros(shape, dtype=np.int64) if typed else None
    labels = {}
    for task, at in positions.items():
        labels[task] = torch.from_numpy(splits[task].labels[rows[at]])
        if with_tokens:
            _copy_rows(input_ids, at, splits[task].input_ids, rows[at])
            if token_type_ids is not None and splits[task].has_token_type_ids:
                _copy_rows(token_type_ids, at, splits[task].token_type_ids, rows[at])
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(attended.astype(np.int64)),
        None if token_type_ids is None else torch.from_numpy(token_type_ids),
        {task: torch.from_numpy(at) for task, at in positions.items()},
        labels,
    )


def _copy_rows(padded: np.ndarray, at: np.ndarray, lists: ListColumn, rows: np.ndarray) -> None:
    """Writes the list of each of `rows` at the beginning of a row of `padded`, those of `at`."""
    for place, row in zip(at.tolist(), rows.tolist(), strict=True):
        numbers = lists[row]
        padded[place, : len(numbers)] = numbers
