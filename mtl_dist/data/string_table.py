"""Columns of strings in an arrow file: written in batches of rows, read back memory-mapped."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import xxhash

from mtl_dist.data.chunked import chunk_slices

MIN_RECORD_BATCH_BYTES = 1 << 25
"""Size from which a record batch is written: opening an arrow file costs time and memory per record batch."""
DIGEST_ROWS = 10_000
"""Rows that enter the digest of a table at a time; the digest depends on it."""


class RecordBatchWriter:
    """Writer of an arrow stream that joins small record batches to ones of MIN_RECORD_BATCH_BYTES or more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = ExitStack()
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        self._sink = self._files.enter_context(pa.OSFile(str(self._path), "wb"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._files:
            if kind is None:
                self._write()

    def add(self, batch: pa.RecordBatch) -> None:
        """Appends the rows of `batch`."""
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= MIN_RECORD_BATCH_BYTES:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            batch = pa.concat_batches(self._waiting)
            self._writer = self._writer or self._files.enter_context(pa.ipc.new_stream(self._sink, batch.schema))
            self._writer.write_batch(batch)
            self._waiting, self._bytes = [], 0


class StringTable:
    """Rows of columns of strings, where null is a missing value; a memory-mapped file, or a table in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._batches = table.to_batches()
        sizes = [batch.num_rows for batch in self._batches]
        self._starts = np.cumsum([0, *sizes])
        """Number of the first row of each batch, and the number of rows."""

    def __len__(self) -> int:
        return self._table.num_rows

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, without a copy."""
        return self._table.column(name)

    def chunks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, at most CHUNK_ROWS rows at a time, without a copy."""
        table = self._table.select(list(columns))
        return (table.slice(chunk.start, chunk.stop - chunk.start) for chunk in chunk_slices(len(table)))

    def take(self, rows: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Copies some columns of `rows`, which are ascending row numbers, [n] int64."""
        parts = []
        bounds = np.searchsorted(rows, self._starts)
        for index in np.flatnonzero(np.diff(bounds)):
            inside = rows[bounds[index] : bounds[index + 1]] - self._starts[index]
            parts.append(self._batches[index].select(list(columns)).take(pa.array(inside)))
        return pa.Table.from_batches(parts) if parts else self._table.slice(0, 0).select(list(columns))

    def digest(self) -> str:
        """Hash of the names and the content of all columns, independent of how arrow divides them into chunks."""
        digest = xxhash.xxh3_128(repr(self._table.column_names).encode())
        empty = self._table.slice(0, 0)
        for start in range(0, len(self), DIGEST_ROWS):
            # Concatenated with an empty table, because that copies, which drops the offsets and foreign bytes of a
            # slice.
            part = pa.concat_tables([self._table.slice(start, DIGEST_ROWS), empty]).combine_chunks()
            for batch in part.to_batches():
                digest.update(batch.serialize())
        return digest.hexdigest()


def write_string_table(path: Path, batches: Iterable[pa.RecordBatch]) -> StringTable | None:
    """Writes record batches to an arrow file and opens it memory-mapped; None if there is no row."""
    with RecordBatchWriter(path) as writer:
        for batch in batches:
            if batch.num_rows:
                writer.add(batch)
    if not path.stat().st_size:
        return None
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        return StringTable(stream.read_all())
