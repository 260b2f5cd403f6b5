"""A full disk on two processes: rank 0 alone writes, both end with its one line, and neither waits for the other."""

from pathlib import Path

import pytest

from tests.disks import small_disk, why_not
from tests.distributed.launching import launch
from tests.tiny import tiny_recipe_file

ROOM = 48 << 10
"""For recipe and metrics, but neither for a checkpoint nor for the model."""


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
@pytest.mark.parametrize(("on_error", "ends_at"), [("stop", "checkpoints/step-0000000004"), ("continue", "model")])
def test_both_ranks_learn_that_the_disk_is_full(tmp_path: Path, on_error: str, ends_at: str) -> None:
    recipe = tiny_recipe_file(tmp_path)
    settings = ("checkpoint.every_steps=100", f"checkpoint.on_error={on_error}")
    with small_disk(tmp_path / "disk", ROOM) as disk:
        arguments = ("--config", str(recipe), f"output_dir={disk / 'run'}", *settings)
        done = launch("launch/train.py", *arguments, processes=2)
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        said = [line for line in done.stdout.splitlines() if "training goes on (checkpoint.on_error)" in line]
        left = {path.name for path in (disk / "run").iterdir()}
    assert done.returncode == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"error: cannot write {disk}/run/{ends_at}: ")
    assert "No space left on device" in lines[0]
    assert len(said) == (3 if on_error == "continue" else 0)
    assert left == {"recipe.yaml", "metrics.jsonl", "checkpoints"}
