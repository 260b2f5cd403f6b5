import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import pytest

from mtl_dist.config.data_recipe import SPLITS, DataConfig, ReadConfig, SplitConfig, TaskConfig
from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import example_sets
from mtl_dist.data import fingerprint
from mtl_dist.data.dataset import DataBundle
from mtl_dist.data.fingerprint import rows_state, timestamps_are_reliable
from mtl_dist.data.reading.table import TableFile
from mtl_dist.data.sources import open_source
from mtl_dist.data.startup_memo import StartupMemo
from tests.unit.data.test_dataset import prepared, work_in
from tests.utils.log_lines import log_lines
from tests.utils.tiny import tiny_recipe, tiny_tokenizer

TEXTS = ["cat1 cat2", "bad1", "good1 good2", "sea3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def recipe(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A task with files of its own, whose timestamps count as reliable at once, and a separate `datasets` cache."""
    monkeypatch.setattr(fingerprint, "TIMESTAMP_SETTLING_NS", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    recipe = tiny_recipe(folder, f"data.cache_dir={tmp_path / 'cache'}")
    task = recipe.tasks["mood"]
    recipe.tasks = {"mood": task}
    task.data_files = {split: [str(tmp_path / f"{split}*.json")] for split in ("train", "test")}
    put(tmp_path / "train.json", TEXTS)
    put(tmp_path / "test.json", ["law1", "law2"])
    return recipe


def put(path: Path, texts: list[str]) -> None:
    lines = [json.dumps({"text": text, "label": row % 2}) + "\n" for row, text in enumerate(texts)]
    path.write_text("".join(lines), encoding="utf-8")


def texts_of(data: DataBundle) -> list[str]:
    tokens = data.tasks["mood"].examples.splits["train"].rows[:]["input_ids"].to_pylist()
    return [str(tiny_tokenizer().decode(ids, skip_special_tokens=True)) for ids in tokens]


def memos(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "starts").glob("*"))


def test_unchanged_files_are_not_read_again(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = prepared(recipe)
    monkeypatch.setattr(TableFile, "batches", None)
    second, lines = prepared(recipe)
    assert work_in(lines) == []
    assert second.digest == first.digest
    assert texts_of(second) == TEXTS


def written_in_place(path: Path) -> None:
    before = path.stat()
    put(path, [TEXTS[2], *TEXTS[1:2], TEXTS[0], TEXTS[3]])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replaced(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy2(path, other)
    written_in_place(other)
    other.replace(path)


CHANGES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "written in place": (written_in_place, ["good1 good2", "bad1", "cat1 cat2", "sea3"]),
    "replaced": (replaced, ["good1 good2", "bad1", "cat1 cat2", "sea3"]),
    "longer": (lambda path: put(path, [*TEXTS, "art1"]), [*TEXTS, "art1"]),
    "joined by another": (lambda path: put(path.with_name("train2.json"), ["art1"]), [*TEXTS, "art1"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_files_of_the_same_size_and_mtime_are_read_again(recipe: Recipe, tmp_path: Path, change: str) -> None:
    prepared(recipe)
    make, expected = CHANGES[change]
    make(tmp_path / "train.json")
    data, lines = prepared(recipe)
    assert lines[0] == f"tasks.mood: train: tokenizing {len(expected)} rows"
    assert texts_of(data) == expected


def test_file_written_just_before_the_start_leaves_no_memo(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "TIMESTAMP_SETTLING_NS", 10**18)
    prepared(recipe)
    assert memos(tmp_path) == []
    monkeypatch.setattr(fingerprint, "TIMESTAMP_SETTLING_NS", 0)
    prepared(recipe)
    assert len(memos(tmp_path)) == 1


def test_timestamps_are_reliable_two_seconds_after_the_last_change() -> None:
    second = 10**9
    assert timestamps_are_reliable([f"train 9 {5 * second} {4 * second} 77 a b"], 7 * second)
    assert not timestamps_are_reliable([f"train 9 {5 * second} {4 * second} 77 a b"], 7 * second - 1)
    assert not timestamps_are_reliable([f"train 9 {4 * second} {5 * second} 77 a b"], 7 * second - 1)
    assert not timestamps_are_reliable(["train 9 0 0 77 a", f"test 9 {5 * second} 0 78 b"], 6 * second)


def test_file_that_changes_while_it_is_read_leaves_no_memo(recipe: Recipe, tmp_path: Path) -> None:
    (config,) = example_sets(recipe)
    source = open_source(config, SPLITS)
    state = source.state()
    memo = StartupMemo(tmp_path, config, SPLITS, recipe.data, tiny_tokenizer(), state)
    put(tmp_path / "train.json", ["art1"])
    with log_lines() as lines:
        memo.save("entry", source.state())
        assert memo.load() is None
        memo.save("entry", state)
        assert memo.load() == "entry"
    assert not lines


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"entry": 5}', '{"entry": null}'])
def test_corrupt_memo_is_logged_and_replaced(recipe: Recipe, tmp_path: Path, content: str) -> None:
    first, _ = prepared(recipe)
    (memo,) = memos(tmp_path)
    memo.write_text(content, encoding="utf-8")
    second, lines = prepared(recipe)
    (line,) = work_in(lines)
    assert line.startswith(f"{memo} cannot be used (")
    assert line.endswith("); reading the data again")
    assert second.digest == first.digest
    assert work_in(prepared(recipe)[1]) == []


def test_memo_that_cannot_be_written_is_logged_and_is_no_error(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "starts").touch()
    _, lines = prepared(recipe)
    assert "cannot be used (" in lines[0]
    assert work_in(lines)[-1].startswith(f"cannot write {tmp_path / 'cache' / 'starts'}")
    assert work_in(lines)[-1].endswith(": the next start reads all data again")


def test_missing_entry_is_rebuilt_despite_its_memo(recipe: Recipe, tmp_path: Path) -> None:
    first, _ = prepared(recipe)
    (meta,) = (tmp_path / "cache").glob("*/meta.json")
    shutil.rmtree(meta.parent)
    second, lines = prepared(recipe)
    assert lines[0] == "tasks.mood: train: tokenizing 4 rows"
    assert second.digest == first.digest


def test_every_setting_changes_the_name_of_the_memo() -> None:
    task, data, state = TaskConfig(path="json"), DataConfig(), ["train 1 2 3 4 a"]
    changed = [
        (TaskConfig(path="csv"), data, state),
        (TaskConfig(path="json", name="x"), data, state),
        (TaskConfig(path="json", text=["a"]), data, state),
        (TaskConfig(path="json", label="a"), data, state),
        (TaskConfig(path="json", labels={"a": "a", "b": "b"}), data, state),
        (TaskConfig(path="json", missing="error"), data, state),
        (TaskConfig(path="json", max_rows=5), data, state),
        (TaskConfig(path="json", read=ReadConfig(delimiter=";")), data, state),
        (TaskConfig(path="json", read=ReadConfig(encoding="cp1252")), data, state),
        (TaskConfig(path="json", split=SplitConfig(test=0.5)), data, state),
        (task, DataConfig(max_length=5), state),
        (task, DataConfig(empty_text="skip"), state),
        (task, data, ["train 1 2 3 5 a"]),
    ]

    def path_of(
        task: TaskConfig, data: DataConfig, state: list[str], splits: Sequence[str] = SPLITS, tokens: Sequence[str] = ()
    ) -> Path:
        (config,) = example_sets(Recipe(tasks={"t": task}))
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(list(tokens))
        return StartupMemo(Path(), config, splits, data, tokenizer, state).path

    paths = {path_of(*of) for of in [(task, data, state), *changed]}
    paths |= {path_of(task, data, state, ("train", "test")), path_of(task, data, state, tokens=["new"])}
    assert len(paths) == 3 + len(changed)


def test_memo_of_rows_from_elsewhere_depends_on_the_cached_copy_of_datasets(recipe: Recipe, tmp_path: Path) -> None:
    other = recipe.tasks["mood"]
    recipe.tasks["mood"] = TaskConfig(path=str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    for split in ("train", "test"):
        shutil.copy(tmp_path / f"{split}.json", tmp_path / "hub")
    assert texts_of(prepared(recipe)[0]) == TEXTS
    (memo,) = memos(tmp_path)
    # The entry named by a memo is opened without reading the rows.
    put(tmp_path / "train.json", ["art1", "art2"])
    recipe.tasks["mood"], folder = other, recipe.tasks["mood"]
    assert texts_of(prepared(recipe)[0]) == ["art1", "art2"]
    (theirs,) = set(memos(tmp_path)) - {memo}
    memo.write_bytes(theirs.read_bytes())
    recipe.tasks["mood"] = folder
    assert texts_of(prepared(recipe)[0]) == ["art1", "art2"]
    put(tmp_path / "hub" / "train.json", ["sea1", "sea2", "sea3"])
    assert texts_of(prepared(recipe)[0]) == ["sea1", "sea2", "sea3"]


def test_state_of_rows_changes_when_their_cached_copy_is_replaced(recipe: Recipe, tmp_path: Path) -> None:
    rows = cast(datasets.Dataset, datasets.load_dataset("json", data_files=str(tmp_path / "train.json"), split="train"))
    before = rows_state({"train": rows})
    copy = Path(rows.cache_files[0]["filename"])
    shutil.copy2(copy, copy.with_name("new"))
    copy.with_name("new").replace(copy)
    assert rows_state({"train": rows}) != before
