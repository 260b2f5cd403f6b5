from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mtl_dist.data import chunked, string_table
from mtl_dist.data.string_table import StringTable, write_string_table


def batches(*sizes: int) -> list[pa.RecordBatch]:
    starts = np.cumsum([0, *sizes])
    return [
        pa.record_batch(
            {name: pa.array([f"{name}{row}" for row in range(start, stop)], pa.large_string()) for name in ("a", "b")}
        )
        for start, stop in pairwise(starts)
    ]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StringTable:
    """Ten rows in record batches of 4, 2 and 4."""
    monkeypatch.setattr(string_table, "MIN_RECORD_BATCH_BYTES", 1)
    found = write_string_table(tmp_path / "t.arrow", batches(4, 0, 2, 4))
    assert found is not None
    return found


@pytest.mark.parametrize("rows", [[], [0], [9], [3, 4], [0, 3, 4, 5, 6, 9], [1, 7], list(range(10))])
def test_rows_are_taken_across_record_batches(table: StringTable, rows: list[int]) -> None:
    found = table.take(np.array(rows, dtype=np.int64), ["b"])
    assert found.to_pydict() == {"b": [f"b{row}" for row in rows]}


def test_chunks_cover_all_rows_in_order(table: StringTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 3)
    found = [chunk.to_pydict()["a"] for chunk in table.chunks(["a"])]
    assert found == [[f"a{row}" for row in rows] for rows in (range(3), range(3, 6), range(6, 9), range(9, 10))]
    assert len(table) == 10


def test_small_batches_are_written_as_one(tmp_path: Path) -> None:
    found = write_string_table(tmp_path / "t.arrow", batches(3, 4))
    assert found is not None
    assert found.column("a").num_chunks == 1


def test_table_without_rows_is_none(tmp_path: Path) -> None:
    assert write_string_table(tmp_path / "t.arrow", batches(0, 0)) is None
    assert write_string_table(tmp_path / "t.arrow", []) is None


def test_file_is_mapped_and_not_held_in_memory(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    found = write_string_table(tmp_path / "t.arrow", batches(100_000))
    assert found is not None
    assert pa.total_allocated_bytes() - before < 100_000
    assert found.column("b")[99_999].as_py() == "b99999"
