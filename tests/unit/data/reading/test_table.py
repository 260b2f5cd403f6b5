"""Tables of any format: plain text, streams, and the same columns whatever the format."""

import bz2
import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.config.data_recipe import ReadConfig
from mtl_dist.data.reading.table import TableFile, read_stream
from mtl_dist.errors import UserError
from tests.utils.tables import Column, read_columns, table_of


def test_plain_text_has_a_text_on_each_line(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.txt", "\ufeffone\r\n\n  two, é \u2028\x0b\nthree")
    assert table.columns() == ["text"]
    assert read_columns(table, ["text"]) == {"text": ["one", "", "  two, é \u2028\x0b", "three"]}
    assert read_columns(table, ["any"])["any"][-1] == "three"
    places = [place(row) for batch, place in table.blocks(["text"], []) for row in range(batch.num_rows)]
    assert places == [f"a.txt line {line}" for line in (1, 2, 3, 4)]
    assert read_columns(table_of(tmp_path / "a.txt", ""), ["text"]) == {"text": []}


@pytest.mark.parametrize(("text", "values"), [(["a", "b"], []), (["a"], ["label"]), ([], ["label"])])
def test_plain_text_has_no_more_columns(text: list[str], values: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.txt: a plain text file has one text a line, and no columns"):
        read_columns(table_of(tmp_path / "a.txt", "a\n"), text, values)


def test_messages_name_the_path_by_default(tmp_path: Path) -> None:
    table = table_of(tmp_path / "a.csv", "text\na\nb,c\nd\n")
    with pytest.raises(UserError, match=f"^{table.path} line 3: "):
        read_columns(TableFile(table.path, "csv", ReadConfig(delimiter=",")), ["text"])


def test_another_format_is_refused() -> None:
    with pytest.raises(UserError, match=r"a\.xml: no format 'xml'; choose from csv, json, parquet, arrow, text"):
        TableFile("a.xml", "xml")


STREAMS = {"csv": b"text,label\na,\nb,2\n", "json": b'{"text": "a"}\n{"text": "b", "label": 2}', "text": b"a\nb"}


def stream_of(content: bytes) -> io.BufferedReader:
    return cast(io.BufferedReader, io.BufferedReader(io.BytesIO(content)))


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
def test_streams_are_read_as_files_are(kind: str, compress: Callable[[bytes], bytes]) -> None:
    stream = stream_of(compress(STREAMS[kind]))
    table = TableFile("-", kind, name="standard input")
    values = [] if kind == "text" else ["label"]
    rows = [
        (place(index), *row.values())
        for batch, place in read_stream(stream, table, ["text"], values)
        for index, row in enumerate(batch.to_pylist())
    ]
    first = 2 if kind == "csv" else 1
    labels = [(None,), ("2",)] if values else [(), ()]
    assert rows == [
        (f"standard input line {first}", "a", *labels[0]),
        (f"standard input line {first + 1}", "b", *labels[1]),
    ]
    assert not stream.closed


def test_a_column_that_no_row_of_a_stream_has_is_null() -> None:
    stream = stream_of(STREAMS["json"])
    blocks = read_stream(stream, TableFile("-", "json"), ["words"], [])
    assert [row for batch, _ in blocks for row in batch.column("words").to_pylist()] == [None, None]


def test_parquet_needs_a_file() -> None:
    with pytest.raises(UserError, match="standard input: a stream cannot be read as parquet; write it to a file"):
        list(read_stream(stream_of(b""), TableFile("-", "parquet", name="standard input"), ["a"], []))


AWKWARD = (
    *(
        "",
        " ",
        "\t",
        '"',
        '""',
        "'",
        'a "b" c',
        ",",
        ";",
        "|",
        "a,b;c|d\te",
        "\n",
        "a\nb",
        "a\r\nb",
        "\r",
        "a\n\n\nb\n",
    ),
    *(
        "0",
        "007",
        "1",
        "1.0",
        "1.50",
        "-1",
        "1e5",
        "2021-01-01",
        "NA",
        "None",
        "nan",
        "null",
        "true",
        "False",
        "\u2028",
    ),
    *("é", "😀", "\u00a0", " lead", "trail ", "\\", "\\n", "#", "=1+1", "\x0b", "\x1c", "{", "[1]", "text", "label"),
)
CP1252 = bytes(set(range(1, 256)) - {0x81, 0x8D, 0x8F, 0x90, 0x9D}).decode("cp1252")
"""Characters that every encoding of the test has."""
VALUES = st.sampled_from(AWKWARD) | st.text(max_size=8) | st.none()


@dataclass(frozen=True)
class Dialect:
    """One way to write CSV, and how it is read."""

    delimiter: str
    quotechar: str
    encoding: str
    line_end: str
    quote_all: bool

    @property
    def read(self) -> ReadConfig:
        """The delimiter is found where it is a usual one."""
        delimiter = self.delimiter if self.delimiter == "^" else None
        return ReadConfig(delimiter=delimiter, quotechar=self.quotechar, encoding=self.encoding)

    def write(self, columns: dict[str, Column]) -> bytes:
        """A missing value is an empty field, as an empty string is."""
        out = io.StringIO(newline="")
        # Python's csv writes line ends other than its own without quotes.
        other_ends = any(value and set(value) & {"\r", "\n"} for column in columns.values() for value in column)
        writer = csv.writer(
            out,
            delimiter=self.delimiter,
            quotechar=self.quotechar,
            lineterminator=self.line_end,
            quoting=csv.QUOTE_ALL if self.quote_all or other_ends else csv.QUOTE_MINIMAL,
        )
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))  # None as an empty field
        return out.getvalue().encode(self.encoding)


DIALECTS = st.builds(
    Dialect,
    delimiter=st.sampled_from(",;\t|^"),
    quotechar=st.sampled_from("\"'"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"]),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quote_all=st.booleans(),
)


def json_rows(columns: dict[str, Column]) -> list[dict[str, str | None]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def arrow_bytes(columns: dict[str, Column]) -> bytes:
    table = pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet_bytes(columns: dict[str, Column]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()}), sink)
    return sink.getvalue().to_pybytes()


@st.composite
def columns_of(draw: st.DrawFn, alphabet: str | None = None) -> dict[str, Column]:
    """A text column, a label column and others, in any order and of at least one row."""
    names = draw(st.permutations(["text", "label", "other one", 'an "other"']))
    values = VALUES
    if alphabet is not None:
        values = st.sampled_from([one for one in AWKWARD if set(one) <= set(alphabet)]) | st.text(alphabet, max_size=8)
        values |= st.none()
    else:
        values = values.filter(lambda value: value is None or not set(value) & {"\0"})
    rows = draw(st.lists(st.tuples(*[values] * 4), min_size=1, max_size=30))
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def blank_as_null(column: Column) -> Column:
    return [None if value is None or not value.strip() else value for value in column]


def check(shards: Sequence[bytes], kind: str, read: ReadConfig, columns: dict[str, Column]) -> None:
    """The columns that are read from `shards` are `columns`; a blank text may have been written as a missing one."""
    found: dict[str, Column] = {"text": [], "label": []}
    with tempfile.TemporaryDirectory() as folder:
        for index, shard in enumerate(shards):
            path = Path(folder, str(index))
            path.write_bytes(shard)
            for name, column in read_columns(TableFile(str(path), kind, read), ["text"], ["label"]).items():
                found[name] += column
    # CSV does not tell an empty text from a missing one, which the others do.
    missing = "" if kind == "csv" else None
    assert found["text"] == [missing if text is None else text for text in columns["text"]]
    assert found["label"] == blank_as_null(columns["label"])


def in_shards(
    data: st.DataObject, columns: dict[str, Column], write: Callable[[dict[str, Column]], bytes]
) -> list[bytes]:
    """The rows of `columns` in one or two files, compressed or not."""
    rows = len(columns["text"])
    cut = data.draw(st.integers(1, rows))
    parts = [slice(0, cut), slice(cut, rows)] if cut < rows else [slice(0, rows)]
    compress = data.draw(st.sampled_from([bytes, gzip.compress]))
    return [compress(write({name: column[part] for name, column in columns.items()})) for part in parts]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_csv_gives_the_values_that_were_written(data: st.DataObject) -> None:
    dialect = data.draw(DIALECTS)
    columns = data.draw(columns_of(CP1252))
    check(in_shards(data, columns, dialect.write), "csv", dialect.read, columns)


WRITERS: dict[str, tuple[str, Callable[[dict[str, Column]], bytes]]] = {
    "lines": ("json", lambda columns: "".join(json.dumps(row) + "\n" for row in json_rows(columns)).encode()),
    "utf-8": (
        "json",
        lambda columns: "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in json_rows(columns)).encode(),
    ),
    "array": ("json", lambda columns: json.dumps(json_rows(columns)).encode()),
    "indented": ("json", lambda columns: json.dumps(json_rows(columns), indent=2, ensure_ascii=False).encode()),
    "parquet": ("parquet", parquet_bytes),
    "arrow": ("arrow", arrow_bytes),
}


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_other_formats_give_the_values_that_were_written(writer: str, data: st.DataObject) -> None:
    kind, write = WRITERS[writer]
    columns = data.draw(columns_of())
    check(in_shards(data, columns, write), kind, ReadConfig(), columns)
