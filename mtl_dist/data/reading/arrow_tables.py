"""Reading of parquet and arrow files: the wanted columns only, batch by batch."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from mtl_dist.data.reading.files import open_file
from mtl_dist.data.reading.values import Block, Wanted
from mtl_dist.errors import UserError, did_you_mean

_BATCH_ROWS = 2048
_IPC_FILE_MAGIC = b"ARROW1"
_ERRORS = (pa.ArrowException, OSError)


class ParquetFile:
    """The rows of a parquet file; `name` begins error messages."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._name = name
        with _reporting(name, "parquet"):
            self._file = pq.ParquetFile(file, pre_buffer=False)  # which would hold the whole file in memory
            self.schema: pa.Schema = self._file.schema_arrow

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """The wanted columns, batch by batch. Raises UserError."""
        _check_columns(self._name, self.schema, wanted)
        found = self._file.iter_batches(_BATCH_ROWS, columns=wanted.names)
        return _blocks(self._name, "parquet", found, self.schema, wanted)


class ArrowFile:
    """The rows of an arrow file, as the IPC formats of files and of streams have them; `name` begins error messages."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._name = name
        self._file = file
        with _reporting(name, "arrow"):
            self._is_stream = file.read(len(_IPC_FILE_MAGIC)) != _IPC_FILE_MAGIC
            self.schema: pa.Schema = self._open(None).schema

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """The wanted columns, batch by batch. Raises UserError."""
        _check_columns(self._name, self.schema, wanted)
        return _blocks(self._name, "arrow", self._slices(wanted), self.schema, wanted)

    def _open(self, fields: list[int] | None) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
        self._file.seek(0)
        options = pa.ipc.IpcReadOptions(included_fields=fields)
        if self._is_stream:
            return pa.ipc.open_stream(self._file, options=options)
        return pa.ipc.open_file(self._file, options=options)

    def _slices(self, wanted: Wanted) -> Iterator[pa.RecordBatch]:
        """The wanted columns in batches of bounded size."""
        reader = self._open([self.schema.get_field_index(name) for name in wanted.names])
        if isinstance(reader, pa.RecordBatchFileReader):
            found = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            found = iter(reader)
        for batch in found:
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                yield batch.slice(start, _BATCH_ROWS)


@contextmanager
def open_seekable(path: str) -> Iterator[IO[bytes]]:
    """Opens a file that need not be read in order; a compressed one is decompressed on disk. Raises UserError."""
    with open_file(path) as file:
        if file.seekable():
            yield file
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.seek(0)
            yield copy


def class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Names of the classes of ClassLabel columns, which `datasets` writes into the schema of a file."""
    try:
        info = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = info.get("info", {}).get("features") or {}
        return {
            name: tuple(feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (ValueError, AttributeError):  # not written by `datasets`
        return {}


def _check_columns(name: str, schema: pa.Schema, wanted: Wanted) -> None:
    for column in wanted.names:
        count = schema.names.count(column)
        if not count:
            raise UserError(f"{name}: no column {column!r}{did_you_mean(column, schema.names)}")
        if count > 1:
            raise UserError(f"{name}: several columns have the name {column!r}")


def _blocks(
    name: str, kind: str, batches: Iterator[pa.RecordBatch], schema: pa.Schema, wanted: Wanted
) -> Iterator[Block]:
    classes = class_names(schema)
    start = 0
    while True:
        with _reporting(name, kind):
            batch = next(batches, None)
        if batch is None:
            return

        def place(row: int, start: int = start) -> str:
            return f"{name} row {start + row} (from 0)"

        columns = [wanted.arrow_column(one, batch.column(one), classes.get(one), place) for one in wanted.names]
        start += batch.num_rows
        yield Block(wanted.batch(columns), place)


@contextmanager
def _reporting(name: str, kind: str) -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        raise UserError(f"{name}: is no valid {kind} file ({' '.join(str(error).split())})") from error
