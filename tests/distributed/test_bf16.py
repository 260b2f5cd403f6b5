"""Mixed precision bf16 on every engine: the model trains, ranks stay equal, and losses are close to those of fp32."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import launched
from tests.distributed.worker import ENGINES
from tests.utils.tiny import tiny_recipe_file

LONGER = [f"phases.{index}.steps=20" for index in range(3)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a run in bf16 for each engine, and the run `fp32` of one process."""
    root = tmp_path_factory.mktemp("bf16")
    recipe = ["--config", str(tiny_recipe_file(root)), "optimizer.lr=2e-4", *LONGER]
    launched("launch/train.py", *recipe, f"output_dir={root / 'fp32'}")
    launched("launch/train.py", *recipe, f"output_dir={root / 'single'}", flags=("--mixed_precision", "bf16"))
    common = {"accumulation": 1, "without": None}
    jobs = [{"arguments": [*recipe, f"output_dir={root / name}"], "engine": name} | common for name in ENGINES]
    (root / "jobs").write_text(json.dumps(jobs))
    flags = ("--mixed_precision", "bf16", "--main_process_port", "0")
    launched("tests/distributed/worker.py", str(root / "jobs"), processes=2, flags=flags)
    for rank in range(2):
        assert json.loads((root / f"jobs.{rank}").read_text()) == [None] * len(ENGINES)
    return root


def losses_of(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("engine", ["single", *ENGINES])
def test_bf16_trains_with_equal_ranks_and_the_losses_of_fp32(runs: Path, engine: str) -> None:
    summary: dict[str, Any] = json.loads((runs / engine / "summary.json").read_text())
    assert summary["mixed_precision"] == "bf16"
    assert len(set(summary["params_sha256_by_rank"])) == 1
    losses, exact = losses_of(runs / engine), losses_of(runs / "fp32")
    assert losses != exact  # otherwise bf16 was not used
    assert losses == pytest.approx(exact, rel=0.02)
    assert sum(losses[-10:]) < sum(losses[:10])
