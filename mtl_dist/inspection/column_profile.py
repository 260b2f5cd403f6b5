"""Statistics of a column of strings, gathered batch by batch in bounded memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

MAX_LISTED = 2000
"""Distinct values up to which a column's values are counted one by one; more are no classes."""
SAMPLE = 10_000
"""First values among which distinct ones are counted, where there are too many to count all."""

_PATTERNS = {
    "whole": r"^-?(0|[1-9][0-9]*)(\.0+)?$",
    "number": r"^[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]+)?$",
    "padded": r"^[+-]?0[0-9]",
    "truth": r"^\s*(?i:true|false)\s*$",
    "date": r"^([0-9]{4}[-/.][0-9]{1,2}([-/.][0-9]{1,2})?|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2,4})([T ][0-9].*)?$"
    r"|^[0-9]{1,2}:[0-9]{2}(:[0-9]{2})?$",
    "spaced": r"\S\s+\S",
    "code": r"^[!-~]+$",  # ASCII without white space
}
"""What the values of a column are counted as; a value may be several."""


@dataclass
class ColumnProfile:
    """What is known about the values of a column."""

    name: str
    rows: int = 0
    missing: int = 0
    """Rows without a value, or with a blank one."""
    characters: int = 0
    """Characters of all values together."""
    longest: int = 0
    """Characters of the longest value."""
    matches: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_PATTERNS, 0))
    """Number of values that match each of _PATTERNS."""
    counts: dict[str, int] | None = field(default_factory=dict)
    """Number of rows of each value; None where there are more than MAX_LISTED distinct values."""
    _sampled: int = 0
    _sample: set[int] = field(default_factory=set)
    """Hashes of the first SAMPLE values."""

    @property
    def present(self) -> int:
        """Number of rows with a value."""
        return self.rows - self.missing

    @property
    def distinct(self) -> int | None:
        """Number of distinct values; None where there are more than MAX_LISTED."""
        return None if self.counts is None else len(self.counts)

    @property
    def distinct_share(self) -> float:
        """Distinct values per value, among the first SAMPLE values."""
        return len(self._sample) / max(1, self._sampled)

    @property
    def mean_characters(self) -> float:
        """Mean number of characters of a value."""
        return self.characters / max(1, self.present)

    def share(self, pattern: str) -> float:
        """Share of the values that match one of _PATTERNS."""
        return self.matches[pattern] / max(1, self.present)

    def all_are(self, pattern: str) -> bool:
        """Whether every value matches one of _PATTERNS, and there is one."""
        return self.present > 0 and self.matches[pattern] == self.present

    def add(self, column: pa.Array) -> None:
        """Adds the values of a batch, strings with null for missing ones."""
        self.rows += len(column)
        self.missing += column.null_count
        present = column.drop_null()
        if not len(present):
            return
        self._add_to_sample(present)
        found = present.value_counts()
        values, counts = found.field("values"), found.field("counts").to_numpy()
        lengths = pc.utf8_length(values).to_numpy()
        self.characters += int(lengths @ counts)
        self.longest = max(self.longest, int(lengths.max()))
        for name, pattern in _PATTERNS.items():
            matching = pc.match_substring_regex(values, pattern).to_numpy(zero_copy_only=False)
            self.matches[name] += int(counts[matching].sum())
        if self.counts is not None:
            self._count(zip(values.to_pylist(), counts.tolist(), strict=True))

    def include(self, other: "ColumnProfile") -> None:
        """Adds the statistics of further rows."""
        self.rows += other.rows
        self.missing += other.missing
        self.characters += other.characters
        self.longest = max(self.longest, other.longest)
        for name, count in other.matches.items():
            self.matches[name] += count
        if self.counts is not None and other.counts is not None:
            self._count(other.counts.items())
        else:
            self.counts = None
        self._sample |= other._sample
        self._sampled += other._sampled

    def _add_to_sample(self, present: pa.Array) -> None:
        wanted = present[: SAMPLE - self._sampled]
        self._sampled += len(wanted)
        self._sample.update(xxhash.xxh3_64_intdigest(value.encode()) for value in wanted.to_pylist())

    def _count(self, values: Iterable[tuple[str, int]]) -> None:
        """Adds the numbers of rows of each of `values`."""
        for value, count in values:
            if self.counts is None:
                return
            self.counts[value] = self.counts.get(value, 0) + count
            if len(self.counts) > MAX_LISTED:
                self.counts = None
