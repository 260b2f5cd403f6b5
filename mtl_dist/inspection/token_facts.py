"""Lengths of texts before they are cut, and characters that the tokenizer does not know.

Most rows are known from their tokens. Only the texts that may have been cut, or that contain the unknown token, are
read and tokenized once more.
"""

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.sources import ExampleSetConfig
from mtl_dist.data.chunked import chunk_slices, rows_where
from mtl_dist.data.sources import open_source
from mtl_dist.data.token_files import Split
from mtl_dist.progress import Progress, no_progress

_BATCH = 500
_MOST_LISTED = 100_000
"""Different characters, and different words, that are counted one by one."""


@dataclass(frozen=True)
class LengthFigures:
    """Tokens of the texts of a source, special tokens included, before any are cut."""

    median: int
    percentile_95: int
    longest: int
    rows: int
    cut: int
    """Rows with more tokens than `data.max_length`."""


@dataclass
class UnknownFigures:
    """What the tokenizer turns into its unknown token."""

    rows: int = 0
    """Rows whose text has any of it."""
    characters: Counter[str] = field(default_factory=Counter)
    """Occurrences of characters that are unknown by themselves."""
    words: Counter[str] = field(default_factory=Counter)
    """Occurrences of words that are unknown although each of their characters is known."""


def token_facts(
    config: ExampleSetConfig,
    splits: Mapping[str, Split],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    progress: Progress = no_progress,
) -> tuple[LengthFigures, UnknownFigures]:
    """Lengths and unknown characters of all rows of an example set, over all its splits.

    Raises UserError if the source cannot be read any more.
    """
    lengths: Counter[int] = Counter()
    counter = _UnknownCounter(tokenizer)
    again: dict[str, np.ndarray] = {}
    for name, split in splits.items():
        may_be_cut = np.asarray(split.lengths) >= max_length
        for chunk in chunk_slices(len(may_be_cut)):
            found = np.unique(split.lengths[chunk][~may_be_cut[chunk]], return_counts=True)
            lengths.update(dict(zip(*(part.tolist() for part in found), strict=True)))
        again[name] = rows_where(may_be_cut | _rows_with(split, tokenizer.unk_token_id))
    total = sum(map(len, again.values()))
    if total:
        with (
            progress(f"{config.key}: long texts and unknown characters", "rows", total) as advance,
            tempfile.TemporaryDirectory() as folder,
        ):
            tables = open_source(config, list(splits)).read(Path(folder)).tables
            for name, rows in again.items():
                origin = tables["train" if name in config.source.split.held_out else name]
                for batch in _batches(rows):
                    source_rows = splits[name].rows.data.column("row").take(pa.array(batch)).to_numpy()
                    columns = origin.take(source_rows, config.text)
                    found = counter.add([columns.column(text).to_pylist() for text in config.text])
                    may_be_cut = splits[name].lengths[batch] >= max_length
                    lengths.update(np.array(found)[may_be_cut].tolist())
                    advance(len(batch))
    return _figures(lengths, max_length), counter.figures


def _batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (np.asarray(rows[start : start + _BATCH]) for start in range(0, len(rows), _BATCH))


def _rows_with(split: Split, token: int | None) -> np.ndarray:
    """Mask of the rows whose tokens contain `token`."""
    mask, first = np.zeros(len(split.lengths), dtype=bool), 0
    for chunk in split.rows.data.column("input_ids").chunks if token is not None else ():
        offsets = chunk.offsets.to_numpy()
        found = offsets[0] + np.flatnonzero(chunk.values.to_numpy()[offsets[0] : offsets[-1]] == token)
        mask[first + np.searchsorted(offsets, found, side="right") - 1] = True
        first += len(chunk)
    return mask


def _figures(lengths: Counter[int], max_length: int) -> LengthFigures:
    values = np.array(sorted(lengths))
    counts = np.array([lengths[value] for value in values.tolist()])
    reached = np.cumsum(counts) / counts.sum()
    median, high = (int(values[np.searchsorted(reached, share)]) for share in (0.5, 0.95))
    return LengthFigures(median, high, int(values[-1]), int(counts.sum()), int(counts[values > max_length].sum()))


class _UnknownCounter:
    """Tokenizes texts without cutting them, and counts what becomes the unknown token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.figures = UnknownFigures()
        self._tokenizer = tokenizer
        self._unknown = tokenizer.unk_token_id
        self._known: dict[str, bool] = {}

    def add(self, columns: list[list[str]]) -> list[int]:
        """Adds texts, by column, one or two; returns the number of tokens of each row."""
        encoded: Any = self._tokenizer(
            *columns, truncation=False, return_attention_mask=False, return_offsets_mapping=True, verbose=False
        )
        for row, encoding in enumerate(encoded.encodings):
            places = [index for index, token in enumerate(encoding.ids) if token == self._unknown]
            self.figures.rows += bool(places)
            for index in places:
                sequence = encoding.sequence_ids[index]
                if sequence is not None:
                    start, stop = encoding.offsets[index]
                    self._count(columns[sequence][row][start:stop])
        return [len(encoding.ids) for encoding in encoded.encodings]

    def _count(self, word: str) -> None:
        unknown = [character for character in word if not self._is_known(character)]
        for part, counts in [(one, self.figures.characters) for one in unknown] or [(word, self.figures.words)]:
            if part in counts or len(counts) < _MOST_LISTED:
                counts[part] += 1

    def _is_known(self, character: str) -> bool:
        if character not in self._known:
            ids = self._tokenizer(character, add_special_tokens=False, verbose=False)["input_ids"]
            self._known[character] = self._unknown not in ids
        return self._known[character]
