"""Validation of a task's rows before anything is trained: which rows are used, and the class index of each.

Works on whole columns, in chunks: ten million rows take seconds. Rows count from 0.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtl_dist.config.recipe import TaskConfig
from mtl_dist.data.chunked import chunk_slices, concatenate_on_disk, map_chunks
from mtl_dist.data.columns import is_string, refuse_rows, rows_with_text
from mtl_dist.data.diagnostics import find_faulty_line_of_split
from mtl_dist.data.labels import class_indices, integers_of, label_values
from mtl_dist.errors import UserError, list_some

T = TypeVar("T")
R = TypeVar("R")

EmptyText = Literal["error", "skip"]


@dataclass(frozen=True)
class LabeledSplit:
    """The rows of one split that are used, with their class indices."""

    columns: datasets.Dataset
    """The whole split in arrow format: the task's text columns and its label column."""
    rows: np.ndarray
    """Row numbers that are used, ascending, [n] int64; memory-mapped, as the labels, where the split is large."""
    labels: np.ndarray
    """Class index of each of `rows`, [n] int64."""


@dataclass(frozen=True)
class LabeledTask:
    """A task's validated rows before tokenization."""

    labels: tuple[str, ...]
    """Class names in the order of their indices."""
    splits: dict[str, LabeledSplit]
    warnings: tuple[str, ...]
    """One line per finding that is not an error."""


def check_rows(
    key: str, task: TaskConfig, splits: Mapping[str, datasets.Dataset], empty_text: EmptyText
) -> LabeledTask:
    """Validates every row of `splits`, maps labels to class indices and samples `task.max_rows` training rows.

    `key` (`tasks.<name>`) begins error messages. Raises UserError, with split and row, for texts or labels that are
    missing, of a wrong type or out of range, for a split without usable rows, and for fewer than two classes.
    """
    warnings = []
    checked = {split: _CheckedSplit(key, task, split, rows, empty_text) for split, rows in splits.items()}
    for split, part in checked.items():
        if part.skipped:
            warnings.append(f"{part.skipped} of {len(part.rows)} {split} rows have no text and are left out")
    names = _class_names(key, task, checked)
    labeled = {}
    for split, part in checked.items():
        rows, indices = part.selected_rows(), part.class_indices(names)
        if split == "train" and task.max_rows is not None:
            sample = _sample_rows(rows, task.max_rows)
            rows, indices = sample, indices[np.searchsorted(rows, sample)]
        labeled[split] = LabeledSplit(part.rows, rows, indices)
    # In chunks, because bincount copies a read-only array.
    train, counts = labeled["train"].labels, np.zeros(len(names), dtype=np.int64)
    for chunk in chunk_slices(len(train)):
        counts += np.bincount(train[chunk], minlength=len(names))
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if absent:
        warnings.append(f"no training row has the label {list_some(absent)}")
    return LabeledTask(names, labeled, tuple(warnings))


def check_split(
    key: str, task: TaskConfig, split: str, rows: datasets.Dataset, names: tuple[str, ...], empty_text: EmptyText
) -> LabeledSplit:
    """Validates the rows of one split as `check_rows` does, for a model that has the class names `names` already."""
    checked = _CheckedSplit(key, task, split, rows, empty_text)
    return LabeledSplit(rows, checked.selected_rows(), checked.class_indices(names))


class _CheckedSplit:
    """One split, validated as far as that is possible without the other splits.

    Memory use does not grow with the number of rows, unless the labels are JSON or floats. Raises UserError as
    `check_rows` does.
    """

    def __init__(self, key: str, task: TaskConfig, split: str, rows: datasets.Dataset, empty_text: EmptyText) -> None:
        self.location = f"{key}: {split}"
        self.rows = rows
        self._label = task.label
        self._find_fault = partial(find_faulty_line_of_split, task, split)
        self.usable = map_chunks(
            rows,
            lambda chunk, _: rows_with_text(self.location, task.text, chunk, empty_text),
            concatenate_on_disk,
        )
        """Mask of the rows that are used."""
        self.skipped = len(rows) - int(self.usable.sum())
        if self.skipped == len(rows):
            raise UserError(f"{key}: the {split} split has no rows" + (" with text" if self.skipped else ""))
        found = self._map_label_chunks(self._distinct_labels, list)
        self.label_type: pa.DataType = found[0].type
        self.labels = pc.unique(pa.chunked_array(found))
        """Distinct labels of the usable rows."""

    def label_values(self, rows: datasets.Dataset, chunk: slice) -> pa.ChunkedArray:
        """Label values of `rows`, which are the rows `chunk` of this split."""
        return label_values(self.location, self._label, rows, self.usable[chunk], self._find_fault)

    def _distinct_labels(self, rows: datasets.Dataset, chunk: slice) -> pa.Array:
        return pc.unique(self.label_values(rows, chunk).filter(pa.array(self.usable[chunk])))

    def _map_label_chunks(
        self, check: Callable[[datasets.Dataset, slice], T], combine: Callable[[Iterable[T]], R]
    ) -> R:
        """Calls `map_chunks`, with one chunk where the type of the labels depends on all rows."""
        kind = self.rows.data.schema.field(self._label).type
        if isinstance(kind, pa.JsonType) or pa.types.is_floating(kind):
            return combine([check(self.rows, slice(0, len(self.rows)))])
        return map_chunks(self.rows, check, combine)

    def selected_rows(self) -> np.ndarray:
        """Numbers of the usable rows, ascending, [n] int64."""
        chunks = chunk_slices(len(self.rows))
        return concatenate_on_disk(chunk.start + np.flatnonzero(self.usable[chunk]) for chunk in chunks)

    def class_indices(self, names: tuple[str, ...]) -> np.ndarray:
        """Class index of each usable row, [n] int64."""

        def indices(rows: datasets.Dataset, chunk: slice) -> np.ndarray:
            usable = self.usable[chunk]
            return class_indices(self.location, self.label_values(rows, chunk), names, usable)[usable]

        return self._map_label_chunks(indices, concatenate_on_disk)


def _class_names(key: str, task: TaskConfig, splits: Mapping[str, _CheckedSplit]) -> tuple[str, ...]:
    """Class names in order: the recipe's, else those of the column's feature, else the labels of the training rows."""
    if task.labels is not None:
        return tuple(task.labels)
    train = splits["train"]
    for split, part in splits.items():
        if is_string(part.label_type) != is_string(train.label_type):
            raise UserError(f"{key}.label: train has {train.label_type} labels and {split} {part.label_type} ones")
    feature = train.rows.features[task.label]
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        names = feature.names
    elif is_string(train.label_type):
        names = sorted(train.labels.to_pylist())
    else:
        _refuse_ids(train)
        names = [str(index) for index in range(int(train.labels.to_numpy().max()) + 1)]
    if len(names) < 2:
        raise UserError(f"{key}.label: all training rows have the label {names[0]!r}; a task has at least two classes")
    return tuple(names)


def _refuse_ids(train: _CheckedSplit) -> None:
    """Raises UserError for integers too large to be class indices, such as IDs: the head would not fit in memory."""
    count = len(train.rows)
    distinct = train.labels.to_numpy()
    if ((distinct < 0) | (distinct >= count)).any():
        values = integers_of(train.label_values(train.rows, slice(0, count)))
        refuse_rows(
            train.location,
            ((values < 0) | (values >= count)) & train.usable,
            lambda row: f"label {values[row]} is no class index: these count from 0, and there are {count} rows",
        )


def _sample_rows(rows: np.ndarray, max_rows: int) -> np.ndarray:
    """Samples `max_rows` of `rows`, ascending; a larger sample contains every smaller one."""
    # RandomState rather than Generator: numpy guarantees that its stream never changes.
    return np.sort(np.random.RandomState(0).permutation(rows)[:max_rows])
