import hashlib
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest

from mtl_dist.data import token_files
from tests.unit.data.test_token_cache import SPLITS, rows_of, written
from tests.utils.tiny import WORDS

ROWS = 2300
TEXTS = [" ".join(WORDS[: 1 + number % 9]) for number in range(ROWS)]
LABELS = [number**2 % 7 % 2 for number in range(ROWS)]
LARGE = {"train": rows_of(TEXTS, LABELS), "test": SPLITS["test"]}


def record_batches(rows: datasets.Dataset) -> list[int]:
    """Rows of each."""
    return [len(chunk) for chunk in rows.data.column("label").chunks]


def test_digest_is_that_of_a_thousand_rows_after_the_other_and_then_their_lengths(tmp_path: Path) -> None:
    """A run that was begun with an older version goes on only where its data still have the same digest."""
    entry = written(tmp_path / "entry", LARGE)
    columns = cast(dict[str, list[Any]], entry.splits["train"].rows.to_dict())
    reference = hashlib.sha256()
    for start in range(0, ROWS, 1000):
        part = slice(start, start + 1000)
        reference.update(np.concatenate(columns["input_ids"][part]).astype("<i4").tobytes())
        reference.update(np.array(columns["label"][part], dtype="<i8").tobytes())
        reference.update(np.array(columns["row"][part], dtype="<i8").tobytes())
    reference.update(np.array([len(ids) for ids in columns["input_ids"]], dtype="<i4").tobytes())
    assert entry.digests["train"] == reference.hexdigest()


def test_a_file_has_few_record_batches_however_many_rows_are_tokenised_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = written(tmp_path / "one", LARGE)
    assert record_batches(one.splits["train"].rows) == [ROWS]
    monkeypatch.setattr(token_files, "BATCH_ROWS", 100)
    monkeypatch.setattr(token_files, "MIN_RECORD_BATCH_BYTES", 30_000)
    several = written(tmp_path / "several", LARGE)
    sizes = record_batches(several.splits["train"].rows)
    assert 2 < len(sizes) < 12
    assert sum(sizes) == ROWS
    assert several.splits["train"].rows.to_dict() == one.splits["train"].rows.to_dict()
    assert several.splits["train"].lengths.tolist() == one.splits["train"].lengths.tolist()


def test_lengths_are_a_file_as_numpy_writes_it(tmp_path: Path) -> None:
    lengths = written(tmp_path / "entry", LARGE).splits["train"].lengths
    np.save(tmp_path / "reference.npy", np.array([min(20, 3 + number % 9) for number in range(ROWS)], dtype=np.int32))
    assert (tmp_path / "entry" / "train.lengths.npy").read_bytes() == (tmp_path / "reference.npy").read_bytes()
    assert lengths.dtype == np.int32


def test_shared_texts_are_found_in_every_part_of_the_training_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "READ_CHUNK", 2)
    splits = {
        "train": rows_of(["a", "b", "c", "a", "d"]),
        "validation": rows_of(["x", "y"]),
        "test": rows_of(["d", "b", "b", "x", "z", "a"]),
    }
    warning = "4 of 6 test rows have a text that is also in train"
    assert written(tmp_path / "entry", splits).warnings == (warning,)
