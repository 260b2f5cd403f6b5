"""The quickstart on one process and on two: the same samples, and equal losses up to rounding, in all three phases."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.launching import ROOT, launched

FIFTY_STEPS = ("phases.0.epochs=null", "phases.0.steps=20", "phases.1.epochs=null", "phases.1.steps=15")
REST = ("phases.2.epochs=null", "phases.2.steps=15")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders of the same 50 steps on one process and on two."""
    assert (ROOT / "assets/quickstart/manifest.json").exists(), "assets/quickstart is missing; `make setup` makes it"
    root = tmp_path_factory.mktemp("quickstart")
    folders = []
    for processes in (1, 2):
        folders.append(root / str(processes))
        launched(
            "launch/train.py",
            *("--config", "recipes/quickstart.yaml", f"output_dir={folders[-1]}"),
            *("model.dropout=0", "model.encoder_dropout=0", "tracking.log_every_steps=1"),
            *(*FIFTY_STEPS, *REST),
            processes=processes,
        )
    return folders


def steps(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "train/loss" in line]


def test_samples_and_losses_are_the_same(runs: list[Path]) -> None:
    one, two = (steps(folder) for folder in runs)
    assert [line["step"] for line in two] == list(range(1, 51))
    assert [line["plan/digest"] for line in one] == [line["plan/digest"] for line in two]
    differences = [abs(a["train/loss"] / b["train/loss"] - 1) for a, b in zip(one, two, strict=True)]
    print(f"largest relative loss difference over 50 steps: {max(differences):.1e}")
    assert max(differences) <= 1e-5


def test_ranks_agree_and_the_summary_describes_the_run(runs: list[Path]) -> None:
    one, two = (json.loads((folder / "summary.json").read_text()) for folder in runs)
    assert (one["world_size"], one["engine"], two["world_size"], two["engine"]) == (1, "single", 2, "ddp")
    assert len(two["params_sha256_by_rank"]) == 2
    assert set(two["params_sha256_by_rank"]) == {two["params_sha256"]}
    assert one["digests"]["plan"] == two["digests"]["plan"]
    assert one["digests"]["data"] == two["digests"]["data"]
    for task in ("domain", "sentiment"):
        assert two[f"test/{task}/accuracy"] == pytest.approx(one[f"test/{task}/accuracy"], abs=2e-3)
