"""Parquet and arrow files: values of every type, classes by name, and columns that are not read."""

import datetime
import decimal
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from mtl_dist.data.reading.table import TableFile
from mtl_dist.errors import UserError
from tests.utils.tables import read_columns

Write = Callable[[pa.Table, Path], TableFile]


def write_parquet(table: pa.Table, folder: Path) -> TableFile:
    pq.write_table(table, folder / "a.parquet", row_group_size=3)
    return TableFile(str(folder / "a.parquet"), "parquet", name="a file")


def write_arrow_file(table: pa.Table, folder: Path) -> TableFile:
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return TableFile(str(folder / "a.arrow"), "arrow", name="a file")


def write_arrow_stream(table: pa.Table, folder: Path) -> TableFile:
    with pa.ipc.new_stream(folder / "s.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return TableFile(str(folder / "s.arrow"), "arrow", name="a file")


@pytest.fixture(params=[write_parquet, write_arrow_file, write_arrow_stream])
def write(request: pytest.FixtureRequest) -> Write:
    """A function that writes a table to a file, in parts of three rows."""
    return request.param


def labels(array: pa.Array, write: Write, folder: Path) -> list[str | None]:
    table = write(pa.table({"label": array, "text": ["a"] * len(array)}), folder)
    return read_columns(table, ["text"], ["label"])["label"]


def refusal(table: TableFile) -> str:
    with pytest.raises(UserError) as error:
        read_columns(table, ["text"], ["label"])
    return str(error.value)


DAY = datetime.date(2021, 1, 2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array(["007", "NA", None, "", " ", " x"]), ["007", "NA", None, None, None, " x"]),
        (pa.array(["a", None, "b"] * 3, pa.large_string()), ["a", None, "b"] * 3),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array(["b", None, "a", "b"]).dictionary_encode(), ["b", None, "a", "b"]),
        (pa.array([3, 1, None, 3, 1, 2**62]), ["3", "1", None, "3", "1", str(2**62)]),
        (pa.array([3, 255], pa.uint8()), ["3", "255"]),
        (pa.array([5, None, 5]).dictionary_encode(), ["5", None, "5"]),
        (
            pa.array([1.0, 0.1, None, float("nan"), -0.0, 1e16]),
            ["1.0", "0.1", None, None, "0.0", "1" + "0" * 16 + ".0"],
        ),
        (pa.array([1.0, 0.1, None], pa.float32()), ["1.0", "0.1", None]),
        (pa.array(np.array([1.0, 0.5, np.nan], np.float16)), ["1.0", "0.5", None]),
        (pa.array([True, None, False]), ["true", None, "false"]),
        (pa.array([DAY, None]), ["2021-01-02", None]),
        (pa.array([datetime.datetime(2021, 1, 2, 3, 4)], pa.timestamp("ns")), ["2021-01-02T03:04:00"]),
        (pa.array([datetime.time(3, 4)]), ["03:04:00"]),
        (pa.array([decimal.Decimal("1.50"), None]), ["1.50", None]),
        (pa.nulls(4), [None] * 4),
        (pa.array([], pa.int64()), []),
    ],
)
def test_values_are_strings(array: pa.Array, expected: list[str | None], write: Write, tmp_path: Path) -> None:
    assert labels(array, write, tmp_path) == expected


def test_texts_stay_as_they_are(write: Write, tmp_path: Path) -> None:
    texts = ["a", "", " ", None, "\0é😀", "1"]
    for column in (pa.array(texts), pa.array(texts).dictionary_encode()):
        table = write(pa.table({"text": column, "label": texts}), tmp_path)
        assert table.columns() == ["text", "label"]
        assert read_columns(table, ["text"], []) == {"text": texts}


@pytest.mark.parametrize(
    ("column", "array", "message"),
    [
        ("text", pa.array([None, None, None, 5]), "row 3 (from 0): text column 'text' holds 5, no string"),
        ("text", pa.array([True]), "row 0 (from 0): text column 'text' holds True, no string"),
        ("text", pa.array([None, ["a"]]), "row 1 (from 0): text column 'text' holds ['a'], no string"),
        ("label", pa.array([None, None, None, [1]]), "row 3 (from 0): column 'label' holds [1], no single value"),
        ("label", pa.array([{"a": 1}]), "row 0 (from 0): column 'label' holds {'a': 1}, no single value"),
        ("label", pa.array([b"a"]), "row 0 (from 0): column 'label' holds b'a', no single value"),
        ("label", pa.array([0.0, 1.0, 0.0, -np.inf]), "row 3 (from 0): column 'label' holds -inf"),
        (
            "label",
            pa.array([b"a"] * 4 + [b"\xff"]).view(pa.string()),
            "row 4 (from 0): column 'label' holds bytes that",
        ),
    ],
)
def test_other_values_are_refused_with_their_row(
    column: str, array: pa.Array, message: str, write: Write, tmp_path: Path
) -> None:
    columns = {"text": pa.array(["a"] * len(array)), "label": pa.array(["x"] * len(array)), column: array}
    assert refusal(write(pa.table(columns), tmp_path)).startswith(f"a file {message}")


def labeled(names: list[str], values: list[int]) -> pa.Table:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return pa.table(datasets.Dataset.from_dict({"text": ["a"] * len(values), "label": values}, features).data.table)


def test_classes_have_the_names_of_their_own_file(write: Write, tmp_path: Path) -> None:
    for names, values in ((["x", "y", "z"], [0, 1, 2, 2, -1]), (["z", "x", "y"], [1, 2, 0, 0, -1])):
        table = write(labeled(names, values), tmp_path)
        assert table.class_names() == {"label": tuple(names)}
        assert read_columns(table, ["text"], ["label"])["label"] == ["x", "y", "z", "z", None]


def test_a_class_without_a_name_is_refused(write: Write, tmp_path: Path) -> None:
    metadata = labeled(["x", "y", " "], [0]).schema.metadata
    for value, message in (
        (3, "row 4 (from 0): column 'label' holds class 3, and there are 3 classes"),
        (-2, "row 4 (from 0): column 'label' holds class -2, and there are 3 classes"),
        (2, "row 4 (from 0): column 'label' holds class 2, which has no name"),
    ):
        table = pa.table({"text": ["a"] * 5, "label": [0, 1, 0, 1, value]}).replace_schema_metadata(metadata)
        assert refusal(write(table, tmp_path)) == f"a file {message}"


@pytest.mark.parametrize(
    "metadata", [b"{}", b"no json", b"[]", b'{"info": {"features": {"label": 5}}}', b'{"info": 5}']
)
def test_other_metadata_names_no_classes(metadata: bytes, write: Write, tmp_path: Path) -> None:
    table = pa.table({"text": ["a"], "label": [1]}).replace_schema_metadata({b"huggingface": metadata})
    assert write(table, tmp_path).class_names() == {}
    assert labels(pa.array([1]), write, tmp_path) == ["1"]


def test_files_of_datasets_are_read(tmp_path: Path) -> None:
    rows = datasets.Dataset(labeled(["x", "y"], [1, 0]))
    rows.save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("*.arrow")
    table = TableFile(str(path), "arrow")
    assert read_columns(table, ["text"], ["label"]) == {"text": ["a", "a"], "label": ["y", "x"]}
    rows.to_parquet(tmp_path / "a.parquet")
    table = TableFile(str(tmp_path / "a.parquet"), "parquet")
    assert table.class_names() == {"label": ("x", "y")}
    assert read_columns(table, ["text"], ["label"]) == {"text": ["a", "a"], "label": ["y", "x"]}


def test_columns_of_mixed_types_that_datasets_stores_as_json(write: Write, tmp_path: Path) -> None:
    values = ["007", 1, 1.0, True, None, float("nan")]
    storage = pa.array([None if value is None else json.dumps(value) for value in values])
    mixed = pa.ExtensionArray.from_storage(pa.json_(), storage)
    assert labels(mixed, write, tmp_path) == ["007", "1", "1.0", "true", None, None]
    table = write(pa.table({"text": mixed, "label": storage}), tmp_path)
    assert refusal(table) == "a file row 1 (from 0): text column 'text' holds 1, no string"


def test_columns_that_are_not_wanted_are_not_read(write: Write, tmp_path: Path) -> None:
    # Bytes that are no UTF-8, nested columns, names that occur twice and names with dots.
    columns = [pa.array(["a"] * 4), pa.array([b"\xff"] * 4).view(pa.string()), pa.array([[{"a": 1}]] * 4), pa.nulls(4)]
    bad = pa.Table.from_arrays([*columns, pa.array([1, 2, 3, 4])], names=["text", "text.b", "list", "list", "label"])
    assert read_columns(write(bad, tmp_path), ["text"], ["label"]) == {"text": ["a"] * 4, "label": ["1", "2", "3", "4"]}


def test_broken_columns_of_parquet_that_are_not_wanted_do_no_harm(tmp_path: Path) -> None:
    table = write_parquet(pa.table({"other": ["b"] * 4, "text": ["a"] * 4}), tmp_path)
    path = Path(table.path)
    content = bytearray(path.read_bytes())
    for group in range(pq.read_metadata(path).num_row_groups):
        chunk = pq.read_metadata(path).row_group(group).column(0)
        start = chunk.dictionary_page_offset
        content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(content)
    assert read_columns(table, ["text"]) == {"text": ["a"] * 4}
    with pytest.raises(UserError, match="a file: is no valid parquet file"):
        read_columns(table, ["text", "other"])


def test_a_column_that_is_missing_or_ambiguous_is_refused(write: Write, tmp_path: Path) -> None:
    assert refusal(write(pa.table({"text": ["a"], "lable": [1]}), tmp_path)) == (
        "a file: no column 'label'; did you mean lable?"
    )
    twice = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["text", "label", "label"])
    assert refusal(write(twice, tmp_path)) == "a file: several columns have the name 'label'"


def test_a_broken_file_is_refused_in_one_line(write: Write, tmp_path: Path) -> None:
    table = write(pa.table({"text": ["a" * 100] * 1000, "label": [1] * 1000}), tmp_path)
    path = Path(table.path)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", b"ARROW1", b"text,label\n", whole[:-100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        message = refusal(table)
        assert message.startswith(f"a file: is no valid {table.format} file (")
        assert "\n" not in message


def test_files_may_be_compressed(write: Write, tmp_path: Path) -> None:
    table = write(pa.table({"text": ["a"] * 4, "label": [1, 2, 3, 4]}), tmp_path)
    Path(table.path).write_bytes(gzip.compress(Path(table.path).read_bytes()))
    assert table.columns() == ["text", "label"]
    assert read_columns(table, ["text"], ["label"])["label"] == ["1", "2", "3", "4"]
    Path(table.path).write_bytes(Path(table.path).read_bytes()[:-12])
    assert "is a broken or cut gzip file" in refusal(table)


@pytest.mark.parametrize("compression", ["lz4", "zstd", "uncompressed"])
def test_feather_files_are_arrow_files(compression: str, tmp_path: Path) -> None:
    path = str(tmp_path / "a.feather")
    pyarrow.feather.write_feather(pa.table({"text": ["a"], "label": [1]}), path, compression=compression)
    assert read_columns(TableFile(path, "arrow"), ["text"], ["label"]) == {"text": ["a"], "label": ["1"]}


def test_batches_are_bounded_and_places_count_from_the_begin_of_the_file(tmp_path: Path) -> None:
    rows = pa.table({"text": ["a"] * 10_000})
    for write in (pq.write_table, pyarrow.feather.write_feather):
        write(rows, tmp_path / "a")
        table = TableFile(str(tmp_path / "a"), "parquet" if write is pq.write_table else "arrow", name="a file")
        blocks = list(table.blocks(["text"], []))
        assert max(batch.num_rows for batch, _ in blocks) == 2048
        places = [place(row) for batch, place in blocks for row in range(batch.num_rows)]
        assert places == [f"a file row {row} (from 0)" for row in range(10_000)]


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("s")])
def test_a_date_out_of_range_is_refused_with_its_row(kind: pa.DataType, write: Write, tmp_path: Path) -> None:
    days = pa.array([1, None, 2**30], pa.int32()).view(pa.date32())
    values = days if kind == pa.date32() else pa.array([1, None, 2**44]).view(kind)
    message = refusal(write(pa.table({"text": ["a"] * 3, "label": values}), tmp_path))
    assert message.startswith("a file row 2 (from 0): column 'label' holds a ")
    assert "out of range" in message
