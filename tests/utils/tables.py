"""Tables in files, for tests of their reader."""

from collections.abc import Sequence
from pathlib import Path

from mtl_dist.config.data_recipe import ReadConfig
from mtl_dist.data.reading.files import format_of
from mtl_dist.data.reading.table import TableFile

Column = list[str | None]


def read_columns(table: TableFile, text: Sequence[str], values: Sequence[str] = ()) -> dict[str, Column]:
    """The columns of a file as they are read, whole."""
    columns: dict[str, Column] = {name: [] for name in [*text, *values]}
    for batch in table.batches(text, values):
        assert batch.schema.names == list(columns)
        for name, column in columns.items():
            column += batch.column(name).to_pylist()
    return columns


def table_of(path: Path, content: bytes | str, **read: str | bool | None) -> TableFile:
    """A file with `content`, called `path.name` in messages, in the format that its name tells."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    kind = format_of(str(path))
    assert kind is not None
    return TableFile(str(path), kind, ReadConfig.model_validate(read), path.name)
