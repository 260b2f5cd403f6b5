import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers.normalizers import Replace
from transformers import PreTrainedTokenizerFast

from mtl_dist.config.data_recipe import SPLITS, DataConfig, SplitConfig, TaskConfig
from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import ExampleSetConfig, example_sets
from mtl_dist.data import token_cache
from mtl_dist.data.columns import text_hashes
from mtl_dist.data.sources import SourceTables
from mtl_dist.data.string_table import StringTable
from mtl_dist.data.token_cache import entry_name, make_root, open_entry, write_entry
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.data.validation import LabeledSet, check_rows
from mtl_dist.errors import UserError
from tests.utils.disks import disks_unavailable, nearly_full, small_disk
from tests.utils.tiny import WORDS, tiny_tokenizer

KEY = "tasks.t"
DATA = DataConfig(max_length=20)
TASK = TaskConfig(path="json")


def table_of(**columns: Sequence[Any]) -> StringTable:
    strings = {name: [None if one is None else str(one) for one in values] for name, values in columns.items()}
    return StringTable(pa.table(strings, pa.schema([(name, pa.large_string()) for name in columns])))


def rows_of(texts: list[str], labels: Sequence[int | None] | None = None) -> StringTable:
    labels = [number % 2 for number in range(len(texts))] if labels is None else labels
    return table_of(text=texts, label=labels)


TRAIN = [f"{WORDS[number % 8]} {WORDS[number % 7]}" * (1 + number % 3) for number in range(20)]
TABLES = {"train": rows_of(TRAIN), "test": rows_of(["good1 good2", "bad1"])}


def set_with(task: TaskConfig = TASK, **source: Any) -> ExampleSetConfig:
    (config,) = example_sets(Recipe(tasks={"t": task.model_copy(update=source)}))
    return config


def examples_of(tables: dict[str, StringTable], config: ExampleSetConfig | None = None) -> LabeledSet:
    return check_rows(config or set_with(), SourceTables(tables, {}), list(tables), "skip")


def tokenize_with(tokenizer: PreTrainedTokenizerFast, text: tuple[str, ...] = ("text",)) -> ColumnTokenizer:
    return ColumnTokenizer(tokenizer, list(text), DATA.max_length)


def written(folder: Path, tables: dict[str, StringTable] = TABLES) -> token_cache.Entry:
    write_entry(folder, KEY, examples_of(tables), tokenize_with(tiny_tokenizer()))
    entry = open_entry(folder)
    assert entry is not None
    return entry


def name_of(
    tables: dict[str, StringTable] = TABLES,
    config: ExampleSetConfig | None = None,
    data: DataConfig = DATA,
    tokenizer: PreTrainedTokenizerFast | None = None,
    class_names: dict[str, tuple[str, ...]] | None = None,
    splits: Sequence[str] = SPLITS,
) -> str:
    source = SourceTables(tables, class_names or {})
    return entry_name(config or set_with(), splits, data, tokenizer or tiny_tokenizer(), source)


def test_entry_has_tokens_lengths_labels_and_row_numbers_of_every_split(tmp_path: Path) -> None:
    # More than one batch, and skipped rows.
    texts = [" " if number % 5 == 0 else " ".join(WORDS[: 1 + number % 9]) for number in range(2300)]
    labels = [number**2 % 7 % 2 for number in range(2300)]
    entry = written(tmp_path / "entry", {"train": rows_of(texts, labels), "test": TABLES["test"]})
    kept = [number for number in range(2300) if number % 5]
    train = entry.splits["train"]
    tokens = tiny_tokenizer()([texts[number] for number in kept])["input_ids"]
    assert train.rows.to_dict() == {
        "input_ids": tokens,
        "row": kept,
    }
    assert train.labels["t"].tolist() == [labels[number] for number in kept]
    assert train.text_hashes.tolist() == text_hashes([[texts[number] for number in kept]]).tolist()
    assert train.lengths.tolist() == [len(ids) for ids in tokens]
    assert train.vocabulary.tolist() == sorted({token for ids in tokens for token in ids})
    assert (train.vocabulary.dtype, entry.splits["test"].vocabulary.dtype) == (np.int32, np.int32)
    assert len(entry.splits["test"].vocabulary) == 5  # its three words, [CLS] and [SEP]
    assert entry.splits["test"].rows[:]["row"].to_pylist() == [0, 1]
    assert (entry.labels, entry.kinds, entry.name) == ({"t": ("0", "1")}, {"t": "whole numbers"}, "entry")
    assert entry.warnings == ("tasks.t: 460 of 2300 train rows have no text and are left out",)


def test_entry_of_pairs_has_token_types(tmp_path: Path) -> None:
    pairs = table_of(a=["cat1", "cat2 cat3"], b=["sea1", "law1"], label=[0, 1])
    examples = examples_of(dict.fromkeys(("train", "test"), pairs), set_with(text=["a", "b"]))
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

    splits = TABLES | {"train": rows_of(TRAIN * 60)}
    write_entry(tmp_path / "entry", KEY, examples_of(splits), tokenize_with(tiny_tokenizer()), recorded)
    assert calls == [("tasks.t: train: tokenizing", "rows", 1200), ("tasks.t: test: tokenizing", "rows", 2)]
    assert advanced == [1000, 200, 2]


def test_entry_has_counts_of_classes_and_of_missing_labels(tmp_path: Path) -> None:
    entry = written(
        tmp_path / "entry", {"train": rows_of(["a", "b", "c", "d"], [5, 3, 5, None]), "test": rows_of(["a"], [3])}
    )
    assert {split: counts.tolist() for split, counts in entry.class_counts["t"].items()} == {
        "train": [1, 2],
        "test": [1, 0],
    }
    assert entry.missing == {"t": {"train": 1, "test": 0}}


def test_entry_of_a_shared_source_has_labels_of_every_task(tmp_path: Path) -> None:
    table = table_of(text=["a", "b", "c"], mood=[1, None, 2], team=["x", "y", None])
    tasks = {name: {"source": "s", "label": name} for name in ("mood", "team")}
    recipe = Recipe.model_validate({"sources": {"s": {"path": "json"}}, "tasks": tasks})
    examples = examples_of(dict.fromkeys(("train", "test"), table), example_sets(recipe)[0])
    write_entry(tmp_path / "entry", KEY, examples, tokenize_with(tiny_tokenizer()))
    entry = open_entry(tmp_path / "entry")
    assert entry is not None
    assert entry.labels == {"mood": ("1", "2"), "team": ("x", "y")}
    labels = {task: of.tolist() for task, of in entry.splits["train"].labels.items()}
    assert labels == {"mood": [0, -1, 1], "team": [0, 1, -1]}


def test_row_without_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = Replace("*", "")
    tokenizer.backend_tokenizer.post_processor = None  # it adds [CLS] and [SEP]
    splits = {"train": TABLES["train"], "test": rows_of(["", "cat1", "*", "**"])}
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
        name: written(tmp_path / name, {"train": TABLES["train"], "test": rows}).digests
        for name, rows in changed.items()
    }
    assert written(tmp_path / "again", {"train": TABLES["train"], "test": changed["same"]}).digests == digests["same"]
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
    whole = pa.table({"text": TRAIN, "label": ["0", "1"] * 10})
    chunks = pa.concat_tables([whole.slice(start, 7) for start in (0, 7, 14)])
    assert chunks.column(0).num_chunks == 3
    longer = pa.concat_tables([pa.table({"text": ["x"], "label": ["0"]}), whole]).combine_chunks()
    names = {
        name_of({"train": StringTable(table), "test": TABLES["test"]}) for table in (whole, chunks, longer.slice(1, 20))
    }
    assert len(names) == 1


def test_name_is_independent_of_paths_and_training_settings(tmp_path: Path) -> None:
    moved = set_with(path="csv", name="x", data_files={"train": ["/elsewhere"]}, weight=3.0)
    assert name_of(config=moved, data=DATA.model_copy(update={"cache_dir": str(tmp_path)})) == name_of()


def with_tokenizer(change: Callable[[PreTrainedTokenizerFast], Any]) -> str:
    tokenizer = tiny_tokenizer()
    change(tokenizer)
    return name_of(tokenizer=tokenizer)


def test_name_depends_on_everything_that_determines_the_content() -> None:
    names = {
        "nothing": name_of(),
        "text": name_of(TABLES | {"test": rows_of(["good1 good3", "bad1"])}),
        "label": name_of(TABLES | {"test": rows_of(["good1 good2", "bad1"], [1, 1])}),
        "order": name_of(TABLES | {"test": rows_of(["bad1", "good1 good2"], [1, 0])}),
        "border": name_of(TABLES | {"test": rows_of(["good1 good2b", "ad1"])}),
        "more rows": name_of(TABLES | {"test": rows_of(["good1 good2", "bad1", "x"])}),
        "another split": name_of(TABLES | {"validation": TABLES["test"]}),
        "swapped splits": name_of({"train": TABLES["test"], "test": TABLES["train"]}),
        "class names": name_of(class_names={"label": ("0", "1")}),
        "unread split": name_of(splits=("train", "test")),
        "recipe's labels": name_of(config=set_with(labels={"0": "0", "1": "1"})),
        "recipe's names": name_of(config=set_with(labels={"0": "no", "1": "yes"})),
        "order of labels": name_of(config=set_with(labels={"1": "1", "0": "0"})),
        "text column": name_of(config=set_with(text=["text", "text"])),
        "label column": name_of(config=set_with(label="text")),
        "missing labels": name_of(config=set_with(missing="error")),
        "max_rows": name_of(config=set_with(max_rows=5)),
        "shares": name_of(config=set_with(split=SplitConfig(test=0.1))),
        "other shares": name_of(config=set_with(split=SplitConfig(validation=0.1))),
        "rows kept together": name_of(config=set_with(split=SplitConfig(test=0.1, by="text"))),
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


KINDS = (".arrow", ".lengths.npy", ".labels.t.npy", ".hashes.npy", ".texts.npy", ".vocabulary.npy")
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
        write_entry(tmp_path / "entry", KEY, examples_of(TABLES), tokenize_with(tiny_tokenizer()), interrupted)
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
    hint = "name a folder there, or by MTL_DIST_CACHE"
    assert str(error.value) == f"data.cache_dir: cannot write {tmp_path}/file/cache (Not a directory); {hint}"


def test_cache_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as error:
        write_entry(tmp_path / "file" / "e", KEY, examples_of(TABLES), tokenize_with(tiny_tokenizer()))
    assert (
        str(error.value)
        == f"data.cache_dir: cannot write {tmp_path}/file (Not a directory); name a folder there, or by MTL_DIST_CACHE"
    )


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
    expected = rf"data\.cache_dir: cannot write {disk} \(.*(No space left on device|requested and).*\); name .*"
    assert len(messages) > 3
    assert all(re.fullmatch(expected, line) for line in messages)
