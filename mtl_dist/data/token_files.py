"""One tokenized split on disk: written in batches of rows, read back memory-mapped."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from mtl_dist.data.labels import NO_LABEL as NO_LABEL
from mtl_dist.data.string_table import RecordBatchWriter
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.data.validation import LabeledSplit
from mtl_dist.errors import UserError
from mtl_dist.progress import Progress, no_progress

ROWS, LENGTHS, HASHES, TEXTS, VOCABULARY = ".arrow", ".lengths.npy", ".hashes.npy", ".texts.npy", ".vocabulary.npy"
"""Suffixes of the files of a split; the fields of Split describe their content."""
BATCH_ROWS = 1000
"""Rows tokenized at a time; the digest of a split depends on it."""
READ_CHUNK = 1 << 18
"""Rows of a .npy file read at a time."""


class ListColumn:
    """Row-wise, zero-copy access to an arrow column of lists of numbers.

    Indexing through `datasets` would take longer than a training step of a small encoder.
    """

    def __init__(self, column: pa.ChunkedArray) -> None:
        """`column` holds lists without nulls."""
        self._first_rows: list[int] = []
        """Number of the first row of each chunk."""
        self._chunks: list[tuple[np.ndarray, np.ndarray]] = []
        """Offsets, [rows + 1], and values of each chunk: row i has values[offsets[i] : offsets[i + 1]]."""
        first = 0
        for chunk in column.chunks:
            self._first_rows.append(first)
            self._chunks.append((chunk.offsets.to_numpy(), chunk.values.to_numpy()))
            first += len(chunk)

    def __getitem__(self, row: int) -> np.ndarray:
        """The list of one row as a view; `row` is in range."""
        index = bisect_right(self._first_rows, row) - 1
        offsets, values = self._chunks[index]
        within = row - self._first_rows[index]
        return values[offsets[within] : offsets[within + 1]]


@dataclass(frozen=True)
class Split:
    """One split of an example set, tokenized and memory-mapped."""

    rows: datasets.Dataset
    """In arrow format: `input_ids` (list of int32), `row` (row in the source, from 0) and, for sentence pairs if the
    tokenizer returns them, `token_type_ids` (list of int32)."""
    lengths: np.ndarray
    """Number of tokens of each row, [rows] int32."""
    labels: Mapping[str, np.ndarray]
    """Class index of each row, [rows] int64, by task; NO_LABEL where a row has no label for it."""
    hashes: np.ndarray
    """128-bit hash of each row's tokens, [rows, 2] uint64."""
    vocabulary: np.ndarray
    """Distinct token IDs of all rows, sorted, int32."""
    text_hashes: np.ndarray
    """64-bit hash of each row's text, [rows] uint64."""

    @cached_property
    def has_token_type_ids(self) -> bool:
        """Whether the rows have `token_type_ids`."""
        return "token_type_ids" in self.rows.column_names

    @cached_property
    def input_ids(self) -> ListColumn:
        """Token IDs of each row."""
        return ListColumn(self.rows.data.column("input_ids"))

    @cached_property
    def token_type_ids(self) -> ListColumn:
        """Token type IDs of each row; only if `has_token_type_ids`."""
        return ListColumn(self.rows.data.column("token_type_ids"))


def labels_file(stem: Path, task: str) -> Path:
    """Name of the file with the class indices of one task."""
    return Path(f"{stem}.labels.{task}.npy")


def open_split(stem: Path, tasks: Sequence[str]) -> Split:
    """Opens a split that `write_split` wrote, memory-mapped. Raises OSError or ValueError if a file is not usable."""

    def array(suffix: str) -> np.ndarray:
        return np.load(f"{stem}{suffix}", mmap_mode="r")

    return Split(
        datasets.Dataset.from_file(f"{stem}{ROWS}").with_format("arrow"),
        array(LENGTHS),
        {task: np.load(labels_file(stem, task), mmap_mode="r") for task in tasks},
        array(HASHES),
        array(VOCABULARY),
        array(TEXTS),
    )


def write_split(
    stem: Path,
    key: str,
    split: LabeledSplit,
    tokenize: ColumnTokenizer,
    progress: Progress = no_progress,
) -> str:
    """Tokenizes one split into files whose names begin with `stem`; `key` of the recipe begins messages.

    Returns the SHA-256 of the split's tokens and labels. Memory use does not grow with the number of rows. Raises
    UserError for a row without tokens.
    """
    digest = hashlib.sha256()
    vocabulary = _TokenIdSet()
    lengths, count = Path(f"{stem}{LENGTHS}"), len(split.rows)
    with (
        RecordBatchWriter(Path(f"{stem}{ROWS}")) as record_batches,
        _npy_writer(lengths, np.int32, (count,)) as add_lengths,
        _npy_writer(Path(f"{stem}{HASHES}"), np.uint64, (count, 2)) as add_token_hashes,
        _npy_writer(Path(f"{stem}{TEXTS}"), np.uint64, (count,)) as add_text_hashes,
        progress(f"{key}: {stem.name}: tokenizing", "rows", count) as advance,
    ):
        for start, batch, hashes in _tokenized_batches(key, split, tokenize):
            record_batches.add(batch)
            vocabulary.add(batch["input_ids"].values.to_numpy())
            add_lengths(batch["input_ids"].value_lengths().to_numpy())
            add_token_hashes(_token_hashes(batch))
            add_text_hashes(hashes)
            for array in _arrays(batch, [labels[start : start + len(batch)] for labels in split.labels.values()]):
                digest.update(array.tobytes())
            advance(len(batch))
    for task, labels in split.labels.items():
        with _npy_writer(labels_file(stem, task), np.int64, (count,)) as add_labels:
            for chunk in _chunks(labels):
                add_labels(chunk)
    vocabulary.save(Path(f"{stem}{VOCABULARY}"))
    for chunk in npy_chunks(lengths):
        digest.update(chunk.tobytes())
    return digest.hexdigest()


def _arrays(batch: pa.RecordBatch, labels: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """What enters the digest of a split, in this order: token columns, labels of each task, row numbers."""
    for name in batch.schema.names:
        if name == "row":
            yield from labels
        column = batch[name]
        yield (column.flatten() if pa.types.is_list(column.type) else column).to_numpy()


def _tokenized_batches(
    key: str, split: LabeledSplit, tokenize: ColumnTokenizer
) -> Iterator[tuple[int, pa.RecordBatch, np.ndarray]]:
    """Yields position of the first row, columns of `Split.rows` and text hashes of BATCH_ROWS rows at a time."""
    columns = list(dict.fromkeys(tokenize.columns))  # a pair may be of one column twice
    for start in range(0, len(split.rows), BATCH_ROWS):
        rows = split.rows[start : start + BATCH_ROWS]
        tokens, hashes = tokenize(split.table.take(rows, columns))
        batch = pa.record_batch(tokens | {"row": rows})
        lengths = batch["input_ids"].value_lengths().to_numpy()
        if not lengths.all():
            row = rows[lengths.argmin()]
            raise UserError(f"{key}: {split.origin} row {row} (from 0): the tokenizer makes no token of it")
        yield start, batch, hashes


def _token_hashes(batch: pa.RecordBatch) -> np.ndarray:
    """128-bit hash of each row's tokens and token types, [rows, 2] uint64; long enough to rule out collisions."""
    names = [name for name in ("input_ids", "token_type_ids") if name in batch.schema.names]
    columns = [(batch[name].offsets.to_numpy(), batch[name].values.to_numpy()) for name in names]
    digests = []
    for row in range(len(batch)):
        parts = [values[offsets[row] : offsets[row + 1]].tobytes() for offsets, values in columns]
        digests.append(xxhash.xxh3_128_digest(b"".join(parts)))
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


class _TokenIdSet:
    """Set of token IDs, stored as one bool per ID."""

    def __init__(self) -> None:
        self._contains = np.zeros(1 << 15, dtype=bool)

    def add(self, ids: np.ndarray) -> None:
        """Adds IDs, [n] int; they may repeat."""
        size = int(ids.max(initial=0)) + 1
        if size > len(self._contains):
            self._contains = np.pad(self._contains, (0, size - len(self._contains)))
        self._contains[ids] = True

    @property
    def ids(self) -> np.ndarray:
        """All IDs of the set, sorted, int32."""
        return np.flatnonzero(self._contains).astype(np.int32)

    def save(self, path: Path) -> None:
        """Writes all IDs of the set to a .npy file, sorted, int32."""
        ids = self.ids
        with _npy_writer(path, ids.dtype, ids.shape) as add_ids:
            add_ids(ids)


@contextmanager
def _npy_writer(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens a .npy file for an array of this shape; yields a function that appends the next rows.

    Not a memory map: on a full disk, writing to one kills the process with SIGBUS.
    """
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

        def add(rows: np.ndarray) -> None:
            file.write(rows.astype(dtype, copy=False).tobytes())

        yield add


def npy_chunks(path: Path) -> Iterator[np.ndarray]:
    """Yields the rows of a .npy file, READ_CHUNK at a time."""
    return _chunks(np.load(path, mmap_mode="r"))


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + READ_CHUNK] for start in range(0, len(rows), READ_CHUNK))
