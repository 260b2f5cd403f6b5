import hashlib
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest

from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import example_sets
from mtl_dist.data import string_table, token_files
from mtl_dist.data.token_cache import open_entry, write_entry
from mtl_dist.data.token_files import _TokenIdSet
from tests.unit.data.test_token_cache import TABLES, examples_of, rows_of, table_of, tokenize_with, written
from tests.utils.tiny import WORDS, tiny_tokenizer

ROWS = 2300
TEXTS = [" ".join(WORDS[: 1 + number % 9]) for number in range(ROWS)]
LABELS = [number**2 % 7 % 2 for number in range(ROWS)]
LARGE = {"train": rows_of(TEXTS, LABELS), "test": TABLES["test"]}


def record_batches(rows: datasets.Dataset) -> list[int]:
    """Number of rows of each record batch."""
    return [len(chunk) for chunk in rows.data.column("row").chunks]


def test_digest_covers_batches_of_1000_rows_then_the_lengths(tmp_path: Path) -> None:
    """A run started with an older version can only be resumed if the digest of its data is the same."""
    entry = written(tmp_path / "entry", LARGE)
    columns = cast(dict[str, list[Any]], entry.splits["train"].rows.to_dict())
    reference = hashlib.sha256()
    for start in range(0, ROWS, 1000):
        part = slice(start, start + 1000)
        reference.update(np.concatenate(columns["input_ids"][part]).astype("<i4").tobytes())
        reference.update(np.array(LABELS[part], dtype="<i8").tobytes())
        reference.update(np.array(columns["row"][part], dtype="<i8").tobytes())
    reference.update(np.array([len(ids) for ids in columns["input_ids"]], dtype="<i4").tobytes())
    assert entry.digests["train"] == reference.hexdigest()


def test_digest_covers_the_labels_of_every_task_in_order(tmp_path: Path) -> None:
    table = table_of(text=TEXTS, mood=LABELS, team=[n % 3 if n % 2 else None for n in range(ROWS)])
    tasks = {name: {"source": "s", "label": name} for name in ("mood", "team")}
    recipe = Recipe.model_validate({"sources": {"s": {"path": "json"}}, "tasks": tasks})
    examples = examples_of(dict.fromkeys(("train", "test"), table), example_sets(recipe)[0])
    write_entry(tmp_path / "entry", "sources.s", examples, tokenize_with(tiny_tokenizer()))
    entry = open_entry(tmp_path / "entry")
    assert entry is not None
    train, reference = entry.splits["train"], hashlib.sha256()
    ids = cast(dict[str, list[list[int]]], train.rows.to_dict())["input_ids"]
    for start in range(0, ROWS, 1000):
        part = slice(start, start + 1000)
        reference.update(np.concatenate(ids[part]).astype("<i4").tobytes())
        reference.update(np.array(LABELS[part], dtype="<i8").tobytes())
        reference.update(np.array([n % 3 if n % 2 else -1 for n in range(ROWS)][part], dtype="<i8").tobytes())
        reference.update(np.arange(ROWS)[part].astype("<i8").tobytes())
    reference.update(train.lengths.astype("<i4").tobytes())
    assert entry.digests["train"] == reference.hexdigest()


def test_record_batches_are_joined_independently_of_the_tokenization_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = written(tmp_path / "one", LARGE)
    assert record_batches(one.splits["train"].rows) == [ROWS]
    monkeypatch.setattr(token_files, "BATCH_ROWS", 100)
    monkeypatch.setattr(string_table, "MIN_RECORD_BATCH_BYTES", 30_000)
    several = written(tmp_path / "several", LARGE)
    sizes = record_batches(several.splits["train"].rows)
    assert 2 < len(sizes) < 12
    assert sum(sizes) == ROWS
    assert several.splits["train"].rows.to_dict() == one.splits["train"].rows.to_dict()
    assert several.splits["train"].lengths.tolist() == one.splits["train"].lengths.tolist()


def test_lengths_file_equals_that_of_numpy_save(tmp_path: Path) -> None:
    lengths = written(tmp_path / "entry", LARGE).splits["train"].lengths
    np.save(tmp_path / "reference.npy", np.array([min(20, 3 + number % 9) for number in range(ROWS)], dtype=np.int32))
    assert (tmp_path / "entry" / "train.lengths.npy").read_bytes() == (tmp_path / "reference.npy").read_bytes()
    assert lengths.dtype == np.int32


def test_token_id_set_grows_with_larger_ids() -> None:
    vocabulary = _TokenIdSet()
    for ids in ([7, 3, 3], [], [250_000, 3], [40_000]):
        vocabulary.add(np.array(ids, dtype=np.int32))
    assert vocabulary.ids.tolist() == [3, 7, 40_000, 250_000]


def test_rows_have_equal_hashes_exactly_if_their_tokens_are_equal(tmp_path: Path) -> None:
    """The activation cache finds vectors by the hash of the tokens, across tasks."""
    entry = written(tmp_path / "entry")
    for split in entry.splits.values():
        tokens = [
            tuple(row["input_ids"].to_pylist()[0]) for row in (split.rows[i : i + 1] for i in range(len(split.rows)))
        ]
        hashes = [tuple(row) for row in split.hashes.tolist()]
        assert len(set(zip(tokens, hashes, strict=True))) == len(set(tokens)) == len(set(hashes))
