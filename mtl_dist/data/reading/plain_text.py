"""Reading of plain text files: one text on each line."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from mtl_dist.data.reading.lines import line_blocks
from mtl_dist.data.reading.values import STRING, Wanted
from mtl_dist.errors import UserError

_BLOCK_LINES = 8192


class TextFile:
    """The lines of an open file, in blocks; `name` begins error messages."""

    columns = ("text",)
    """Name of the only column, as `datasets` calls it; any other name reads it too."""

    def __init__(self, file: IO[bytes], name: str, encoding: str) -> None:
        self._name = name
        self._blocks = line_blocks(file, name, encoding)

    def batches(self, wanted: Wanted) -> Iterator[pa.RecordBatch]:
        """Yields the lines without their ends, block by block. Raises UserError for more than one column."""
        if len(wanted.names) != 1 or wanted.values:
            raise UserError(f"{self._name}: a plain text file has one text a line, and no columns; use csv or json")
        for lines in self._blocks:
            for start in range(0, len(lines), _BLOCK_LINES):
                texts = [line.rstrip("\r\n") for line in lines[start : start + _BLOCK_LINES]]
                yield wanted.batch([pa.array(texts, STRING)])
