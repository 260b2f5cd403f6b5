"""Validation of an example set before anything is trained: which rows are used, in which split, and their classes.

Works on whole columns, in chunks: ten million rows take seconds. Rows count from 0.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtl_dist.config.data_recipe import SPLITS
from mtl_dist.config.sources import ExampleSetConfig
from mtl_dist.data.chunked import chunk_slices, class_counts, concatenate_on_disk, rows_where
from mtl_dist.data.columns import have_text, mask_of, refuse_rows
from mtl_dist.data.labels import (
    CLASS_LABEL,
    NAMED,
    NO_LABEL,
    STRINGS,
    UNKNOWN,
    LabelClasses,
    decide_classes,
    is_whole_number,
    similar_names,
)
from mtl_dist.data.sources import SourceTables
from mtl_dist.data.splitting import sides
from mtl_dist.data.string_table import StringTable
from mtl_dist.errors import UserError, clip, list_some

_WORDS_FOR_MISSING = {"na", "n/a", "nan", "nil", "none", "null"}
"""Words that other programs write for a missing value; some are classes, as the stance None of an argument."""
EmptyText = Literal["error", "skip"]
MANY_CLASSES, TOO_MANY_CLASSES = 20, 1000
"""Numbers of classes beyond which a label column looks like an identifier, or is refused as one, if more than half of
the labels occur once on average."""


@dataclass(frozen=True)
class LabeledSplit:
    """The rows of one split that are used, with their class indices."""

    table: StringTable
    """The rows that the split is taken from."""
    origin: str
    """Split of the source that these rows are; begins the place of a row in messages."""
    rows: np.ndarray
    """Row numbers that are used, ascending, [n] int64; memory-mapped, as the labels, where the split is large."""
    labels: dict[str, np.ndarray]
    """Class index of each of `rows`, [n] int64, by task; NO_LABEL where there is none."""


@dataclass(frozen=True)
class LabeledSet:
    """An example set's validated rows before tokenization."""

    classes: dict[str, LabelClasses]
    """By task."""
    splits: dict[str, LabeledSplit]
    """In the order of SPLITS."""
    class_counts: dict[str, dict[str, np.ndarray]]
    """Number of rows of each class, [classes] int64, by task and split; without splits that have none of a task."""
    missing: dict[str, dict[str, int]]
    """Number of rows with text and without a label, by task and split."""
    warnings: tuple[str, ...]
    """One line per finding that is not an error, beginning with a key of the recipe."""


def check_rows(
    config: ExampleSetConfig,
    source: SourceTables,
    splits: Sequence[str],
    empty_text: EmptyText,
    known: Mapping[str, LabelClasses] | None = None,
) -> LabeledSet:
    """Validates every row of `splits`, finds classes and their indices, and samples `max_rows` training rows.

    The classes are those of `known`, by task, for a model that is trained already. Raises UserError, with split and
    row, for texts that are missing, for labels that are missing and must not be or that are of no class, for a split
    without rows of a task, and for fewer than two classes.
    """
    checked = {split: _CheckedTable(config, split, table, empty_text) for split, table in source.tables.items()}
    classes = {
        task: known[task] if known else _classes(config, task, checked, source.class_names) for task in config.tasks
    }
    indices = {split: part.class_indices(classes) for split, part in checked.items()}
    labeled: dict[str, LabeledSplit] = {}
    missing: dict[str, dict[str, int]] = {task: {} for task in config.tasks}
    for split in (split for split in SPLITS if split in splits):
        origin = config.origin_of(split)
        if origin not in checked:
            continue
        part = checked[origin]
        mask = part.rows_of(split)
        for task, found in indices[origin].items():
            missing[task][split] = _count_missing(found, mask)
        chosen = mask & part.labelled
        if chosen.any():
            max_rows = config.source.max_rows if split == "train" else None
            labeled[split] = _selected(part.table, origin, chosen, indices[origin], max_rows)
        else:
            _check_absent(config, split, len(chosen))
    counts = {task: _class_counts(config, task, labeled, len(classes[task].names)) for task in config.tasks}
    warnings = [line for part in checked.values() for line in part.warnings]
    for task in () if known else config.tasks:
        warnings += _class_warnings(config, task, classes[task], checked)
    return LabeledSet(classes, labeled, counts, missing, tuple(warnings))


def _check_absent(config: ExampleSetConfig, split: str, rows: int) -> None:
    """Raises UserError for a split without labelled rows, of `rows` in its source, that must have some."""
    if split in config.source.split.held_out:
        raise UserError(f"{config.key}.split.{split}: none of the {rows} rows falls into it; raise the share")
    if split != "validation":
        raise UserError(f"{config.key}: the {split} split has no rows with a label")


def _count_missing(indices: np.ndarray, mask: np.ndarray) -> int:
    """Number of rows of a mask that have no label, by the class index of each row, [rows] int64."""
    chunks = chunk_slices(len(indices))
    return sum(int(np.count_nonzero(mask[chunk] & (indices[chunk] == NO_LABEL))) for chunk in chunks)


class _CheckedTable:
    """The rows of one split of a source, validated as far as that is possible without the other splits.

    Memory use does not grow with the number of rows by more than a few bytes each. Raises UserError as `check_rows`
    does.
    """

    def __init__(self, config: ExampleSetConfig, split: str, table: StringTable, empty_text: EmptyText) -> None:
        self.table = table
        self._config = config
        self._split = split
        self.usable = self._mask(config.text, lambda chunk: have_text(chunk.columns))
        """Mask of the rows with text."""
        if empty_text == "error":
            complaint = "text is empty; data.empty_text=skip leaves such rows out"
            refuse_rows(f"{config.key}: {split}", ~self.usable, lambda row: complaint)
        skipped = len(table) - int(np.count_nonzero(self.usable))
        if skipped == len(table):
            raise UserError(f"{config.key}: the {split} split has no rows with text")
        self.warnings = (
            [f"{config.key}: {skipped} of {len(table)} {split} rows have no text and are left out"] if skipped else []
        )
        self.labelled = np.zeros(len(table), dtype=bool)
        """Mask of the rows that have a label for some task."""
        for name, task in config.tasks.items():
            present = self._mask([task.label], lambda chunk: mask_of(chunk.column(0).is_valid()))
            if task.missing == "error":
                self._refuse(name, self.usable & ~present, lambda label: "has no label; missing: skip leaves it out")
            self.labelled |= present
        self._sides: np.ndarray | None = None
        if split == "train" and config.source.split.held_out:
            # In an order that is the same for all example sets of the source.
            text = sorted([*config.text, *config.other_text]) if config.other_text else config.text
            self._sides = sides(table, text, self.usable, config.source.split)

    def rows_of(self, split: str) -> np.ndarray:
        """Mask of the rows with text that belong to a split: this one, or one that is held out of its rows."""
        return self.usable if self._sides is None else self.usable & (self._sides == SPLITS.index(split))

    def values(self, task: str) -> set[str]:
        """Distinct labels of the rows with text."""
        distinct = [pc.unique(labels.filter(pa.array(usable))) for labels, usable in self._labels(task)]
        return set(pc.unique(pa.chunked_array(distinct)).drop_null().to_pylist())

    def count(self, task: str) -> int:
        """Number of rows with text that have a label for a task."""
        return sum(int(np.count_nonzero(mask_of(labels.is_valid()) & usable)) for labels, usable in self._labels(task))

    def refuse_values(self, task: str, is_bad: Callable[[str], bool], complaint: Callable[[str], str]) -> None:
        """Raises UserError for the first row with text whose label is bad."""
        bad = {value for value in self.values(task) if is_bad(value)}
        values = pa.array(sorted(bad), pa.large_string())
        masks = (mask_of(pc.is_in(labels, value_set=values)) & usable for labels, usable in self._labels(task))
        self._refuse(task, concatenate_on_disk(masks), complaint)

    def class_indices(self, classes: Mapping[str, LabelClasses]) -> dict[str, np.ndarray]:
        """Class index of each row, [rows] int64, by task. Raises UserError for a label that is of no class."""
        found = {}
        for task, of_task in classes.items():
            found[task] = concatenate_on_disk(of_task.class_indices(labels) for labels, _ in self._labels(task))
            unknown = concatenate_on_disk(
                (found[task][chunk] == UNKNOWN) & self.usable[chunk] for chunk in chunk_slices(len(self.table))
            )
            self._refuse(task, unknown, of_task.complaint)
        return found

    def _refuse(self, task: str, bad: np.ndarray, complaint: Callable[[str], str]) -> None:
        """Raises UserError for the first row of the mask `bad`, if any, with the complaint about its label."""
        column = self.table.column(self._config.tasks[task].label)
        location = f"{self._config.key_of(task)}: {self._split}"
        refuse_rows(location, bad, lambda row: complaint(column[row].as_py()))

    def _labels(self, task: str) -> Iterator[tuple[pa.ChunkedArray, np.ndarray]]:
        """Label column and mask of the rows with text, chunk by chunk."""
        slices = chunk_slices(len(self.table))
        for rows, chunk in zip(slices, self.table.chunks([self._config.tasks[task].label]), strict=True):
            yield chunk.column(0), self.usable[rows]

    def _mask(self, columns: Sequence[str], of_chunk: Callable[[pa.Table], np.ndarray]) -> np.ndarray:
        return concatenate_on_disk(of_chunk(chunk) for chunk in self.table.chunks(columns))


def _classes(
    config: ExampleSetConfig, task: str, tables: Mapping[str, _CheckedTable], class_names: Mapping[str, tuple[str, ...]]
) -> LabelClasses:
    """The classes of a task. Raises UserError for labels that cannot be classes."""
    one, key = config.tasks[task], config.key_of(task)
    if one.labels is not None:
        return LabelClasses(tuple(one.labels.values()), tuple(one.labels), NAMED)
    values = {split: part.values(task) for split, part in tables.items()}
    train = values.pop("train")
    if not train:
        raise UserError(f"{key}: the train split has no rows with a label")
    classes = decide_classes(class_names.get(one.label, ()), train, set().union(*values.values()))
    if classes is None:
        for part in tables.values():
            part.refuse_values(task, lambda value: not is_whole_number(value), _fractional)
        raise AssertionError("a fractional number is among the labels")
    if classes.kind == CLASS_LABEL:
        _refuse_numbers_beside_names(classes, task, tables["train"], class_names[one.label])
    found = sorted({classes.index(value) for value in train})
    if len(classes.names) < 2 or (len(found) < 2 and classes.kind != CLASS_LABEL):
        name = classes.names[found[0]]
        raise UserError(
            f"{key}.label: all training rows have the label {clip(name)!r}; a task has at least two classes"
        )
    count = tables["train"].count(task)
    if classes.kind != CLASS_LABEL and len(found) > TOO_MANY_CLASSES and 2 * len(found) > count:
        raise UserError(
            f"{key}.label: {one.label!r} holds {len(found)} different values in {count} training rows, which is an"
            " identifier or a measurement and no class; name a column of classes, or the classes in labels"
        )
    return classes


def _refuse_numbers_beside_names(
    classes: LabelClasses, task: str, train: _CheckedTable, class_names: Sequence[str]
) -> None:
    """Refuses plain numbers in a column that other files give class names: they are indices as likely as classes."""
    added = set(filter(is_whole_number, classes.names[len(class_names) :]))
    if added:
        train.refuse_values(
            task,
            added.__contains__,
            lambda value: (
                f"label {value} has no class name, and other rows have the names {list_some(class_names)};"
                " give all files names, or none"
            ),
        )


def _fractional(value: str) -> str:
    return (
        f"label {value} is a fractional number; classes are whole numbers or strings, or named by labels in the recipe"
    )


def _class_warnings(
    config: ExampleSetConfig, task: str, classes: LabelClasses, tables: Mapping[str, _CheckedTable]
) -> list[str]:
    """Lines on classes that look as if they were none."""
    key, lines = config.key_of(task), []
    similar = similar_names(classes.names) if classes.kind in (STRINGS, CLASS_LABEL) else []
    if similar:
        groups = list_some([" and ".join(map(repr, group)) for group in similar])
        lines.append(f"{key}: classes differ only in case, white space or digits: {groups}")
    missing = [name for name in classes.names if name.strip().casefold() in _WORDS_FOR_MISSING]
    if missing and classes.kind == STRINGS:
        words = list_some([repr(name) for name in missing])
        lines.append(f"{key}: {words} is a class like others; a missing label is an empty field, or null")
    if classes.kind != NAMED and len(classes.names) > MANY_CLASSES:
        count = tables["train"].count(task)
        if 2 * len(classes.names) > count:
            column = config.tasks[task].label
            lines.append(f"{key}: {len(classes.names)} classes in {count} training rows; is {column!r} a label?")
    return lines


def _selected(
    table: StringTable, origin: str, mask: np.ndarray, labels: Mapping[str, np.ndarray], max_rows: int | None
) -> LabeledSplit:
    """The rows of a mask, or a sample of `max_rows` of them."""
    rows = rows_where(mask)
    chosen = {
        task: concatenate_on_disk(found[chunk][mask[chunk]] for chunk in chunk_slices(len(mask)))
        for task, found in labels.items()
    }
    if max_rows is not None:
        sample = _sample_rows(rows, max_rows)
        chosen = {task: found[np.searchsorted(rows, sample)] for task, found in chosen.items()}
        rows = sample
    return LabeledSplit(table, origin, rows, chosen)


def _class_counts(
    config: ExampleSetConfig, task: str, splits: Mapping[str, LabeledSplit], classes: int
) -> dict[str, np.ndarray]:
    """Number of rows of each class, by split. Raises UserError for a training or test split without any."""
    found = {split: class_counts(part.labels[task], classes) for split, part in splits.items()}
    for split, counts in found.items():
        if split != "validation" and not counts.any():
            raise UserError(f"{config.key_of(task)}: the {split} split has no rows with a label")
    return {split: counts for split, counts in found.items() if counts.any()}


def _sample_rows(rows: np.ndarray, max_rows: int) -> np.ndarray:
    """Samples `max_rows` of `rows`, ascending; a larger sample contains every smaller one."""
    # RandomState rather than Generator: numpy guarantees that its stream never changes.
    return np.sort(np.random.RandomState(0).permutation(rows)[:max_rows])
