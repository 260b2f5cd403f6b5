import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_dist import checkpoint
from mtl_dist.checkpoint import Checkpoint, changed_keys, load, newest, save
from mtl_dist.errors import UserError
from mtl_dist.recipe import Recipe

SHAPES = {"thawed": (2, 3), "frozen": (2, 2)}
STATE = {"identity": {"seed": 1, "optimizer": {"lr": 2e-5}}, "progression": {"nonfinite_total": 3}}


def tensors(dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of two parameters, and moments of one of them: the other has never had a gradient."""
    torch.manual_seed(seed)
    weights = {"thawed": torch.randn(2, 3, dtype=dtype), "frozen": torch.randn(2, 2, dtype=dtype)}
    moments = {f"{key}/thawed": torch.randn(2, 3, dtype=dtype) for key in ("exp_avg", "exp_avg_sq")}
    return weights, moments | {"step/thawed": torch.tensor(3.0)}


def found(root: Path) -> Checkpoint:
    """The newest checkpoint, where none is damaged."""
    checkpoint, skipped = newest(root)
    assert checkpoint is not None
    assert skipped == []
    return checkpoint


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[Any, ...]]:
    """Type, shape and bytes: -0.0 is not 0.0 here."""
    return {
        name: (value.dtype, value.shape, value.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, value in tensors.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_and_moments_come_back_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    weights, moments = tensors(dtype)
    weights["frozen"] = torch.tensor([[-0.0, 0.0], [1e-310, torch.nan]], dtype=dtype)
    save(tmp_path, 3, weights, moments, STATE)
    loaded, its_moments = load(found(tmp_path), SHAPES)
    assert bits(loaded) == bits(weights)
    assert bits(its_moments) == bits(moments)


def test_state_comes_back_with_the_step(tmp_path: Path) -> None:
    folder = save(tmp_path, 7, *tensors(), STATE)
    assert found(tmp_path) == Checkpoint(folder, {**STATE, "step": 7})


def test_no_file_can_run_code_when_it_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 3, *tensors(), STATE)
    files = ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert sorted(path.name for path in folder.iterdir()) == files
    for path in folder.iterdir():
        header = path.read_bytes()
        json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")] if path.suffix == ".safetensors" else header)


def test_two_are_kept_and_the_newest_is_found(tmp_path: Path) -> None:
    for step in (2, 9, 10, 100):
        save(tmp_path, step, *tensors(), STATE)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000000010", "step-0000000100"]
    assert found(tmp_path).state["step"] == 100


def test_the_checkpoint_of_a_step_can_be_written_again(tmp_path: Path) -> None:
    save(tmp_path, 3, *tensors(seed=9), STATE)
    save(tmp_path, 3, *tensors(), STATE)
    loaded = load(found(tmp_path), SHAPES)
    assert [bits(part) for part in loaded] == [bits(part) for part in tensors()]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def edit_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit of the weights": (
        lambda folder: flip_a_bit(folder / "model.safetensors"),
        "model.safetensors does not match its SHA-256",
    ),
    "moments cut short": (
        lambda folder: cut_short(folder / "optimizer.safetensors"),
        "optimizer.safetensors does not match its SHA-256",
    ),
    "another state": (
        lambda folder: (folder / "state.json").write_text('{"step": 4}'),
        "state.json does not match its SHA-256",
    ),
    "no state": (lambda folder: (folder / "state.json").unlink(), "unreadable manifest or file (FileNotFoundError: "),
    "no manifest": (
        lambda folder: (folder / "manifest.json").unlink(),
        "unreadable manifest or file (FileNotFoundError: ",
    ),
    "manifest cut short": (
        lambda folder: cut_short(folder / "manifest.json"),
        "unreadable manifest or file (JSONDecodeError: ",
    ),
    "manifest of zeros": (
        lambda folder: (folder / "manifest.json").write_bytes(bytes(300)),
        "unreadable manifest or file (JSONDecodeError: ",
    ),
    "manifest is a list": (
        lambda folder: (folder / "manifest.json").write_text("[]"),
        "unreadable manifest or file (TypeError: ",
    ),
    "manifest without files": (
        lambda folder: edit_manifest(folder, files=None),
        "unreadable manifest or file (AttributeError: ",
    ),
    "fewer files": (
        lambda folder: edit_manifest(folder, files={}),
        "its manifest lists other files than a checkpoint has",
    ),
    "another format": (lambda folder: edit_manifest(folder, format=2), "format 2, this version reads 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_an_older_one(tmp_path: Path, damage: str) -> None:
    older, newer = (save(tmp_path, step, *tensors(), STATE) for step in (3, 5))
    do, reason = DAMAGES[damage]
    do(newer)
    checkpoint, skipped = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.folder == older
    assert len(skipped) == 1
    assert skipped[0].startswith(f"checkpoint step-0000000005 skipped: {reason}")


def test_where_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    for step in (3, 5):
        flip_a_bit(save(tmp_path, step, *tensors(), STATE) / "model.safetensors")
    checkpoint, skipped = newest(tmp_path)
    assert checkpoint is None
    assert [line.split()[1] for line in skipped] == ["step-0000000005", "step-0000000003"]


def test_where_nothing_was_saved_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    assert newest(tmp_path / "missing") == (None, [])


def test_a_torn_one_is_ignored_and_written_over(tmp_path: Path) -> None:
    torn = tmp_path / ".partial-0000000005"
    torn.mkdir()
    (torn / "stray").write_text("of a run that was killed")
    assert newest(tmp_path) == (None, [])
    older = save(tmp_path, 3, *tensors(), STATE)
    assert found(tmp_path).folder == older
    newer = save(tmp_path, 5, *tensors(), STATE)
    assert found(tmp_path).folder == newer
    assert not torn.exists()
    assert not (newer / "stray").exists()


def test_nothing_is_published_or_removed_before_every_file_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk fails at any of the flushes."""
    kept = {save(tmp_path, step, *tensors(), STATE) for step in (1, 2)}
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
        with pytest.raises(OSError, match="Input/output error"):
            save(tmp_path, 3, *tensors(), STATE)
        assert set(tmp_path.glob("step-*")) == kept
    files = {"manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"}
    assert set(flushed[:4]) == files
    assert flushed[4] == ".partial-0000000003"


@pytest.mark.parametrize(
    ("shapes", "first"),
    [
        (SHAPES | {"thawed": (2, 4)}, "thawed"),
        (SHAPES | {"another": (1,)}, "another"),
        ({"thawed": (2, 3)}, "frozen"),
    ],
)
def test_parameters_of_another_model_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]], first: str
) -> None:
    save(tmp_path, 3, *tensors(), STATE)
    with pytest.raises(UserError, match=f"holds other parameters than this model, first {first}; give back the enc"):
        load(found(tmp_path), shapes)


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
        "checkpoint": {"every_steps": 1, "resume": "never"},
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
