"""Modes of all that runs and commands write: those of the umask, whatever library writes."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mtl_dist.cli.report import write_report
from mtl_dist.inference.evaluate import evaluate_run
from mtl_dist.inference.export import export_run
from mtl_dist.inference.predict import predict_file
from mtl_dist.io import atomic_folder
from tests.utils.in_process import run_here
from tests.utils.tiny import tiny_recipe


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def wrong_modes(folder: Path, umask: int) -> dict[str, str]:
    """Path -> mode of everything in `folder`, itself included, that has not the mode of `umask`."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        expected = (0o777 if stat.S_ISDIR(mode) else 0o666) & ~umask
        if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) != expected:
            found[str(path.relative_to(folder))] = oct(stat.S_IMODE(mode))
    return found


def test_a_run_and_what_is_made_from_it_have_the_modes_of_the_umask(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, made = tmp_path / "in", tmp_path / "made"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("mtl_dist.data.fingerprint.TIMESTAMP_SETTLING_NS", 0)  # a memo is written at once
    settings = ["checkpoint.every_steps=2", "cache.mode=always", "tracking.wandb=true", "tracking.also=[tensorboard]"]
    folders = [f"output_dir={made}/run", f"data.cache_dir={made}/data", f"cache.folder={made}/cache"]
    run_here(tiny_recipe(inputs, *settings, *folders))
    run = made / "run"
    export_run(run, made / "classifier", task="topic")
    export_run(run, made / "encoder", sentence_transformers=True)
    predict_file(run, str(inputs / "data" / "topic.test.json"), task="topic", to=made / "p.csv", format="jsonl")
    evaluate_run(run).write_json(made / "e.json")
    write_report([run], made / "r.html")
    for name in ("run/model", "run/checkpoints", "run/wandb", "run/tensorboard", "data/starts", "cache", "classifier"):
        assert list((made / name).iterdir()) or name == "cache", name
    assert wrong_modes(made, umask) == {}


def test_a_library_that_closes_its_files_to_others(tmp_path: Path, umask: int) -> None:
    with atomic_folder(tmp_path / "made") as folder:
        (folder / "sub").mkdir(mode=0o700)
        save_file({"a": torch.ones(1)}, folder / "sub" / "a.safetensors")
        (folder / "b").touch(mode=0o600)
        (tmp_path / "elsewhere").touch(mode=0o600)
        (folder / "link").symlink_to(tmp_path / "elsewhere")
    assert wrong_modes(tmp_path / "made", umask) == {}
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["b", "link", "sub"]
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o600
