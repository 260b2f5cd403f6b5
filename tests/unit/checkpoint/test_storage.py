import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.checkpoint.format import FILES, folder_name, write_manifest
from mtl_dist.checkpoint.storage import changed_keys, load, newest_valid, save
from mtl_dist.config.recipe import CheckpointConfig, Recipe
from mtl_dist.errors import TrainingError, UserError
from tests.utils.checkpoints import bits, flip_a_bit, found, like, saved, state_at, steps_in, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_and_moments_come_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    weights, optimizer_state = tensors(dtype)
    weights["frozen"] = torch.tensor([[-0.0, 0.0], [1e-310, torch.nan]], dtype=dtype)
    save(tmp_path, 3, weights, optimizer_state, state_at(3), CheckpointConfig())
    loaded, its_optimizer_state = load(found(tmp_path), like(dtype))
    assert bits(loaded) == bits(weights)
    assert bits(its_optimizer_state) == bits(optimizer_state)


def test_state_comes_back_with_the_step(tmp_path: Path) -> None:
    figures = {"topic": {"accuracy": 0.5, "loss": float("inf")}}
    folder = saved(tmp_path, 7, figures)
    assert (found(tmp_path).folder, found(tmp_path).step) == (folder, 7)
    assert found(tmp_path).state == state_at(7, figures)


def test_no_file_can_run_code_when_it_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path, 3)
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}
    for path in folder.iterdir():
        header = path.read_bytes()
        json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")] if path.suffix == ".safetensors" else header)


@pytest.mark.parametrize(("keep", "kept"), [(1, [100]), (2, [10, 100]), (3, [9, 10, 100])])
def test_as_many_as_asked_for_are_kept_and_the_newest_is_found(tmp_path: Path, keep: int, kept: list[int]) -> None:
    for step in (2, 9, 10, 100):
        saved(tmp_path, step, keep=keep)
    assert steps_in(tmp_path) == kept
    assert found(tmp_path).step == 100


FIGURES = {
    # step: accuracy and loss of topic, then of mood
    1: (0.9, 0.3, 0.1, 0.9),
    2: (0.9, 0.2, 0.8, 0.9),
    3: (0.5, 0.4, 0.3, 0.1),
    4: (float("nan"), float("-inf"), 0.3, 0.9),
    5: (0.6, 0.5, 0.2, 0.9),
}


@pytest.mark.parametrize(
    ("figure", "keep", "kept"),
    [("accuracy", 1, [2, 5]), ("loss", 1, [2, 3, 5]), ("loss", 2, [2, 3, 4, 5]), (None, 1, [5]), ("macro_f1", 1, [5])],
)
def test_the_best_of_each_task_is_kept_and_of_equals_the_newer(
    tmp_path: Path, figure: str | None, keep: int, kept: list[int]
) -> None:
    for step, (topic, topic_loss, mood, mood_loss) in FIGURES.items():
        figures = {
            "topic": {"accuracy": topic, "loss": topic_loss},
            "mood": {"accuracy": mood, "loss": mood_loss},
        }
        saved(tmp_path, step, figures, keep=keep, keep_best=figure)
        saved(tmp_path, step, figures, keep=keep, keep_best=figure)  # what is kept does not depend on how often
    assert steps_in(tmp_path) == kept


def test_one_that_was_not_measured_is_not_the_best(tmp_path: Path) -> None:
    saved(tmp_path, 1, {"topic": {"loss": 0.5}}, keep=1, keep_best="loss")
    for step in (2, 3):
        saved(tmp_path, step, keep=1, keep_best="loss")
    assert steps_in(tmp_path) == [1, 3]


def test_one_whose_state_is_damaged_is_not_kept_as_the_best(tmp_path: Path) -> None:
    best = saved(tmp_path, 1, {"topic": {"loss": 0.5}}, keep=1, keep_best="loss")
    flip_a_bit(best / "state.json", 20)
    saved(tmp_path, 2, {"topic": {"loss": 0.7}}, keep=1, keep_best="loss")
    assert steps_in(tmp_path) == [2]


def test_a_damaged_one_of_a_later_step_takes_no_good_ones_place(tmp_path: Path) -> None:
    """The run has gone on from an older one, and that is what it must be able to do again."""
    for step in (4, 8):
        saved(tmp_path, step)
    flip_a_bit(tmp_path / folder_name(8) / "model.safetensors")
    assert newest_valid(tmp_path)[0] is not None
    saved(tmp_path, 5, keep=1)
    assert steps_in(tmp_path) == [5]


def test_what_only_looks_like_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "step-notes").mkdir()
    for step in (1, 2, 3):
        saved(tmp_path, step, keep=1)
    assert {path.name for path in tmp_path.iterdir()} == {"step-notes", folder_name(3)}
    checkpoint, skipped = newest_valid(tmp_path)
    assert checkpoint is not None
    assert skipped == ["checkpoint step-notes skipped: its name is not that of a checkpoint"]


def test_the_checkpoint_of_a_step_can_be_written_again(tmp_path: Path) -> None:
    saved(tmp_path, 3, seed=9)
    saved(tmp_path, 3, seed=1)
    loaded = load(found(tmp_path), like())
    assert [bits(part) for part in loaded] == [bits(part) for part in tensors()]
    assert steps_in(tmp_path) == [3]


def test_where_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    for step in (3, 5):
        saved(tmp_path, step)
    for folder in tmp_path.iterdir():
        flip_a_bit(folder / "model.safetensors")
    checkpoint, skipped = newest_valid(tmp_path)
    assert checkpoint is None
    assert [line.split()[1] for line in skipped] == ["step-0000000005", "step-0000000003"]


def test_where_nothing_was_saved_there_is_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path) == (None, [])
    assert newest_valid(tmp_path / "missing") == (None, [])


def test_what_killed_writers_left_is_ignored_and_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "checkpoints"
    root.mkdir()
    for name in (".partial-0000000005", ".partial-0000000008"):
        (root / name).mkdir()
        (root / name / "stray").write_text("of a run that was killed")
    (root / ".partial-link").symlink_to(outside)
    assert newest_valid(root) == (None, [])
    older = saved(root, 3)
    assert found(root).folder == older
    newer = saved(root, 5)
    assert found(root).folder == newer
    assert steps_in(root) == [3, 5]
    assert outside.exists()


def test_nothing_is_published_or_removed_before_every_file_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk fails at any of the flushes."""
    kept = {saved(tmp_path, step) for step in (1, 2)}
    flushed: list[str] = []

    def fails_at(count: int) -> Callable[[int], None]:
        def fsync(handle: int) -> None:
            flushed.append(Path(f"/proc/self/fd/{handle}").readlink().name)
            if len(flushed) == count:
                raise OSError(5, "Input/output error")

        return fsync

    for count in range(1, 6):
        flushed.clear()
        monkeypatch.setattr(os, "fsync", fails_at(count))
        with pytest.raises(TrainingError) as error:
            saved(tmp_path, 3)
        assert str(error.value) == f"cannot write {tmp_path / folder_name(3)}: Input/output error"
        assert set(tmp_path.iterdir()) == kept
    assert set(flushed[:3]) == set(FILES)
    assert flushed[3:] == ["manifest.json", ".partial-0000000003"]
    flushed.clear()
    monkeypatch.setattr(os, "fsync", fails_at(6))
    with pytest.raises(TrainingError):
        saved(tmp_path, 3)
    assert flushed[-1] == tmp_path.name
    assert steps_in(tmp_path) == [1, 2, 3]


def test_nothing_is_published_or_removed_where_the_disk_gives_back_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {saved(tmp_path, step) for step in (1, 2)}

    def flips(folder: Path, *rest: Any) -> None:
        write_manifest(folder, *rest)
        flip_a_bit(folder / "optimizer.safetensors")

    monkeypatch.setattr(checkpoint, "write_manifest", flips)
    with pytest.raises(TrainingError) as error:
        saved(tmp_path, 3)
    assert str(error.value) == (
        f"cannot write {tmp_path / folder_name(3)}: read again, it is not what was written:"
        " optimizer.safetensors does not match its SHA-256"
    )
    assert set(tmp_path.iterdir()) == kept


@pytest.mark.parametrize(
    ("other", "first"),
    [
        (like() | {"unfrozen": torch.zeros(2, 4)}, "unfrozen"),
        (like() | {"another": torch.zeros(1)}, "another"),
        ({"unfrozen": torch.zeros(2, 3)}, "frozen"),
        (like(torch.float64), "frozen"),
    ],
)
def test_parameters_of_another_model_are_refused(tmp_path: Path, other: dict[str, Tensor], first: str) -> None:
    saved(tmp_path, 3)
    with pytest.raises(UserError, match=f"holds other parameters than this model, first '{first}'; give back the enc"):
        load(found(tmp_path), other)


def test_loading_verifies_again_because_another_rank_has_chosen(tmp_path: Path) -> None:
    saved(tmp_path, 3)
    chosen = found(tmp_path)
    flip_a_bit(chosen.folder / "optimizer.safetensors")
    with pytest.raises(UserError, match=r"does not match its SHA-256; all ranks must see the same output_dir$"):
        load(chosen, like())
    shutil.rmtree(chosen.folder)
    with pytest.raises(UserError, match=r"No such file or directory; all ranks must see the same output_dir$"):
        load(chosen, like())


def test_changed_keys_are_named_and_free_keys_are_not() -> None:
    before: dict[str, Any] = {
        "output_dir": "a",
        "seed": 1,
        "micro_batch_size": None,
        "tasks": {"topic": {"weight": 1.0, "labels": None}},
        "data": {"max_length": 128, "cache_dir": None},
        "phases": [{"name": "heads"}],
        "checkpoint": {"every_steps": 10, "resume": "auto"},
        "evaluation": {"batch_size": 64},
        "tracking": {"wandb": False},
    }
    free: dict[str, Any] = {
        "output_dir": "b",
        "micro_batch_size": 4,
        "data": {"max_length": 128, "cache_dir": "c"},
        "checkpoint": {"every_steps": 1, "resume": "never", "keep": 9, "keep_best": "loss", "on_error": "continue"},
        "evaluation": {"batch_size": 1},
        "tracking": {"wandb": True},
    }
    assert changed_keys(before, before | free) == []
    changed = free | {
        "seed": 2,
        "tasks": {"topic": {"weight": 2.0, "labels": None}, "mood": {"weight": 1.0}},
        "data": {"max_length": 64, "cache_dir": None},
        "phases": [{"name": "heads"}, {"name": "all"}],
    }
    expected = ["data.max_length", "phases", "seed", "tasks.mood.weight", "tasks.topic.weight"]
    assert changed_keys(before, before | changed) == expected
    assert changed_keys(before | changed, before) == expected


def test_free_keys_are_keys_of_a_recipe() -> None:
    recipe = Recipe()
    for key in checkpoint.FREE_KEYS:
        section: Any = recipe
        for name in key.rstrip(".").split("."):
            section = getattr(section, name, "missing")
        assert section != "missing", key
