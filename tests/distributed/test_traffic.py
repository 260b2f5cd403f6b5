"""Communication of DDP: the gradients of trainable parameters once per step, and nothing else."""

import json
from pathlib import Path

import pytest

from tests.distributed.launching import launched
from tests.utils.tiny import tiny_recipe_file

REBUILT_BUCKETS = "gloo:broadcast"
"""Collective of a few integers in the first step of a phase, with which the ranks of DDP agree on the bucket order."""


@pytest.mark.parametrize("accumulation", [1, 2])
def test_bytes_per_step_are_four_for_each_trainable_parameter(tmp_path: Path, accumulation: int) -> None:
    recipe = tiny_recipe_file(tmp_path)
    arguments = ["--config", str(recipe), f"micro_batch_size={8 // accumulation}", "batch_size=16"]
    launched("tests/distributed/traffic.py", str(tmp_path / "traffic"), *arguments, processes=2)
    phases = json.loads((tmp_path / "run" / "summary.json").read_text())["phases"]
    trainable = [phase["trainable_parameters"] for phase in phases for _ in range(phase["steps"])]
    assert len(set(trainable)) == 3
    for rank in range(2):
        steps = json.loads(Path(f"{tmp_path / 'traffic'}.{rank}").read_text())
        for number, (elements, expected) in enumerate(zip(steps, trainable, strict=True)):
            rebuilt = elements.pop(REBUILT_BUCKETS, 0)
            assert rebuilt == 0 or (number % 4 == 0 and rebuilt < 100)
            assert elements == {"gloo:all_reduce": expected}  # of 4 bytes each
