import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pytest
from tokenizers.normalizers import Replace
from transformers import PreTrainedTokenizerFast

from mtl_dist.config.recipe import DataConfig, TaskConfig
from mtl_dist.data import token_cache
from mtl_dist.data.token_cache import entry_name, make_root, open_entry, write_entry
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.data.validation import LabeledTask, check_rows
from mtl_dist.errors import UserError
from tests.utils.disks import disks_unavailable, nearly_full, small_disk
from tests.utils.tiny import WORDS, tiny_tokenizer

KEY = "tasks.t"
DATA = DataConfig(max_length=20)
TASK = TaskConfig(path="json")


def rows_of(texts: list[str], labels: list[int] | None = None) -> datasets.Dataset:
    labels = [number % 2 for number in range(len(texts))] if labels is None else labels
    return datasets.Dataset.from_dict({"text": texts, "label": labels}).with_format("arrow")


TRAIN = [f"{WORDS[number % 8]} {WORDS[number % 7]}" * (1 + number % 3) for number in range(20)]
SPLITS = {"train": rows_of(TRAIN), "test": rows_of(["good1 good2", "bad1"])}


def examples_of(splits: dict[str, datasets.Dataset], task: TaskConfig = TASK) -> LabeledTask:
    return check_rows(KEY, task, splits, "skip")


def tokenize_with(tokenizer: PreTrainedTokenizerFast, text: tuple[str, ...] = ("text",)) -> ColumnTokenizer:
    return ColumnTokenizer(tokenizer, list(text), DATA.max_length)


def written(folder: Path, splits: dict[str, datasets.Dataset] = SPLITS) -> token_cache.Entry:
    write_entry(folder, KEY, examples_of(splits), tokenize_with(tiny_tokenizer()))
    entry = open_entry(folder)
    assert entry is not None
    return entry


def name_of(
    splits: dict[str, datasets.Dataset] = SPLITS,
    task: TaskConfig = TASK,
    data: DataConfig = DATA,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> str:
    return entry_name(task, data, tokenizer or tiny_tokenizer(), splits)


def test_entry_has_tokens_lengths_labels_and_row_numbers_of_every_split(tmp_path: Path) -> None:
    # More than one batch, and skipped rows.
    texts = [" " if number % 5 == 0 else " ".join(WORDS[: 1 + number % 9]) for number in range(2300)]
    labels = [number**2 % 7 % 2 for number in range(2300)]
    entry = written(tmp_path / "entry", {"train": rows_of(texts, labels), "test": SPLITS["test"]})
    kept = [number for number in range(2300) if number % 5]
    train = entry.splits["train"]
    tokens = tiny_tokenizer()([texts[number] for number in kept])["input_ids"]
    assert train.rows.to_dict() == {
        "input_ids": tokens,
        "label": [labels[number] for number in kept],
        "row": kept,
    }
    assert train.lengths.tolist() == [len(ids) for ids in tokens]
    assert train.vocabulary.tolist() == sorted({token for ids in tokens for token in ids})
    assert (train.vocabulary.dtype, entry.splits["test"].vocabulary.dtype) == (np.int32, np.int32)
    assert len(entry.splits["test"].vocabulary) == 5  # its three words, [CLS] and [SEP]
    assert entry.splits["test"].rows[:]["row"].to_pylist() == [0, 1]
    assert entry.labels == ("0", "1")
    assert entry.warnings == ("460 of 2300 train rows have no text and are left out",)


def test_entry_of_pairs_has_token_types(tmp_path: Path) -> None:
    pairs = datasets.Dataset.from_dict({"a": ["cat1", "cat2 cat3"], "b": ["sea1", "law1"], "label": [0, 1]})
    task = TaskConfig(path="json", text=["a", "b"])
    examples = examples_of(dict.fromkeys(("train", "test"), pairs.with_format("arrow")), task)
    write_entry(tmp_path / "entry", KEY, examples, tokenize_with(tiny_tokenizer(), ("a", "b")))
    entry = open_entry(tmp_path / "entry")
    assert entry is not None
    types = [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]
    assert entry.splits["train"].rows[:]["token_type_ids"].to_pylist() == types


def test_entry_is_memory_mapped(tmp_path: Path) -> None:
    train = written(tmp_path / "entry").splits["train"]
    assert isinstance(train.lengths, np.memmap)
    assert {file["filename"] for file in train.rows.cache_files} == {str(tmp_path / "entry" / "train.arrow")}


def test_progress_is_shown_for_every_split(tmp_path: Path) -> None:
    calls: list[tuple[str, str, int]] = []
    advanced: list[int] = []

    @contextmanager
    def recorded(label: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
        calls.append((label, unit, total))
        yield advanced.append

    splits = SPLITS | {"train": rows_of(TRAIN * 60)}
    write_entry(tmp_path / "entry", KEY, examples_of(splits), tokenize_with(tiny_tokenizer()), recorded)
    assert calls == [("tasks.t: train: tokenizing", "rows", 1200), ("tasks.t: test: tokenizing", "rows", 2)]
    assert advanced == [1000, 200, 2]


def test_texts_shared_with_training_are_counted_by_row(tmp_path: Path) -> None:
    splits = {
        "train": rows_of(["a", "b", "c"]),
        "validation": rows_of(["d", "e"]),
        "test": rows_of(["b", "b", "a", "B", "b "]),
    }
    warning = "3 of 5 test rows have a text that is also in train"
    assert written(tmp_path / "entry", splits).warnings == (warning,)


def test_warnings_keep_their_order(tmp_path: Path) -> None:
    splits = {"train": rows_of(["a", "b", "c", "d"], [0, 2, 2, 2]), "test": rows_of(["a", ""])}
    assert written(tmp_path / "entry", splits).warnings == (
        "1 of 2 test rows have no text and are left out",
        "no training row has the label 1",
        "1 of 1 test rows have a text that is also in train",
    )


def test_row_without_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace("*", "")
    tokenizer.backend_tokenizer.post_processor = None  # it adds [CLS] and [SEP]
    splits = {"train": SPLITS["train"], "test": rows_of(["", "cat1", "*", "**"])}
    with pytest.raises(UserError) as error:
        write_entry(tmp_path / "entry", KEY, examples_of(splits), tokenize_with(tokenizer))
    assert str(error.value) == "tasks.t: test row 2 (from 0): the tokenizer makes no token of it"
    assert list(tmp_path.iterdir()) == []


def test_digest_depends_on_tokens_labels_and_order(tmp_path: Path) -> None:
    texts, labels = ["cat1", "cat2 cat3", "sea1"], [0, 1, 1]
    changed = {
        "same": rows_of(texts, labels),
        "text": rows_of(["cat1", "cat2 cat4", "sea1"], labels),
        "label": rows_of(texts, [1, 1, 0]),
        "order": rows_of(["cat2 cat3", "cat1", "sea1"], [1, 0, 1]),
        # The same sequence of tokens with other row boundaries.
        "border": rows_of(["cat1 cat2", "cat3", "sea1"], labels),
    }
    digests = {
        name: written(tmp_path / name, {"train": SPLITS["train"], "test": rows}).digests
        for name, rows in changed.items()
    }
    assert written(tmp_path / "again", {"train": SPLITS["train"], "test": changed["same"]}).digests == digests["same"]
    assert len({of["test"] for of in digests.values()}) == len(changed)
    assert len({of["train"] for of in digests.values()}) == 1


def test_digest_depends_on_row_boundaries(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    digests = []
    for name, texts in (("a", ["cat1 cat2", "cat3"]), ("b", ["cat1", "cat2 cat3"])):
        splits = dict.fromkeys(("train", "test"), rows_of(texts))
        write_entry(tmp_path / name, KEY, examples_of(splits), tokenize_with(tokenizer))
        entry = open_entry(tmp_path / name)
        assert entry is not None
        digests.append(entry.digests["test"])
    assert digests[0] != digests[1]


def test_name_is_independent_of_arrow_chunks() -> None:
    chunks = [rows_of(TRAIN[start : start + 7], [0, 1, 0, 1, 0, 1, 0][: len(TRAIN) - start]) for start in (0, 7, 14)]
    labels = [label for chunk in chunks for label in chunk[:]["label"].to_pylist()]
    whole = {"train": rows_of(TRAIN, labels), "test": SPLITS["test"]}
    joined = datasets.concatenate_datasets(chunks)
    assert joined.data.column(0).num_chunks == 3
    assert name_of(whole | {"train": joined}) == name_of(whole)
    longer = rows_of(["before", *TRAIN, "after"], [0, *labels, 1])
    inside = cast(datasets.Dataset, longer.select(range(1, 21)))
    assert name_of(whole | {"train": inside}) == name_of(whole)


def test_name_is_independent_of_paths_and_training_settings(tmp_path: Path) -> None:
    moved = TASK.model_copy(update={"path": "csv", "name": "x", "data_files": {"train": "/elsewhere"}, "weight": 3.0})
    assert name_of(task=moved, data=DATA.model_copy(update={"cache_dir": str(tmp_path)})) == name_of()


def with_tokenizer(change: Callable[[PreTrainedTokenizerFast], Any]) -> str:
    tokenizer = tiny_tokenizer()
    change(tokenizer)
    return name_of(tokenizer=tokenizer)


def test_name_depends_on_everything_that_determines_the_content() -> None:
    class_names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "y"])})
    names = {
        "nothing": name_of(),
        "text": name_of(SPLITS | {"test": rows_of(["good1 good3", "bad1"])}),
        "label": name_of(SPLITS | {"test": rows_of(["good1 good2", "bad1"], [1, 1])}),
        "order": name_of(SPLITS | {"test": rows_of(["bad1", "good1 good2"], [1, 0])}),
        "border": name_of(SPLITS | {"test": rows_of(["good1 good2b", "ad1"])}),
        "more rows": name_of(SPLITS | {"test": rows_of(["good1 good2", "bad1", "x"])}),
        "another split": name_of(SPLITS | {"validation": SPLITS["test"]}),
        "swapped splits": name_of({"train": SPLITS["test"], "test": SPLITS["train"]}),
        "class names": name_of(SPLITS | {"train": SPLITS["train"].cast(class_names)}),
        "recipe's labels": name_of(task=TASK.model_copy(update={"labels": ["0", "1"]})),
        "text column": name_of(task=TASK.model_copy(update={"text": ["text", "text"]})),
        "label column": name_of(task=TASK.model_copy(update={"label": "text"})),
        "max_rows": name_of(task=TASK.model_copy(update={"max_rows": 5})),
        "max_length": name_of(data=DATA.model_copy(update={"max_length": 21})),
        "empty_text": name_of(data=DATA.model_copy(update={"empty_text": "skip"})),
        "vocabulary": with_tokenizer(lambda tokenizer: tokenizer.add_tokens(["new"])),
        "normaliser": with_tokenizer(
            lambda tokenizer: setattr(tokenizer.backend_tokenizer, "normalizer", Replace("a", "b"))
        ),
        "pad token": with_tokenizer(lambda tokenizer: setattr(tokenizer, "pad_token", "[MASK]")),
        "truncation": with_tokenizer(lambda tokenizer: setattr(tokenizer, "truncation_side", "left")),
        "inputs": with_tokenizer(lambda tokenizer: setattr(tokenizer, "model_input_names", ["input_ids"])),
    }
    assert len(set(names.values())) == len(names)


def test_name_depends_on_the_format_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = name_of()
    monkeypatch.setattr(token_cache, "FORMAT", token_cache.FORMAT + 1)
    assert name_of() != before


KINDS = (".arrow", ".lengths.npy", ".labels.npy", ".hashes.npy", ".vocabulary.npy")
FILES = ["meta.json", *(f"{split}{kind}" for split in ("train", "test") for kind in KINDS)]


def test_missing_entry_is_none(tmp_path: Path) -> None:
    assert open_entry(tmp_path / "entry") is None
    (tmp_path / "entry").mkdir()
    assert open_entry(tmp_path / "entry") is None


def test_files_of_an_entry(tmp_path: Path) -> None:
    written(tmp_path / "entry")
    assert sorted(file.name for file in (tmp_path / "entry").iterdir()) == sorted(FILES)


CORRUPTIONS: dict[str, Callable[[Path], Any]] = {
    "gone": Path.unlink,
    # An arrow file without its last 8 bytes, the end-of-stream marker, can still be read.
    "cut": lambda file: os.truncate(file, file.stat().st_size - 8),
    # A loss of power can leave a file of zeros.
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
@pytest.mark.parametrize("file", FILES)
def test_corrupt_entry_is_none_and_is_replaced(tmp_path: Path, file: str, corruption: str) -> None:
    folder = tmp_path / "entry"
    before = written(folder)
    rows = before.splits["train"].rows.to_dict()
    CORRUPTIONS[corruption](folder / file)
    assert open_entry(folder) is None
    after = written(folder)
    assert after.digests == before.digests
    assert after.splits["train"].rows.to_dict() == rows
    assert [child.name for child in tmp_path.iterdir()] == ["entry"]


@pytest.mark.parametrize("file", FILES[1:])
def test_entry_with_a_longer_file_is_corrupt(tmp_path: Path, file: str) -> None:
    written(tmp_path / "entry")
    with (tmp_path / "entry" / file).open("ab") as content:
        content.write(b"?")
    assert open_entry(tmp_path / "entry") is None


def test_entry_published_by_another_machine_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "entry"
    written(folder)
    theirs = (folder / "meta.json").stat().st_ino
    written(folder)
    assert (folder / "meta.json").stat().st_ino == theirs
    assert [child.name for child in tmp_path.iterdir()] == ["entry"]


class Interrupted(Exception):
    pass


def test_interrupted_writing_leaves_no_files(tmp_path: Path) -> None:
    @contextmanager
    def interrupted(label: str, unit: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda more: None
        assert [child.name[:9] for child in tmp_path.iterdir()] == [".writing-"]
        if "test" in label:
            raise Interrupted

    with pytest.raises(Interrupted):
        write_entry(tmp_path / "entry", KEY, examples_of(SPLITS), tokenize_with(tiny_tokenizer()), interrupted)
    assert list(tmp_path.iterdir()) == []


def test_entry_is_readable_by_other_users_of_a_shared_cache(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        written(tmp_path / "entry")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "entry").stat().st_mode) == 0o755


def test_cache_folder_precedence_is_recipe_then_environment_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MTL_DIST_CACHE", str(tmp_path / "set"))
    assert make_root(DataConfig(cache_dir=str(tmp_path / "named" / "deep"))) == tmp_path / "named" / "deep"
    assert make_root(DataConfig(cache_dir="~/mine")) == tmp_path / "home" / "mine"
    assert make_root(DataConfig()) == tmp_path / "set"
    assert make_root(DataConfig()) == tmp_path / "set"  # it exists by now
    monkeypatch.delenv("MTL_DIST_CACHE")
    assert make_root(DataConfig()) == tmp_path / "home" / ".cache" / "mtl_dist"
    assert all((tmp_path / folder).is_dir() for folder in ("named/deep", "home/mine", "set", "home/.cache/mtl_dist"))


def test_cache_folder_that_cannot_be_created_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        make_root(DataConfig(cache_dir=str(tmp_path / "file" / "cache")))
    assert str(error.value) == f"data.cache_dir: cannot write {tmp_path}/file/cache (Not a directory)"


def test_cache_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        write_entry(tmp_path / "file" / "e", KEY, examples_of(SPLITS), tokenize_with(tiny_tokenizer()))
    assert str(error.value) == f"data.cache_dir: cannot write {tmp_path}/file (Not a directory)"


@pytest.mark.skipif(disks_unavailable() is not None, reason=str(disks_unavailable()))
def test_full_disk_is_an_error_of_one_line_and_leaves_no_files(tmp_path: Path) -> None:
    """With increasing free space, until it suffices."""
    messages: list[str] = []
    with small_disk(tmp_path / "disk", 1 << 16) as disk:
        for pages in range(16):
            with nearly_full(disk, pages * 4096):
                try:
                    written(disk / "entry")
                    break
                except UserError as error:
                    messages.append(str(error))
                    assert [path.name for path in disk.iterdir()] == ["fill"]
        assert open_entry(disk / "entry") is not None
    expected = rf"data\.cache_dir: cannot write {disk} \(.*(No space left on device|requested and).*\)"
    assert len(messages) > 3
    assert all(re.fullmatch(expected, line) for line in messages)
