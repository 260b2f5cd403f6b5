"""Reading of plain text files: one text on each line."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from mtl_dist.data.reading.lines import DecodedFile
from mtl_dist.data.reading.values import STRING, Block, Wanted
from mtl_dist.errors import UserError


class TextFile:
    """The lines of an open file, in blocks; `name` begins error messages."""

    columns = ("text",)
    """Name of the only column, as `datasets` calls it; any other name reads it too."""

    def __init__(self, file: IO[bytes], name: str, encoding: str) -> None:
        self._name = name
        self._text = DecodedFile(file, name, encoding)

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Yields the lines without their ends, block by block. Raises UserError for more than one column."""
        if len(wanted.names) != 1 or wanted.values:
            raise UserError(f"{self._name}: a plain text file has one text a line, and no columns; use csv or json")
        before = 0
        for lines in self._text.lines():
            first_line = before + 1

            def place(row: int, first_line: int = first_line) -> str:
                return f"{self._name} line {first_line + row}"

            before += len(lines)
            yield Block(
                wanted.batch([pa.array([line.removesuffix("\n").removesuffix("\r") for line in lines], STRING)]), place
            )
