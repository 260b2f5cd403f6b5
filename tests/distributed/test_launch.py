"""The files of accelerate_configs as a user launches them: the engine asked for is the one that runs, or none."""

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.launching import launch, launched
from tests.tiny import tiny_recipe_file


def test_fsdp2_trains_and_goes_on_from_a_checkpoint_of_one_process(tmp_path: Path) -> None:
    recipe = str(tiny_recipe_file(tmp_path))
    common = ("--config", recipe, "model.dtype=float64", "checkpoint.every_steps=10")
    launched("launch/train.py", *common)
    unbroken = json.loads((tmp_path / "run" / "summary.json").read_text())
    # As if the machine had stopped after step 10, in the middle of a phase, and the next one had two processes.
    for name in ("summary.json", "checkpoints/step-0000000012"):
        (tmp_path / "run" / name).rename(tmp_path / Path(name).name)
    launched("launch/train.py", *common, processes=2, config="fsdp2.yaml", on_cpu=True)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["engine"], summary["world_size"]) == ("fsdp2", 2)
    assert summary["digests"] == unbroken["digests"]
    assert summary["test/mood/loss"] == pytest.approx(unbroken["test/mood/loss"], rel=1e-9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_a_file_for_gpus_is_refused_where_there_are_none() -> None:
    done = launch("launch/train.py", "--config", "recipes/quickstart.yaml", processes=2, config="fsdp2.yaml")
    ours = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    why = "asks for GPUs, this machine has none; set ACCELERATE_USE_CPU=true to run on CPUs"
    assert ours == [f"error: accelerate_configs/fsdp2.yaml: {why}"]
    assert done.returncode != 0
