"""Tables in files of any format, as columns of strings."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO

import pyarrow as pa

from mtl_dist.config.data_recipe import ReadConfig
from mtl_dist.data.reading.arrow_tables import ArrowFile, ParquetFile, class_names, open_seekable
from mtl_dist.data.reading.compression import decompressed
from mtl_dist.data.reading.csv_records import CsvFile
from mtl_dist.data.reading.files import FORMATS, is_tab_separated, open_file
from mtl_dist.data.reading.json_rows import JsonFile
from mtl_dist.data.reading.plain_text import TextFile
from mtl_dist.data.reading.values import Block, Wanted
from mtl_dist.errors import UserError


@dataclass(frozen=True)
class TableFile:
    """A table in a local file."""

    path: str
    """Where it is."""
    format: str
    """One of FORMATS."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """How a text file is written."""
    name: str = ""
    """Name in error messages; the path by default."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"{self.path}: no format {self.format!r}; choose from {', '.join(FORMATS)}")
        object.__setattr__(self, "name", self.name or self.path)

    def columns(self) -> list[str]:
        """Names of the columns; of a JSON file the keys of its first 1000 rows. Raises UserError."""
        with self._open() as file:
            if isinstance(file, ParquetFile | ArrowFile):
                return file.schema.names
            return list(file.columns)

    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes of the ClassLabel columns of a parquet or arrow file. Raises UserError."""
        if self.format not in ("parquet", "arrow"):
            return {}
        with self._open() as file:
            return class_names(file.schema) if isinstance(file, ParquetFile | ArrowFile) else {}

    def batches(self, text: Sequence[str], values: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields the columns `text` and `values`, each once, in this order and that of the file, of type large_string.

        Text columns hold strings in the file, and stay as they are. The others may hold numbers, booleans and dates
        too; their blank values become null. Batches, and the memory that they need, are bounded, except that a JSON
        file that is one array is held as text. Raises UserError, with line or row, for whatever cannot be read.
        """
        return (block.batch for block in self.blocks(text, values))

    def blocks(self, text: Sequence[str], values: Sequence[str]) -> Iterator[Block]:
        """Yields what `batches` does, each batch with a function that gives the place of a row of it, for messages."""
        wanted = Wanted(tuple(text), tuple(values))
        if self.format == "json":
            with self._open() as file:
                assert isinstance(file, JsonFile)
                file.check_columns(wanted)
        with self._open() as file:
            yield from file.blocks(wanted)

    @contextmanager
    def _open(self) -> Iterator[CsvFile | JsonFile | TextFile | ParquetFile | ArrowFile]:
        if self.format in ("parquet", "arrow"):
            with open_seekable(self.path) as file:
                yield (ParquetFile if self.format == "parquet" else ArrowFile)(file, self.name)
            return
        with open_file(self.path) as file:
            yield _text_reader(file, self)


def read_stream(
    file: io.BufferedReader, table: TableFile, text: Sequence[str], values: Sequence[str]
) -> Iterator[Block]:
    """Yields what `TableFile.blocks` does, from an open stream of CSV, JSON or plain text. Raises UserError.

    A column that no row of a JSON stream has is all null, since that is known at its end only.
    """
    if table.format in ("parquet", "arrow"):
        raise UserError(f"{table.name}: a stream cannot be read as {table.format}; write it to a file")
    with decompressed(file, table.name) as opened:
        yield from _text_reader(opened, table).blocks(Wanted(tuple(text), tuple(values)))


def _text_reader(file: IO[bytes], table: TableFile) -> CsvFile | JsonFile | TextFile:
    if table.format == "csv":
        return CsvFile(file, table.name, table.read, is_tab_separated(table.path))
    reader = JsonFile if table.format == "json" else TextFile
    return reader(file, table.name, table.read.encoding)
