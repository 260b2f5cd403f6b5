"""Classes of a label column, decided once over all files and splits, and the class index of each row.

Labels are strings as `reading` returns them. The rules, of which the first that applies is taken: (1) the values that
the recipe names, (2) the names of a ClassLabel column, (3) whole numbers in numeric order, (4) false and true,
(5) strings as written, sorted. A value is never an index of a class.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

import numpy as np
import pyarrow as pa

from mtl_dist.errors import MOST_LISTED, UserError, clip, did_you_mean, list_some

NO_LABEL = -1
"""In place of a class index: the row has no label for the task."""
UNKNOWN = -2
"""In place of a class index: the row's label is none of the classes."""
NAMED, CLASS_LABEL, WHOLE_NUMBERS, BOOLEANS, STRINGS = (
    "values of the recipe",
    "class names of the data set",
    "whole numbers",
    "true and false",
    "strings",
)
"""Kinds of label columns; see `LabelClasses.kind`."""
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)(\.0+)?")
_NUMBER = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_YAML_BOOLEANS = ("yes", "no", "on", "off", "y", "n")


def is_whole_number(value: str) -> bool:
    """Whether a label is a whole number: 1 or 1.0, as a column of numbers with holes has it, and not 007."""
    return _WHOLE.fullmatch(value) is not None


def canonical(value: str) -> str:
    """The form in which equal numbers and booleans are equal: 1 for 1.0, 0 for -0, true for True."""
    if is_whole_number(value):
        whole = value.partition(".")[0]
        return "0" if whole == "-0" else whole
    return value.lower() if value.lower() in ("true", "false") else value


@dataclass(frozen=True)
class LabelClasses:
    """The classes of a task, and the values of its label column that stand for them."""

    names: tuple[str, ...]
    """Class names in the order of their indices."""
    values: tuple[str, ...]
    """Value in the data of each class."""
    kind: str
    """Kind of the label column, which decided on the classes: one of the constants of this module."""

    @cached_property
    def _is_typed(self) -> bool:
        """Whether the values are numbers or booleans, which have several forms, each here once."""
        forms = {canonical(value) for value in self.values}
        return len(forms) == len(self.values) and (all(map(is_whole_number, forms)) or forms <= {"true", "false"})

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {canonical(value) if self._is_typed else value: index for index, value in enumerate(self.values)}

    def index(self, value: str) -> int:
        """Index of the class of a value; UNKNOWN if there is none."""
        return self._indices.get(canonical(value) if self._is_typed else value, UNKNOWN)

    def class_indices(self, column: pa.ChunkedArray) -> np.ndarray:
        """Class index of each row, [rows] int64; NO_LABEL for null and UNKNOWN for a value that is of no class."""
        encoded = column.combine_chunks().dictionary_encode()
        of_values = [self.index(value) for value in encoded.dictionary.to_pylist()]
        return np.array([*of_values, NO_LABEL], dtype=np.int64)[encoded.indices.fill_null(-1).to_numpy()]

    def complaint(self, value: str) -> str:
        """Error message for a value that belongs to no class, with a hint where there is one."""
        return f"label {clip(value)!r} is not one of the classes{did_you_mean(value, self.values)}{self._hint(value)}"

    def _hint(self, value: str) -> str:
        if self.kind != NAMED:
            return ""
        count = len(self.names)
        if canonical(value) in map(str, range(count)) and not any(map(is_whole_number, self.values)):
            classes = [f"{index}: {name}" for index, name in enumerate(self.names[:MOST_LISTED])]
            return (
                f"; naming classes by position needs labels: {{{', '.join(classes)}{', ...' * (count > MOST_LISTED)}}}"
            )
        if value.lower() in _YAML_BOOLEANS and {"true", "false"} & set(self.values):
            return "; YAML reads yes, no, on and off as true and false: quote them"
        return ""


def decide_classes(class_names: Sequence[str], train: Set[str], others: Set[str]) -> LabelClasses | None:
    """The classes of a column whose recipe names none; None if all are numbers, and fractional ones among them.

    `class_names` are those of a ClassLabel column, `train` the distinct values of the training rows and `others` those
    of the other splits' files.
    """
    if class_names:
        known = LabelClasses(tuple(class_names), tuple(class_names), CLASS_LABEL)
        names = (*class_names, *sorted(value for value in train if known.index(value) == UNKNOWN))
        return LabelClasses(names, names, CLASS_LABEL)
    values = train | others
    if all(map(is_whole_number, values)):
        numbers = tuple(sorted({canonical(value) for value in train}, key=Decimal))
        return LabelClasses(numbers, numbers, WHOLE_NUMBERS)
    if all(canonical(value) in ("true", "false") for value in values):
        return LabelClasses(("false", "true"), ("false", "true"), BOOLEANS)
    if all(_NUMBER.fullmatch(value) for value in values):
        return None
    names = tuple(sorted(train))
    return LabelClasses(names, names, STRINGS)


def classes_of_model(key: str, names: Sequence[str], labels: Mapping[str, str] | None) -> LabelClasses:
    """The classes of a trained model with the class names `names`, as data of any format has them.

    `labels` are those of the recipe of the data, `key` that of the task in it. Raises UserError if they name other
    classes than the model has.
    """
    if labels is None:
        return LabelClasses(tuple(names), tuple(names), STRINGS)
    values = {name: value for value, name in labels.items()}
    if values.keys() != set(names):
        raise UserError(
            f"{key}.labels: the model's classes are {list_some(names)}, and these {list_some(list(values))}"
        )
    return LabelClasses(tuple(names), tuple(values[name] for name in names), NAMED)


def similar_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Groups of names that differ only in case, in white space around them, or in how a number is written."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[canonical(name.strip()).casefold()].append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]
