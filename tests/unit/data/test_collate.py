import warnings
from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from mtl_dist.data.collate import Batch, collate
from mtl_dist.data.labels import NO_LABEL
from mtl_dist.data.token_files import ListColumn, Split
from mtl_dist.data.tokenization import ColumnTokenizer
from tests.utils.tiny import WORDS, tiny_tokenizer

ROWS = 12


def texts(seed: int) -> list[str]:
    source = np.random.default_rng(seed)
    return [" ".join(source.choice(WORDS, source.integers(1, 12))) for _ in range(ROWS)]


def split_of(tokenizer: PreTrainedTokenizerFast, columns: list[list[str]], labels: Mapping[str, np.ndarray]) -> Split:
    names = [str(index) for index in range(len(columns))]
    tokens, _ = ColumnTokenizer(tokenizer, names, 20)(pa.table(columns, names))
    table = pa.table(tokens | {"row": np.arange(ROWS)})
    lengths = tokens["input_ids"].value_lengths().to_numpy()
    no_hashes = np.zeros((ROWS, 2), dtype=np.uint64)  # not used by these tests
    vocabulary = np.unique(tokens["input_ids"].values.to_numpy())
    rows = datasets.Dataset(table).with_format("arrow")
    return Split(rows, lengths, labels, no_hashes, no_hashes[:, 0], vocabulary)


TOKENIZER = tiny_tokenizer()
SINGLE, PAIRS, OTHER = [texts(0)], [texts(1), texts(2)], [texts(3)]
THIRDS = np.arange(ROWS) % 3
HOLES = np.where(np.arange(ROWS) % 2, THIRDS, NO_LABEL)
LABELS = {"single": {"single": THIRDS}, "pairs": {"pairs": THIRDS, "more": HOLES}, "other": {"other": THIRDS}}
SPLITS = {
    "single": split_of(TOKENIZER, SINGLE, LABELS["single"]),
    "pairs": split_of(TOKENIZER, PAIRS, LABELS["pairs"]),
    "other": split_of(TOKENIZER, OTHER, LABELS["other"]),
}
TEXTS = dict(zip(SPLITS, (SINGLE, PAIRS, OTHER), strict=True))
TASKS = ["more", "single", "pairs", "other"]
PAD = int(TOKENIZER.pad_token_id)

drawn = st.lists(st.tuples(st.integers(0, 2), st.integers(0, ROWS - 1)), min_size=1, max_size=20)


def as_arrays(examples: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array(examples, dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def collated(examples: list[tuple[int, int]], splits: Sequence[str] = tuple(SPLITS)) -> Batch:
    """A batch of examples, each the index of one of `splits` and a row, for all tasks of these."""
    parts = [(SPLITS[name], list(LABELS[name])) for name in splits]
    return collate(parts, *as_arrays(examples), [task for task in TASKS if any(task in of for _, of in parts)], PAD)


@settings(deadline=None, derandomize=True)
@given(drawn)
def test_batch_equals_the_padding_of_the_tokenizer(examples: list[tuple[int, int]]) -> None:
    batch = collated(examples)
    encoded = [
        TOKENIZER(*(column[row] for column in list(TEXTS.values())[task]), truncation=True, max_length=20)
        for task, row in examples
    ]
    reference = TOKENIZER.pad(encoded, return_tensors="pt")
    assert torch.equal(batch.input_ids, reference["input_ids"])
    assert torch.equal(batch.attention_mask, reference["attention_mask"])
    assert batch.token_type_ids is not None
    assert torch.equal(batch.token_type_ids, reference["token_type_ids"])


@settings(deadline=None, derandomize=True)
@given(drawn)
def test_batch_has_positions_and_labels_of_every_task(examples: list[tuple[int, int]]) -> None:
    """An example counts for each task of its part whose label it has."""
    batch = collated(examples)
    for index, name in enumerate(SPLITS):
        for task, of_task in LABELS[name].items():
            at = [at for at, (of, row) in enumerate(examples) if of == index and of_task[row] != NO_LABEL]
            assert batch.rows[task].tolist() == at
            assert batch.labels[task].tolist() == [of_task[examples[position][1]] for position in at]
            assert batch.labels[task].dtype == torch.int64
    assert list(batch.rows) == list(batch.labels) == TASKS


def test_an_example_counts_only_for_the_tasks_of_its_part() -> None:
    """Tasks that draw their rows separately have parts with one split."""
    batch = collate(
        [(SPLITS["pairs"], ["pairs"]), (SPLITS["pairs"], ["more"])], *as_arrays([(0, 1), (1, 3)]), TASKS, PAD
    )
    assert {task: rows.tolist() for task, rows in batch.rows.items()} == {
        "more": [1],
        "single": [],
        "pairs": [0],
        "other": [],
    }


def test_batch_has_no_token_types_if_no_task_has_them() -> None:
    assert collated([(0, 1), (1, 2)], ["single", "other"]).token_type_ids is None


def test_token_types_are_zero_in_a_batch_without_pairs() -> None:
    batch = collated([(0, 1), (2, 2)])
    assert batch.token_type_ids is not None
    assert torch.equal(batch.token_type_ids, torch.zeros_like(batch.input_ids))


def test_empty_batch_has_one_column_and_no_rows() -> None:
    batch = collated([])
    assert batch.input_ids.shape == batch.attention_mask.shape == (0, 1)
    assert all(len(batch.rows[task]) == len(batch.labels[task]) == 0 for task in TASKS)


@pytest.mark.parametrize("examples", [[(0, 3)], [(0, 3), (0, 4)]])
def test_tensors_own_their_memory(examples: list[tuple[int, int]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about tensors on read-only memory
        batch = collated(examples)
    batch.labels["single"].add_(1)
    batch.input_ids.add_(1)
    fresh = collated(examples)
    assert torch.equal(batch.labels["single"], fresh.labels["single"] + 1)
    assert torch.equal(batch.input_ids, fresh.input_ids + 1)


@pytest.mark.parametrize("typed", [True, False])
def test_moving_a_batch_moves_every_tensor(typed: bool) -> None:
    batch = collated([(0, 1), (0, 2)], tuple(SPLITS) if typed else ["single"])
    moved = batch.to("meta")
    tensors = [moved.input_ids, moved.attention_mask, *moved.rows.values(), *moved.labels.values()]
    assert (moved.token_type_ids is not None) == typed
    if moved.token_type_ids is not None:
        tensors.append(moved.token_type_ids)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert {task: labels.shape for task, labels in moved.labels.items()} == {
        task: labels.shape for task, labels in batch.labels.items()
    }


def test_list_column_reads_every_chunk() -> None:
    """With chunks that are empty, that are slices of a larger array, and that hold empty lists."""
    lists = [list(range(first, first + first % 4)) for first in range(12)]
    whole = pa.array(lists, type=pa.list_(pa.int32()))
    column = pa.chunked_array([whole[:0], whole[:5], whole[5:6], whole[6:6], whole[6:]])
    read = ListColumn(column)
    assert [read[row].tolist() for row in range(len(lists))] == lists


def test_list_column_returns_views() -> None:
    column = pa.chunked_array([pa.array([[1, 2], [3]], type=pa.list_(pa.int32()))])
    assert np.shares_memory(ListColumn(column)[1], column.chunk(0).values.to_numpy())
