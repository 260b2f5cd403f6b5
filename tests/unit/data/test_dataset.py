import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from mtl_dist.config.recipe import Recipe
from mtl_dist.data import fingerprint
from mtl_dist.data.dataset import DataBundle, prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError
from tests.utils.log_lines import log_lines
from tests.utils.tiny import MOODS, TOPICS, WORDS, tiny_recipe, tiny_tokenizer

T = TypeVar("T")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an encoder and the files of two tasks; tests copy the files that they change."""
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    return tiny_recipe(folder, f"data.cache_dir={tmp_path / 'cache'}")


def prepared(recipe: Recipe) -> tuple[DataBundle, list[str]]:
    """The data, and the lines logged while it was prepared."""
    with log_lines() as lines:
        return prepare(recipe, ProcessGroup()), lines[threading.current_thread().name]


def work_in(lines: list[str]) -> list[str]:
    """Log lines without those that say what the data are."""
    return [line for line in lines if " classes, " not in line]


def refusal(recipe: Recipe) -> str:
    with pytest.raises(UserError) as error:
        prepared(recipe)
    return str(error.value)


def source(recipe: Recipe, task: str, split: str) -> list[dict[str, Any]]:
    lines = Path(recipe.tasks[task].data_files[split][0]).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def put(recipe: Recipe, task: str, split: str, rows: list[dict[str, Any]], path: Path) -> None:
    """Writes `rows` to `path` and makes it the file of one split."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe.tasks[task].data_files[split] = [str(path)]


def entries(tmp_path: Path) -> dict[str, int]:
    """Modification time of each file of the cache, in nanoseconds."""
    return {str(file): file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*")}


def test_bundle_has_the_tasks_and_splits_of_the_recipe(recipe: Recipe) -> None:
    data, _ = prepared(recipe)
    assert list(data.tasks) == ["topic", "mood"]
    assert data.tasks["topic"].labels == tuple(sorted(TOPICS))
    assert data.tasks["mood"].labels == ("0", "1", "2")
    assert len(MOODS) == 3
    for name, task in data.tasks.items():
        assert task.name == name
        sizes = {split: len(of.lengths) for split, of in task.examples.splits.items()}
        assert sizes == {"train": 48, "validation": 12, "test": 12}
        assert {split: task.rows(split) for split in sizes} == sizes
    assert data.warnings == ()


def test_kinds_classes_and_rows_without_labels_are_logged_for_every_task(recipe: Recipe, tmp_path: Path) -> None:
    rows = source(recipe, "mood", "train")
    put(recipe, "mood", "train", [rows[0] | {"label": None}, *rows[1:]], tmp_path / "holes.json")
    recipe.tasks["topic"].labels = {name: name for name in [*TOPICS, *(f"more{n}" for n in range(9))]}
    _, lines = prepared(recipe)
    topic, mood = lines[-2:]
    assert topic == (
        "tasks.topic: 13 classes, values of the recipe; rows in train/validation/test: cat: 12/3/3, sea: 12/3/3,"
        f" law: 12/3/3, art: 12/3/3, {', '.join(f'more{n}: 0/0/0' for n in range(6))} and 3 more"
    )
    assert mood == (
        "tasks.mood: 3 classes, whole numbers; rows in train/validation/test: 0: 15/4/4, 1: 16/4/4, 2: 16/4/4;"
        " without a label: 1/0/0"
    )
    assert prepared(recipe)[1][-2:] == lines[-2:]


def test_validation_split_is_read_unless_the_recipe_evaluates_on_test(recipe: Recipe) -> None:
    found = {}
    for split in (None, "validation", "test"):
        recipe.evaluation.split = split
        data, _ = prepared(recipe)
        found[split] = list(data.tasks["mood"].examples.splits)
    assert found[None] == found["validation"] == ["train", "validation", "test"]
    assert found["test"] == ["train", "test"]


def test_digest_is_that_of_earlier_versions(recipe: Recipe) -> None:
    """A run that an earlier version has started can only be resumed if the digest of its data is the same."""
    recipe.evaluation.split = "test"
    assert prepared(recipe)[0].digest == "6582cd885a83e86b1ae66f015eaeb6c7f1a1d1f781d31777012ba237cf4fafe4"
    recipe.evaluation.split = "validation"
    assert prepared(recipe)[0].digest == "467e914dbb4dd05e217a593b5797f3ca360099176c746e5d1af48e556c4c8986"


@pytest.mark.parametrize("split", ["train", "test"])
def test_batch_equals_tokenization_of_the_source_rows(recipe: Recipe, split: str) -> None:
    data, _ = prepared(recipe)
    task_ids, rows = np.array([1, 0, 0, 1, 1]), np.array([7, 11, 0, 7, 2])
    names = list(recipe.tasks)
    if split == "train":
        batch = data.training_batch(task_ids, rows)
    else:
        task_ids[:] = 1
        batch = data.evaluation_batch(data.sets[1], split, rows)
    examples = [source(recipe, names[task], split)[row] for task, row in zip(task_ids, rows, strict=True)]
    reference = tiny_tokenizer()([example["text"] for example in examples], padding=True, return_tensors="pt")
    assert torch.equal(batch.input_ids, reference["input_ids"])
    assert torch.equal(batch.attention_mask, reference["attention_mask"])
    for name, task in (("topic", 0), ("mood", 1)):
        positions = np.flatnonzero(task_ids == task).tolist()
        assert batch.rows[name].tolist() == positions
        labels = [data.tasks[name].labels.index(str(examples[at]["label"])) for at in positions]
        assert batch.labels[name].tolist() == labels


def test_vocabulary_covers_all_tasks_and_splits_and_the_pad_token(recipe: Recipe, tmp_path: Path) -> None:
    """Token IDs of every task and split, and the pad token."""
    put(recipe, "topic", "train", [{"text": "cat1 cat2", "label": topic} for topic in TOPICS], tmp_path / "topic.json")
    put(recipe, "mood", "train", [{"text": "good1", "label": mood} for mood in range(3)], tmp_path / "mood.json")
    recipe.evaluation.split = "test"
    put(recipe, "topic", "test", [{"text": "sea3", "label": "sea"}], tmp_path / "topic.test.json")
    put(recipe, "mood", "test", [{"text": "bad4 cat1", "label": 0}], tmp_path / "mood.test.json")
    data, _ = prepared(recipe)
    tokenizer = tiny_tokenizer()
    words: Any = tokenizer.convert_tokens_to_ids(["cat1", "cat2", "good1", "sea3", "bad4", "[CLS]", "[SEP]", "[PAD]"])
    assert data.vocabulary.tolist() == sorted(words)
    assert data.vocabulary.dtype == np.int32


def test_max_length_truncates(recipe: Recipe) -> None:
    recipe.data.max_length = 5
    data, _ = prepared(recipe)
    assert max(int(task.examples.splits["train"].lengths.max()) for task in data.tasks.values()) == 5


def test_second_start_neither_tokenizes_nor_writes(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "TIMESTAMP_SETTLING_NS", 0)
    first, lines = prepared(recipe)
    assert work_in(lines) == [
        f"tasks.{task}: {split}: tokenizing {rows} rows"
        for task in ("topic", "mood")
        for split, rows in (("train", 48), ("validation", 12), ("test", 12))
    ]
    before = entries(tmp_path)
    second, lines = prepared(recipe)
    assert work_in(lines) == []
    assert entries(tmp_path) == before
    assert second.digest == first.digest
    for name, task in first.tasks.items():
        assert second.tasks[name].labels == task.labels
        assert (
            second.tasks[name].examples.splits["train"].rows.to_dict() == task.examples.splits["train"].rows.to_dict()
        )


def test_only_a_changed_task_is_tokenized_again(recipe: Recipe) -> None:
    prepared(recipe)
    recipe.tasks["mood"].max_rows = 20
    data, lines = prepared(recipe)
    sizes = {"train": 20, "validation": 12, "test": 12}
    assert work_in(lines) == [f"tasks.mood: {split}: tokenizing {rows} rows" for split, rows in sizes.items()]
    assert len(data.tasks["mood"].examples.splits["train"].lengths) == 20


def test_overwritten_file_is_tokenized_again(recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "mood.json"
    rows = source(recipe, "mood", "train")
    put(recipe, "mood", "train", rows, path)
    first, _ = prepared(recipe)
    # Of the same size, immediately after the first.
    put(recipe, "mood", "train", [*rows[1:], rows[0]], path)
    second, lines = prepared(recipe)
    assert lines[0] == "tasks.mood: train: tokenizing 48 rows"
    assert second.digest != first.digest
    labels = second.tasks["mood"].examples.splits["train"].labels["mood"]
    assert labels.tolist() == [row["label"] for row in [*rows[1:], rows[0]]]


def test_corrupt_entry_is_logged_and_rebuilt(recipe: Recipe, tmp_path: Path) -> None:
    first, _ = prepared(recipe)
    (meta,) = [file for file in (tmp_path / "cache").rglob("meta.json") if '"art"' in file.read_text(encoding="utf-8")]
    (meta.parent / "train.arrow").unlink()
    second, lines = prepared(recipe)
    assert work_in(lines)[:2] == [
        f"tasks.topic: {meta.parent} is corrupt; tokenizing again",
        "tasks.topic: train: tokenizing 48 rows",
    ]
    assert second.digest == first.digest
    assert work_in(prepared(recipe)[1]) == []


def test_digest_depends_on_the_data_and_not_on_paths(recipe: Recipe, tmp_path: Path) -> None:
    digest = prepared(recipe)[0].digest
    recipe.data.cache_dir = str(tmp_path / "other")
    moved = source(recipe, "topic", "train")
    put(recipe, "topic", "train", moved, tmp_path / "moved.json")
    assert prepared(recipe)[0].digest == digest
    put(recipe, "topic", "train", [*moved[:-1], moved[-1] | {"label": "cat"}], tmp_path / "changed.json")
    assert prepared(recipe)[0].digest != digest


def test_digest_depends_on_class_names(recipe: Recipe) -> None:
    digest = prepared(recipe)[0].digest
    recipe.tasks["mood"].labels = {str(index): name for index, name in enumerate(MOODS)}
    assert prepared(recipe)[0].digest != digest


def test_warnings_begin_with_their_task(recipe: Recipe, tmp_path: Path) -> None:
    train = source(recipe, "mood", "train")
    put(recipe, "mood", "test", [train[0], *source(recipe, "mood", "test")], tmp_path / "leaky.json")
    recipe.tasks["topic"].labels = {name: name for name in [*TOPICS, "war"]}
    expected = (
        "tasks.topic: no training row has the label war",
        "tasks.mood: 1 of 13 test rows have a text that is also in train",
    )
    assert prepared(recipe)[0].warnings == expected
    # Also when read from the cache.
    assert prepared(recipe)[0].warnings == expected


def test_every_task_is_validated_before_the_first_is_tokenized(recipe: Recipe, tmp_path: Path) -> None:
    rows = source(recipe, "mood", "test")
    rows[5]["label"] = "x"
    put(recipe, "mood", "test", rows, tmp_path / "bad.json")
    assert (
        refusal(recipe) == "tasks.mood: test row 5 (from 0): label 'x' is not one of the classes; choose from 0, 1, 2"
    )
    assert entries(tmp_path) == {}


def test_empty_text_is_handled_as_the_recipe_says(recipe: Recipe, tmp_path: Path) -> None:
    rows = source(recipe, "mood", "train")
    rows[3]["text"] = " "
    put(recipe, "mood", "train", rows, tmp_path / "gap.json")
    message = "tasks.mood: train row 3 (from 0): text is empty; data.empty_text=skip leaves such rows out"
    assert refusal(recipe) == message
    recipe.data.empty_text = "skip"
    data, _ = prepared(recipe)
    assert data.warnings == ("tasks.mood: 1 of 48 train rows have no text and are left out",)
    assert 3 not in data.tasks["mood"].examples.splits["train"].rows[:]["row"].to_pylist()


def test_missing_tokenizer_is_refused_before_data_is_read(recipe: Recipe, tmp_path: Path) -> None:
    recipe.model.encoder = str(tmp_path / "absent")
    recipe.tasks["mood"].data_files["train"] = [str(tmp_path / "absent.json")]
    assert refusal(recipe).startswith("model.encoder: cannot load the tokenizer of ")


def test_cache_folder_that_cannot_be_created_is_a_user_error(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    assert (
        refusal(recipe)
        == f"data.cache_dir: cannot write {tmp_path}/cache (File exists); name a folder there, or by MTL_DIST_CACHE"
    )


class ThreadProcessGroup(ProcessGroup):
    """Ranks that are threads of this process, two per machine."""

    def __init__(self, rank: int, barrier: Barrier, values: list[Any]) -> None:
        super().__init__()
        self.rank, self.world_size, self.local_rank = rank, len(values), rank % 2
        self._barrier = barrier
        self._values = values

    def all_gather(self, value: T) -> list[T]:
        self._values[self.rank] = value
        self._barrier.wait(timeout=60)
        values = list(self._values)
        self._barrier.wait(timeout=60)
        return values


def prepare_on_two_machines(recipe: Recipe, tmp_path: Path) -> list[tuple[DataBundle | UserError, list[str]]]:
    """Result and log lines of each of four ranks; each machine has a cache of its own."""
    barrier, values = Barrier(4), [None] * 4

    def rank_main(rank: int) -> tuple[DataBundle | UserError, list[str]]:
        data = recipe.data.model_copy(update={"cache_dir": str(tmp_path / f"machine{rank // 2}")})
        own = recipe.model_copy(update={"data": data})
        own_lines = lines[threading.current_thread().name]
        try:
            return prepare(own, ThreadProcessGroup(rank, barrier, values)), own_lines
        except UserError as error:
            return error, own_lines

    with log_lines() as lines, ThreadPoolExecutor(4) as pool:
        return list(pool.map(rank_main, range(4)))


def test_one_process_per_machine_tokenizes_for_all_its_ranks(recipe: Recipe, tmp_path: Path) -> None:
    results = prepare_on_two_machines(recipe, tmp_path)
    assert [len(work_in(lines)) for _, lines in results] == [6, 0, 6, 0]
    assert [len(lines) for _, lines in results] == [8, 0, 6, 0]  # what the data are is said once
    bundles = [data for data, _ in results if isinstance(data, DataBundle)]
    assert len({data.digest for data in bundles}) == 1
    for rank, data in enumerate(bundles):
        for task in data.tasks.values():
            (file,) = task.examples.splits["train"].rows.cache_files
            assert Path(file["filename"]).is_relative_to(tmp_path / f"machine{rank // 2}")
    assert len(bundles) == 4


def test_invalid_data_raises_the_same_error_on_every_rank(recipe: Recipe, tmp_path: Path) -> None:
    put(recipe, "mood", "test", [{"text": "", "label": 0}], tmp_path / "bad.json")
    errors = [str(error) for error, _ in prepare_on_two_machines(recipe, tmp_path)]
    message = "tasks.mood: test row 0 (from 0): text is empty; data.empty_text=skip leaves such rows out"
    assert errors == [message] * 4


@pytest.mark.parametrize("split", [{}, {"stratify": "label"}])
def test_a_row_is_on_one_side_for_all_tasks_of_a_source_whatever_texts_they_read(tmp_path: Path, split: Any) -> None:
    """Else the title of a row would train the encoder that is tested on its body."""
    numbers = range(80)
    rows = [{"title": WORDS[at % 40], "body": f"{WORDS[at // 2]} so{at % 2}", "label": at % 3} for at in numbers]
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": "json", "data_files": str(tmp_path / "rows.json"), "split": {"test": 0.3, **split}}
    tasks = {name: {"source": "s", "text": name} for name in ("title", "body")}
    recipe = tiny_recipe(tmp_path, f"data.cache_dir={tmp_path / 'cache'}").model_dump()
    data = prepare(Recipe.model_validate(recipe | {"sources": {"s": source}, "tasks": tasks}), ProcessGroup())
    title, body = ({name: part.rows[:]["row"].to_pylist() for name, part in one.splits.items()} for one in data.sets)
    assert title == body
    assert 10 < len(title["test"]) < 40


def test_rows_without_a_label_are_told_of_a_split_that_has_no_labels(tmp_path: Path) -> None:
    rows = [{"text": WORDS[number], "label": number % 2} for number in range(4)]
    unlabelled = [{"text": "so1", "label": None}]
    for split, of_split in (("train", rows), ("validation", unlabelled), ("test", rows)):
        (tmp_path / f"{split}.json").write_text("".join(json.dumps(row) + "\n" for row in of_split))
    files = {split: [str(tmp_path / f"{split}.json")] for split in ("train", "validation", "test")}
    recipe = tiny_recipe(tmp_path, f"data.cache_dir={tmp_path / 'cache'}")
    one = Recipe.model_validate(recipe.model_dump() | {"tasks": {"t": {"path": "json", "data_files": files}}})
    assert prepare(one, ProcessGroup()).tasks["t"].summary() == (
        "tasks.t: 2 classes, whole numbers; rows in train/validation/test: 0: 2/0/2, 1: 2/0/2; without a label: 0/1/0"
    )
