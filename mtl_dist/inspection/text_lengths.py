"""Tokens and characters of a table's texts, for which all of its rows are read and a sample is tokenized."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from mtl_dist.data.columns import have_text
from mtl_dist.data.reading.table import TableFile
from mtl_dist.inspection.settings import Lengths, lengths_of

SAMPLE = 5000
"""Least number of texts whose tokens are counted, where there are as many."""
_MAX_CHARACTERS = 50_000
"""A sampled text is cut here; no encoder has positions for as many tokens."""
_CHARACTERS_PER_TOKEN = 4
_SPECIAL = 2
_BATCH = 500


@dataclass(frozen=True)
class Texts:
    """A sample of the texts of a source, evenly spread over its rows."""

    sample: list[tuple[str, ...]]
    """One text for each row, or two for a pair."""
    blank: int
    """Rows whose text, or one of whose texts, is missing or blank."""


def read_texts(tables: Sequence[TableFile], text: Sequence[str], advance: Callable[[int], None]) -> Texts:
    """Reads the texts of all rows. Raises UserError, with the place, for one that is no string."""
    sample: list[tuple[str, ...]] = []
    stride, row, blank = 1, 0, 0
    for table in tables:
        for batch in table.batches(text, []):
            columns = [batch.column(name) for name in text]
            usable = have_text([pa.chunked_array([column]) for column in columns])
            blank += len(batch) - int(np.count_nonzero(usable))
            # Every stride-th row, with a stride that doubles: spread over a table of unknown length.
            picked = [index for index in range(-row % stride, len(batch), stride) if usable[index]]
            sample += zip(*([column[index].as_py() for index in picked] for column in columns), strict=True)
            row += len(batch)
            while len(sample) >= 2 * SAMPLE:
                sample, stride = sample[::2], 2 * stride
            advance(len(batch))
    return Texts([tuple(one[:_MAX_CHARACTERS] for one in texts) for texts in sample], blank)


def token_lengths(texts: Sequence[Texts], tokenizer: PreTrainedTokenizerBase | None) -> Lengths:
    """Lengths of the sampled texts; estimated from their characters without a tokenizer."""
    sample = [one for part in texts for one in part.sample]
    if tokenizer is None:
        return lengths_of([_SPECIAL + sum(map(len, one)) // _CHARACTERS_PER_TOKEN for one in sample], estimated=True)
    counts: list[int] = []
    for start in range(0, len(sample), _BATCH):
        batch = sample[start : start + _BATCH]
        for width in {len(one) for one in batch}:
            columns = [list(column) for column in zip(*(one for one in batch if len(one) == width), strict=True)]
            tokens = tokenizer(*columns, return_attention_mask=False, return_token_type_ids=False, verbose=False)
            counts += map(len, tokens["input_ids"])
    return lengths_of(counts)
