"""Numbers that are not finite are refused by name, or said on the screen."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtl_dist.checkpoint import storage
from mtl_dist.config.recipe import CheckpointConfig
from mtl_dist.errors import TrainingError, UserError
from mtl_dist.training.callbacks import metrics_logger
from tests.utils.in_process import run_here
from tests.utils.nonfinite import inject_nonfinite
from tests.utils.tiny import tiny_recipe

NAMES = {torch.nan: "NaN", torch.inf: "an infinite value", -torch.inf: "an infinite value"}


def said(capsys: pytest.CaptureFixture[str], words: str) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if words in line]


def corrupt(file: Path, name: str, value: float) -> None:
    tensors = load_file(file)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", NAMES)
def test_an_encoder_that_is_not_finite_is_refused_by_the_name_of_the_weight(tmp_path: Path, value: float) -> None:
    """Also in a row of the token embeddings that no text uses."""
    recipe = tiny_recipe(tmp_path)
    corrupt(tmp_path / "encoder/model.safetensors", "embeddings.word_embeddings.weight", value)
    words = rf"^model.encoder: .*/encoder: embeddings.word_embeddings.weight holds {NAMES[value]}$"
    with pytest.raises(UserError, match=words):
        run_here(recipe)
    assert not (tmp_path / "run").exists()


def rewritten(folder: Path, change: str, value: float) -> None:
    """Saves the newest checkpoint again with a value that is not finite in its weights or optimizer state."""
    root = folder / "checkpoints"
    found, _ = storage.newest_valid(root)
    assert found is not None
    tensors = [load_file(found.folder / file) for file in (storage.WEIGHTS, storage.OPTIMIZER)]
    of = next(one for one in tensors if any(name.startswith(change) for name in one))
    of[next(name for name in of if name.startswith(change))].view(-1)[0] = value
    weights, optimizer_state = tensors
    storage.save(root, found.step, weights, optimizer_state, found.state, CheckpointConfig())


@pytest.mark.parametrize("change", ["heads.mood", "exp_avg_sq/heads.mood"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_checkpoint_that_is_not_finite_is_not_resumed_from(tmp_path: Path, change: str, value: float) -> None:
    recipe = tiny_recipe(tmp_path)
    run_here(recipe)
    (tmp_path / "run/summary.json").unlink()
    rewritten(tmp_path / "run", change, value)
    with pytest.raises(UserError, match=rf"step-\d+: {change}.* holds {NAMES[value]}; remove this checkpoint"):
        run_here(recipe)


def test_skipped_steps_are_said_when_they_begin_and_counted_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inject_nonfinite(range(5, 7), put=monkeypatch.setattr)
    run_here(tiny_recipe(tmp_path))
    assert said(capsys, "not finite") == [
        "warning: step 6, phase upper: the gradient is not finite, so the step is skipped",
        "warning: 2 of 12 steps were skipped: their gradient was not finite",
    ]


def test_a_run_without_skipped_steps_says_nothing_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_here(tiny_recipe(tmp_path))
    assert said(capsys, "finite") == []


def test_many_skipped_steps_are_said_a_few_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics_logger, "MOST_SKIPS_SHOWN", 3)
    inject_nonfinite(range(0, 12, 2), put=monkeypatch.setattr)
    run_here(tiny_recipe(tmp_path))
    lines = said(capsys, "warning: ")
    assert [line.split()[2] for line in lines[:-1]] == ["1,", "3,", "5,"]
    assert lines[-2].endswith("skipped; further ones are counted at the end")
    assert lines[-1].startswith("warning: 6 of 12 steps were skipped")


def test_a_rollback_is_a_warning_and_not_to_weights_that_are_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ("checkpoint.every_steps=4", "optimizer.max_nonfinite_steps=2")
    inject_nonfinite(range(5, 7), put=monkeypatch.setattr)
    run_here(tiny_recipe(tmp_path / "good", *changes))
    assert len(said(capsys, "warning: after step 7: the gradient was not finite 2 times in a row; back to")) == 1
    save = storage.save

    def save_overflown(root: Path, step: int, weights: dict[str, torch.Tensor], *others: object) -> Path:
        name = next(iter(weights))
        return save(root, step, {**weights, name: weights[name] * torch.nan}, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "save", save_overflown)
    with pytest.raises(TrainingError, match=r"^the gradient is not finite, and neither is .*step-\d+: .* holds NaN$"):
        run_here(tiny_recipe(tmp_path / "bad", *changes))


def test_a_loss_that_is_not_finite_is_said_and_null_in_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All units are frozen, and weights of the encoder overflow."""
    recipe = tiny_recipe(tmp_path, "model.freeze=[all]")
    file = tmp_path / "encoder/model.safetensors"
    weights = load_file(file)
    weights["encoder.layer.3.output.LayerNorm.weight"].fill_(torch.finfo(torch.float32).max)
    save_file(weights, file, metadata={"format": "pt"})
    run_here(recipe)
    lines = said(capsys, "the loss is not finite")
    assert [line.split(":")[:3] for line in lines] == [
        ["warning", " at the end, test", f" {task}"] for task in ("topic", "mood")
    ]
    summary = json.loads((tmp_path / "run/summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["test/mood/loss"] is None
