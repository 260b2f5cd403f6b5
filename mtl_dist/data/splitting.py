"""Splits by shares of the training rows, the same on every machine and for the rows that are there when others follow.

A row's side follows from a number u in [0, 1): test below the share of test, validation in the share behind it, else
train. Numbers and booleans in a column that decides on sides are equal in any form, such as 1 and 1.0.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

from mtl_dist.config.data_recipe import SPLITS, SplitConfig
from mtl_dist.data.chunked import chunk_slices, concatenate_on_disk
from mtl_dist.data.columns import text_hashes
from mtl_dist.data.labels import canonical
from mtl_dist.data.string_table import StringTable

GOLDEN_RATIO_CONJUGATE = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, fill [0, 1) evenly, however many of them are taken."""
TRAIN, VALIDATION, TEST = range(len(SPLITS))
"""Sides, as indices into SPLITS."""


def sides(table: StringTable, text: Sequence[str], usable: np.ndarray, split: SplitConfig) -> np.ndarray:
    """Side of each row, [rows] int8, as an index into SPLITS; undefined where the mask `usable` is not set."""
    if split.stratify is not None:
        return _stratified_sides(table, text, usable, split, split.stratify)
    return concatenate_on_disk(_sides_of(hashes / 2.0**64, split) for hashes in _row_hashes(table, text, split.by))


def _sides_of(numbers: np.ndarray, split: SplitConfig) -> np.ndarray:
    test = split.test or 0.0
    held_out = test + (split.validation or 0.0)
    return np.where(numbers < test, TEST, np.where(numbers < held_out, VALIDATION, TRAIN)).astype(np.int8)


def _row_hashes(table: StringTable, text: Sequence[str], by: str | None) -> Iterator[np.ndarray]:
    """Hash of what keeps rows together, chunk by chunk: the value of column `by`, or the text where there is none."""
    for chunk in table.chunks([*dict.fromkeys([*text, *([] if by is None else [by])])]):
        hashes = text_hashes([chunk.column(name).to_pylist() for name in text])
        if by is not None:
            groups = chunk.column(by).to_pylist()
            for row, group in enumerate(groups):
                if group is not None:
                    hashes[row] = xxhash.xxh3_64_intdigest(canonical(group).encode())
        yield hashes


def _stratified_sides(
    table: StringTable, text: Sequence[str], usable: np.ndarray, split: SplitConfig, stratify: str
) -> np.ndarray:
    """Sides that give each its share of every class of column `stratify`; equal texts follow their first row."""
    hashes = concatenate_on_disk(_row_hashes(table, text, None))
    rows = np.flatnonzero(usable)
    distinct, first = np.unique(np.asarray(hashes[rows]), return_index=True)
    order = np.argsort(first)
    of_texts = np.full(len(distinct) + 1, TRAIN, dtype=np.int8)  # with a place for texts that are not usable
    of_texts[order] = _sides_in_order(table, rows[first[order]], split, stratify)
    return concatenate_on_disk(
        of_texts[np.searchsorted(distinct, hashes[chunk])] for chunk in chunk_slices(len(hashes))
    )


def _sides_in_order(table: StringTable, rows: np.ndarray, split: SplitConfig, stratify: str) -> np.ndarray:
    """Side of each text, [n] int8, whose first rows are `rows`, ascending."""
    seen: dict[str | None, int] = {}
    starts: dict[str | None, float] = {}
    parts = [np.zeros(0, dtype=np.int8)]
    for chunk in chunk_slices(len(rows)):
        numbers = np.empty(chunk.stop - chunk.start)
        values = table.take(rows[chunk], [stratify]).column(stratify).to_pylist()
        for at, value in enumerate(None if value is None else canonical(value) for value in values):
            if value not in seen:
                seen[value], starts[value] = 0, _start(value, split)
            numbers[at] = starts[value] + seen[value] * GOLDEN_RATIO_CONJUGATE
            seen[value] += 1
        parts.append(_sides_of(numbers % 1.0, split))
    return np.concatenate(parts)


def _start(value: str | None, split: SplitConfig) -> float:
    """The number of a class's first text, near the middle of the numbers that train.

    They differ from class to class, so that classes of a few rows do not all have the same rows held out.
    """
    train = 1.0 - (split.validation or 0.0) - (split.test or 0.0)
    name = b"" if value is None else b"=" + value.encode()
    offset = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2.0**64 - 0.5
    return 1.0 - train / 2 + offset * train / 2
