"""Texts that occur more than once: within a source, with different labels, and in training and evaluation rows.

Texts are compared by their 64-bit hashes. Work goes by ranges of hashes, so that memory does not grow with the number
of rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mtl_dist.data.chunked import chunk_slices
from mtl_dist.data.token_files import NO_LABEL

ROWS_AT_A_TIME = 1 << 22
"""About as many rows are compared at a time."""


@dataclass(frozen=True)
class TextRows:
    """Hash of each row's text, and its labels."""

    hashes: np.ndarray
    """64-bit hashes of the texts, [rows] uint64."""
    labels: Mapping[str, np.ndarray]
    """Class index of each row, [rows] int64, by task; NO_LABEL where there is none."""


@dataclass(frozen=True)
class Repeated:
    """Texts of a source that occur more than once."""

    rows: int
    """Rows whose text occurs more than once."""
    texts: int
    """Distinct texts of these rows."""
    conflicts: dict[str, int]
    """Texts that have different labels in different rows, by task."""


def find_repeated(parts: Sequence[TextRows]) -> Repeated:
    """Counts the texts that occur more than once in all parts of a source together."""
    tasks = list(parts[0].labels) if parts else []
    rows = texts = 0
    conflicts = dict.fromkeys(tasks, 0)
    for low, high in _ranges(sum(len(part.hashes) for part in parts)):
        selected = [_rows_in(part.hashes, low, high) for part in parts]
        hashes = np.concatenate([part.hashes[found] for part, found in zip(parts, selected, strict=True)])
        distinct, groups, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        texts += int((counts > 1).sum())
        rows += int(counts[counts > 1].sum())
        for task in tasks:
            labels = np.concatenate([part.labels[task][found] for part, found in zip(parts, selected, strict=True)])
            conflicts[task] += _conflicts(groups, labels, len(distinct))
    return Repeated(rows, texts, conflicts)


def _conflicts(groups: np.ndarray, labels: np.ndarray, count: int) -> int:
    """Number of groups, of `count`, whose rows have at least two different labels."""
    known = labels != NO_LABEL
    least, most = np.full(count, np.iinfo(np.int64).max), np.full(count, NO_LABEL)
    np.minimum.at(least, groups[known], labels[known])
    np.maximum.at(most, groups[known], labels[known])
    return int((least < most).sum())


def count_leaks(train: Mapping[str, np.ndarray], evaluated: np.ndarray) -> tuple[int, dict[str, int]]:
    """Rows of `evaluated` whose text is also a training text: of any set, and of each set of `train`, by its name.

    All arrays are hashes of texts, [rows] uint64. Sets without any are left out.
    """
    total, by_set = 0, dict.fromkeys(train, 0)
    for low, high in _ranges(sum(map(len, train.values()))):
        texts = evaluated[_rows_in(evaluated, low, high)]
        leaked = np.zeros(len(texts), dtype=bool)
        for name, hashes in train.items():
            found = np.isin(texts, hashes[_rows_in(hashes, low, high)])
            by_set[name] += int(found.sum())
            leaked |= found
        total += int(leaked.sum())
    return total, {name: count for name, count in by_set.items() if count}


def _ranges(rows: int) -> Iterator[tuple[np.uint64, np.uint64]]:
    """First and last hash of ranges that divide all 64-bit numbers evenly, each with about ROWS_AT_A_TIME of `rows`."""
    parts = max(1, -(-rows // ROWS_AT_A_TIME))
    bounds = [part * 2**64 // parts for part in range(parts + 1)]
    return ((np.uint64(low), np.uint64(high - 1)) for low, high in pairwise(bounds))


def _rows_in(hashes: np.ndarray, low: np.uint64, high: np.uint64) -> np.ndarray:
    """Numbers of the rows whose hash is between `low` and `high`, ascending."""
    parts = [np.zeros(0, dtype=np.int64)]
    for chunk in chunk_slices(len(hashes)):
        part = hashes[chunk]
        parts.append(chunk.start + np.flatnonzero((part >= low) & (part <= high)))
    return np.concatenate(parts)
