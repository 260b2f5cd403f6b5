"""Validation in chunks has the same outcome as validation of all rows at once."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtl_dist.data import chunked
from mtl_dist.data.chunked import concatenate_on_disk
from mtl_dist.errors import UserError
from tests.utils.task_rows import a_task, checked, contents, names_of, row

CLASSES = ["b", "a", "c"]
ROWS = [row("" if number % 4 == 3 else f"text {number}", CLASSES[number % 3]) for number in range(20)]
NUMBERED = [row(of["text"], CLASSES.index(of["label"])) for of in ROWS]


def with_row(number: int, text: Any, label: Any, rows: list[dict[str, Any]] = ROWS) -> list[dict[str, Any]]:
    return [*rows[:number], row(text, label), *rows[number + 1 :]]


SHARES = {"validation": 0.2, "test": 0.3}
CASES: dict[str, dict[str, Any]] = {
    "strings": {"train": ROWS},
    "integers": {"train": NUMBERED},
    "shares": {"train": [row(f"text {number}", CLASSES[number % 3]) for number in range(40)], "split": SHARES},
    "shares by class": {
        "train": [row(f"text {number % 35}", CLASSES[number % 3]) for number in range(40)],
        "split": SHARES | {"stratify": "label"},
    },
    "some rows": {"train": ROWS, "max_rows": 7},
    "recipe's classes": {"train": ROWS, "labels": ["c", "b", "a", "d"]},
    "floats, where one is missing": {
        "train": pa.table({"text": ["a", "b", "c", "d", "e", ""], "label": [0.0, 1.0, 0.0, 1.0, 1.0, None]}),
        "kind": "parquet",
    },
    "floats, and a chunk without text": {
        "train": pa.table({"text": ["a", "", "", "", "b", ""], "label": [0.0, None, 1.0, 1.0, 1.0, None]}),
        "kind": "parquet",
    },
    "no missing floats": {"train": pa.table({"text": list("abcdef"), "label": [0.0, 1.0] * 3}), "kind": "parquet"},
    "fractions late": {"train": with_row(17, "x", 0.5, with_row(18, "x", 0.25, NUMBERED))},
    "a null late": {"train": with_row(17, "x", None)},
    "an empty label twice": {"train": with_row(5, "x", "", with_row(17, "x", "")), "missing": "error"},
    "an id": {"train": with_row(17, "x", 20, with_row(9, "x", -1, NUMBERED))},
    "unlabelled rows": {"train": [row(f"text {n}", None if n % 3 else n % 2) for n in range(20)]},
    "unknown to the recipe": {"train": with_row(17, "x", "e"), "labels": CLASSES},
    "two types in two chunks": {"train": [row(f"t{n}", n if n < 6 else str(n)) for n in range(12)]},
    "no text at all": {"train": [row(" ", 0)] * 9},
    "one class": {"train": [row("a", "x")] * 9},
    "bytes": {"train": pa.table({"text": [b"a"] * 9, "label": [0, 1, 2] * 3}), "kind": "parquet"},
}


def outcome(folder: Path, case: dict[str, Any]) -> Any:
    folder.mkdir()
    test = [row("a", "b"), row("b", "a")] if case["train"] is ROWS else case["train"]
    task = a_task(folder, test=test, **case)
    if "split" in case:
        del task.data_files["test"]
    try:
        examples = checked(task, "skip")
    except UserError as error:
        return str(error).replace(str(folder), "")
    used = {split: (of.rows.tolist(), of.labels["t"].tolist()) for split, of in examples.splits.items()}
    counts = {split: of.tolist() for split, of in examples.class_counts["t"].items()}
    return used, names_of(examples), counts, examples.missing, examples.warnings, contents(examples)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [2, 3, 7])
def test_validation_in_chunks_has_the_same_outcome_as_in_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, size: int
) -> None:
    whole = outcome(tmp_path / "whole", CASES[case])
    monkeypatch.setattr(chunked, "CHUNK_ROWS", size)
    assert outcome(tmp_path / "chunks", CASES[case]) == whole


def test_cases_cover_both_valid_and_refused_rows(tmp_path: Path) -> None:
    refused = {case for case in CASES if isinstance(outcome(tmp_path / case, CASES[case]), str)}
    assert refused == {
        *("fractions late", "an empty label twice", "unknown to the recipe", "no text at all", "one class", "bytes"),
    }


def test_arrays_of_a_large_split_are_memory_mapped_with_the_same_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = checked(a_task(tmp_path, ROWS, ROWS), "skip").splits["train"]
    assert not isinstance(few.rows, np.memmap)
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 6)
    many = checked(a_task(tmp_path, ROWS, ROWS), "skip").splits["train"]
    assert isinstance(many.rows, np.memmap)
    assert isinstance(many.labels["t"], np.memmap)
    assert many.rows.dtype == many.labels["t"].dtype == np.int64


def test_concatenation_of_empty_arrays() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert concatenate_on_disk([nothing, nothing]).tolist() == []
    assert concatenate_on_disk([nothing, np.array([3, 4])]).tolist() == [3, 4]


def test_temporary_folder_that_cannot_be_written_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError) as error:
        concatenate_on_disk([np.array([1]), np.array([2])])
    assert str(error.value) == f"TMPDIR: cannot write {tmp_path / 'gone'} (No such file or directory)"
