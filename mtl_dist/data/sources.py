"""Rows of a task as `datasets` reads them, and the rules they must keep before anything trains.

Checks work on whole columns (pyarrow, numpy), so that ten million rows take seconds. Rows are counted from 0.
"""

import glob
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.dataset import ParquetFragmentScanOptions

from mtl_dist.config.recipe import TaskConfig
from mtl_dist.config.validation import FILE_BUILDERS
from mtl_dist.data.chunked import chunk_slices, concatenate_on_disk, map_chunks
from mtl_dist.data.diagnostics import find_fault
from mtl_dist.data.fingerprint import local_files
from mtl_dist.errors import UserError, did_you_mean, root_cause

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class LabeledSplit:
    """The rows of one split that are used."""

    columns: datasets.Dataset
    """The whole split in arrow format: the task's text columns and its label column."""
    rows: np.ndarray
    """The rows used, ascending, int64; where there are many, these and the labels are mapped files."""
    labels: np.ndarray
    """Class index of each of `rows`, int64."""


@dataclass(frozen=True)
class LabeledTask:
    """What a task trains and is measured on, before tokenisation."""

    labels: tuple[str, ...]
    splits: dict[str, LabeledSplit]
    warnings: tuple[str, ...]


# What `datasets` and its readers say about files without rows, each in its own words.
_NO_ROWS = ("StopIteration", "corresponds to no data", "BatchSize must be greater than 0", "No columns to parse")

_READER_OPTIONS: dict[str, dict[str, Any]] = {
    # pandas would read texts and labels such as "NA" and "None" as missing.
    "csv": {"keep_default_na": False, "na_values": [""]},
    # Or the whole file would come to be held in memory.
    "parquet": {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)},
}


def load_rows(key: str, task: TaskConfig, split: str) -> datasets.Dataset:
    """The columns that `task` needs of one split, memory-mapped, in arrow format; `key` (`tasks.<name>`) is for errors.

    Raises UserError when the split cannot be read, has no rows or lacks a column.
    """
    files = None
    if task.data_files:
        pattern = task.data_files[split]
        if task.path in FILE_BUILDERS and "://" not in pattern and not glob.glob(pattern, recursive=True):  # noqa: PTH207
            raise UserError(f"{key}.data_files.{split}: there is no file {pattern}")
        files = {split: local_files(task, split) or pattern}
    options = _READER_OPTIONS.get(task.path, {})
    try:
        with _quiet():
            loaded = datasets.load_dataset(task.path, task.name, data_files=files, split=split, **options)
    except Exception as error:  # each reader has its own classes of errors
        if any(words in root_cause(error) for words in _NO_ROWS):
            raise UserError(f"{key}: the {split} split has no rows") from error
        if fault := _fault_in_files(task, split):
            raise UserError(f"{key}: {split} {fault}") from error
        raise UserError(f"{key}: cannot load the {split} split: {root_cause(error)}") from error
    rows = cast(datasets.Dataset, loaded)
    for field, columns in (("text", task.text), ("label", [task.label])):
        for column in columns:
            if column not in rows.column_names:
                hint = did_you_mean(column, rows.column_names)
                raise UserError(f"{key}.{field}: the {split} split has no column {column!r}{hint}")
    wanted = list(dict.fromkeys([*task.text, task.label]))
    return cast(datasets.Dataset, rows.select_columns(wanted).with_format("arrow"))


def _fault_in_files(task: TaskConfig, split: str) -> str | None:
    return find_fault(task.path, task.data_files.get(split, ""), [*task.text, task.label])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences `datasets`: its account of an error that it raises anyway, and its bars where there is no terminal."""
    verbosity = datasets.logging.get_verbosity()
    hide_bars = not (sys.stderr.isatty() or datasets.are_progress_bars_disabled())
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if hide_bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if hide_bars:
            datasets.enable_progress_bars()


def check_rows(
    key: str, task: TaskConfig, splits: Mapping[str, datasets.Dataset], empty_text: Literal["error", "skip"]
) -> LabeledTask:
    """Checks every row of `splits`, gives labels their class index and draws the training rows.

    Raises UserError with split and row for text or labels that are missing, of a wrong type or out of range, for a
    split of which nothing is left, and for fewer than two classes.
    """
    warnings = []
    checked = {split: _CheckedSplit(key, task, split, rows, empty_text) for split, rows in splits.items()}
    for split, of in checked.items():
        if of.skipped:
            warnings.append(f"{of.skipped} of {len(of.rows)} {split} rows have no text and are left out")
    names = _class_names(key, task, checked)
    examples = {}
    for split, of in checked.items():
        chosen, indices = of.chosen(), of.class_indices(names)
        if split == "train" and task.max_rows is not None:
            drawn = _draw(chosen, task.max_rows)
            chosen, indices = drawn, indices[np.searchsorted(chosen, drawn)]
        examples[split] = LabeledSplit(of.rows, chosen, indices)
    # By parts, because bincount makes a copy of what it may not write to.
    of_train, counts = examples["train"].labels, np.zeros(len(names), dtype=np.int64)
    for part in chunk_slices(len(of_train)):
        counts += np.bincount(of_train[part], minlength=len(names))
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if absent:
        warnings.append(f"no training row has the label {', '.join(absent)}")
    return LabeledTask(names, examples, tuple(warnings))


def check_split(
    key: str,
    task: TaskConfig,
    split: str,
    rows: datasets.Dataset,
    names: tuple[str, ...],
    empty_text: Literal["error", "skip"],
) -> LabeledSplit:
    """The rows of one split, checked as `check_rows` does, for a model whose classes are `names` already."""
    checked = _CheckedSplit(key, task, split, rows, empty_text)
    return LabeledSplit(rows, checked.chosen(), checked.class_indices(names))


class _CheckedSplit:
    """A split whose texts and labels have been found to be there, each by itself.

    What is held of its rows does not grow with them, unless its labels are JSON or floats.

    Raises UserError as `check_rows`, but for labels that need the other splits to be judged.
    """

    def __init__(
        self, key: str, task: TaskConfig, split: str, rows: datasets.Dataset, empty_text: Literal["error", "skip"]
    ) -> None:
        self.place = f"{key}: {split}"
        self.rows = rows
        self._label = task.label
        self._fault = partial(_fault_in_files, task, split)
        self.usable = map_chunks(
            rows, lambda piece, _: _rows_with_text(self.place, task.text, piece, empty_text), concatenate_on_disk
        )
        self.skipped = len(rows) - int(self.usable.sum())
        if self.skipped == len(rows):
            raise UserError(f"{key}: the {split} split has no rows" + (" with text" if self.skipped else ""))
        found = self._by_pieces(self._distinct_labels, list)
        self.label_type: pa.DataType = found[0].type
        self.labels = pc.unique(pa.chunked_array(found))
        """Every label that a usable row has, once."""

    def label_values(self, piece: datasets.Dataset, part: slice) -> pa.ChunkedArray:
        return _label_values(self.place, self._label, piece, self.usable[part], self._fault)

    def _distinct_labels(self, piece: datasets.Dataset, part: slice) -> pa.Array:
        return pc.unique(self.label_values(piece, part).filter(pa.array(self.usable[part])))

    def _by_pieces(self, check: Callable[[datasets.Dataset, slice], T], combine: Callable[[Iterable[T]], R]) -> R:
        # What labels these are is known of all of them alone.
        kind = self.rows.data.schema.field(self._label).type
        if isinstance(kind, pa.JsonType) or pa.types.is_floating(kind):
            return combine([check(self.rows, slice(0, len(self.rows)))])
        return map_chunks(self.rows, check, combine)

    def chosen(self) -> np.ndarray:
        """The usable rows, ascending, int64."""
        return concatenate_on_disk(
            part.start + np.flatnonzero(self.usable[part]) for part in chunk_slices(len(self.rows))
        )

    def class_indices(self, names: tuple[str, ...]) -> np.ndarray:
        """The class of each usable row, int64."""

        def indices(piece: datasets.Dataset, part: slice) -> np.ndarray:
            usable = self.usable[part]
            return _class_indices(self.place, self.label_values(piece, part), names, usable)[usable]

        return self._by_pieces(indices, concatenate_on_disk)


def _refuse(place: str, bad: np.ndarray, what: Callable[[int], str]) -> None:
    """Raises UserError for the first row where `bad` is set; `what` says what is wrong with a row."""
    found = np.flatnonzero(bad)
    if len(found):
        more = f"; {len(found) - 1} more like it" if len(found) > 1 else ""
        raise UserError(f"{place} row {found[0]} (from 0): {what(int(found[0]))}{more}")


def _rows_with_text(place: str, columns: list[str], rows: datasets.Dataset, empty_text: str) -> np.ndarray:
    """Rows whose text columns all hold more than white space, as a mask; refuses others unless they may be skipped."""
    usable = np.ones(len(rows), dtype=bool)
    for name in columns:
        usable &= _holds_text(place, name, rows[:][name])
    if empty_text == "error":
        _refuse(place, ~usable, lambda row: "text is empty; data.empty_text=skip leaves such rows out")
    return usable


def _holds_text(place: str, name: str, column: pa.ChunkedArray) -> np.ndarray:
    _refuse(place, _not_strings(column), lambda row: f"text column {name!r} holds {_value(column, row)!r}, no string")
    _refuse_other_encodings(place, name, column)
    column = column.cast(pa.large_string())
    empty = pc.or_(pc.equal(column, ""), pc.utf8_is_space(column))
    return ~_mask(pc.fill_null(empty, True))


def _refuse_other_encodings(place: str, name: str, column: pa.ChunkedArray) -> None:
    """Readers take the bytes of a string as they are; what is not UTF-8 would fail wherever it is looked at first."""
    if not _is_string(column.type):
        return
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = column.cast(pa.large_binary()).to_pylist()
        bad = np.array([value is not None and not _is_utf8(value) for value in values])
        _refuse(place, bad, lambda row: f"column {name!r} holds bytes that are not UTF-8")


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _mask(values: pa.ChunkedArray) -> np.ndarray:
    return values.to_numpy().astype(bool)


def _value(column: pa.ChunkedArray, row: int) -> Any:
    """A value as its file has it, for messages."""
    value = column[row].as_py()
    return json.loads(value) if isinstance(column.type, pa.JsonType) else value


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _not_strings(column: pa.ChunkedArray) -> np.ndarray:
    """Rows that hold a value which is not a string."""
    if _is_string(column.type):
        return np.zeros(len(column), dtype=bool)
    valid = _mask(column.is_valid())
    if isinstance(column.type, pa.JsonType):
        # Where the values of a JSON column differ in type, `datasets` keeps each as JSON: strings begin with a quote.
        return valid & ~_begins(column, '"')
    return valid


def _begins(column: pa.ChunkedArray, pattern: str) -> np.ndarray:
    """Rows of a JSON column whose value, written as JSON, begins with `pattern`, a regular expression."""
    stored = pa.chunked_array([chunk.storage for chunk in column.chunks])
    return _mask(pc.fill_null(pc.match_substring_regex(stored, f"^{pattern}"), False))


def _label_values(
    place: str, name: str, rows: datasets.Dataset, usable: np.ndarray, fault: Callable[[], str | None]
) -> pa.ChunkedArray:
    """The label column as integers or strings, checked to have a value in every usable row.

    A column with class names of its own (`datasets.ClassLabel`) becomes these names. `fault` looks into the files for
    what made their reader take the column for one of mixed types.
    """
    column = rows[:][name]
    _refuse_other_encodings(place, name, column)
    feature = rows.features[name]
    missing = _mask(column.is_null(nan_is_null=True))
    if _is_string(column.type):
        column = column.cast(pa.string())
        missing |= _mask(pc.fill_null(pc.equal(column, ""), True))

    def unlabelled(row: int) -> str:
        return f"label is {'empty' if column[row].as_py() == '' else 'null'}; leave out rows that have none"

    _refuse(place, missing & usable, unlabelled)
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        values = _integers(column)
        _refuse_out_of_range(place, values, len(feature.names), usable)
        return pa.chunked_array([pa.array(feature.names).take(pa.array(np.where(usable, values, 0)))])
    if isinstance(column.type, pa.JsonType):
        column = _of_one_type(place, column, missing, usable, fault)
    if pa.types.is_floating(column.type):
        column = _whole_numbers(place, column, missing, usable)
    if not (_is_string(column.type) or pa.types.is_integer(column.type)):
        _refuse(place, usable, lambda row: f"label {column[row].as_py()!r} is neither an integer nor a string")
    return column


def _of_one_type(
    place: str, column: pa.ChunkedArray, missing: np.ndarray, usable: np.ndarray, fault: Callable[[], str | None]
) -> pa.ChunkedArray:
    """The labels of a JSON column, refused where they differ in type."""
    whole = _begins(column, r"-?\d+$")
    odd = ~whole if whole[np.argmax(usable)] else ~_begins(column, '"')
    _refuse(place, odd & ~missing, lambda row: f"label {_value(column, row)!r}: use integers only, or strings only")
    # They differ in the file only: a text like "1" became a number, or the first of two values of a row was dropped.
    if found := fault():
        raise UserError(f"{place} {found}")
    return pa.chunked_array([[None if gone else _value(column, row) for row, gone in enumerate(missing)]])


def _whole_numbers(place: str, column: pa.ChunkedArray, missing: np.ndarray, usable: np.ndarray) -> pa.ChunkedArray:
    """Integers that a reader made floats because one of them is missing; other floats are refused, or left so."""
    values = pc.fill_null(column, 0).to_numpy()
    odd = ~missing & ((values != np.floor(values)) | (np.abs(values) >= 2**53))
    _refuse(place, odd & usable, lambda row: f"label {values[row]} is neither an integer nor a string")
    if not missing.any():
        return column
    return pa.chunked_array([pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)])


def _integers(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(column, 0).to_numpy()


def _refuse_out_of_range(place: str, values: np.ndarray, num_labels: int, usable: np.ndarray) -> None:
    bad = ((values < 0) | (values >= num_labels)) & usable
    _refuse(place, bad, lambda row: f"label {values[row]} is out of range 0..{num_labels - 1}")


def _class_names(key: str, task: TaskConfig, splits: Mapping[str, _CheckedSplit]) -> tuple[str, ...]:
    """The classes in order: those of the recipe, else of the column's own names, else of the training rows."""
    if task.labels is not None:
        return tuple(task.labels)
    train = splits["train"]
    for split, of in splits.items():
        if _is_string(of.label_type) != _is_string(train.label_type):
            raise UserError(f"{key}.label: train has {train.label_type} labels and {split} {of.label_type} ones")
    feature = train.rows.features[task.label]
    if isinstance(feature, datasets.ClassLabel) and feature.names:
        names = feature.names
    elif _is_string(train.label_type):
        names = sorted(train.labels.to_pylist())
    else:
        _refuse_ids(train)
        names = [str(index) for index in range(int(train.labels.to_numpy().max()) + 1)]
    if len(names) < 2:
        raise UserError(f"{key}.label: all training rows have the label {names[0]!r}; a task has at least two classes")
    return tuple(names)


def _refuse_ids(train: _CheckedSplit) -> None:
    """Larger numbers are ids or ratings rather than classes; a head that wide would fill the memory."""
    count = len(train.rows)
    distinct = train.labels.to_numpy()
    if ((distinct < 0) | (distinct >= count)).any():
        values = _integers(train.label_values(train.rows, slice(0, count)))
        _refuse(
            train.place,
            ((values < 0) | (values >= count)) & train.usable,
            lambda row: f"label {values[row]} is no class index: these count from 0, and there are {count} rows",
        )


def _class_indices(place: str, labels: pa.ChunkedArray, names: tuple[str, ...], usable: np.ndarray) -> np.ndarray:
    """Class index of every usable row, int64; other rows hold anything."""
    if not _is_string(labels.type):
        values = _integers(labels)
        _refuse_out_of_range(place, values, len(names), usable)
        return values.astype(np.int64)
    indices = pc.fill_null(pc.index_in(labels, value_set=pa.array(names, labels.type)), -1).to_numpy()

    def unknown(row: int) -> str:
        label = labels[row].as_py()
        return f"label {label!r} is not one of the classes{did_you_mean(label, names)}"

    _refuse(place, (indices < 0) & usable, unknown)
    return indices.astype(np.int64)


def _draw(rows: np.ndarray, max_rows: int) -> np.ndarray:
    """`max_rows` of `rows`, ascending: the first of one fixed permutation, so that more rows contain fewer."""
    # RandomState rather than Generator: numpy promises that its stream never changes.
    return np.sort(np.random.RandomState(0).permutation(rows)[:max_rows])
