"""From rows of tokenised splits to one padded batch for several tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor


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

    @cached_property
    def typed(self) -> bool:
        """Whether its rows have `token_type_ids`."""
        return "token_type_ids" in self.rows.column_names


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
        if self.input_ids.device == torch.device(device):
            return self
        return Batch(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            None if self.token_type_ids is None else self.token_type_ids.to(device),
            {task: positions.to(device) for task, positions in self.rows.items()},
            {task: labels.to(device) for task, labels in self.labels.items()},
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
    typed = any(split.typed for split in splits.values())
    token_type_ids = np.zeros(shape, dtype=np.int64) if typed else None
    labels = {}
    for task, at in positions.items():
        labels[task] = torch.from_numpy(splits[task].labels[rows[at]])
        if with_tokens and len(at):
            columns = cast(pa.Table, splits[task].rows[rows[at]])
            _fill(input_ids, attended, at, columns["input_ids"])
            if token_type_ids is not None and splits[task].typed:
                _fill(token_type_ids, attended, at, columns["token_type_ids"])
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(attended.astype(np.int64)),
        None if token_type_ids is None else torch.from_numpy(token_type_ids),
        {task: torch.from_numpy(at) for task, at in positions.items()},
        labels,
    )


def _fill(padded: np.ndarray, attended: np.ndarray, at: np.ndarray, lists: pa.ChunkedArray) -> None:
    """Writes one list per row of `at` into `padded`, where `attended` is set."""
    part = padded[at]
    part[attended[at]] = pc.list_flatten(lists).to_numpy()
    padded[at] = part
