"""Metrics and tables sent to W&B on several processes equal those of one process and do not change the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.variants import Variant, run_variants

DOUBLE = ("model.dtype=float64",)
SAMPLED = (*DOUBLE, "tracking.gradient_cosine_every_steps=1", "tracking.wandb=true")
VARIANTS = {
    "sampled": Variant(1, SAMPLED),
    "sampled, accumulation 2": Variant(2, SAMPLED),
    "plain": Variant(1, DOUBLE),
    "plain, accumulation 2": Variant(2, DOUBLE),
}
KEY = "optim/gradient_cosine/topic/mood"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cosine")
    errors = run_variants(root, {1: {"sampled": Variant(1, SAMPLED)}, 3: VARIANTS}, ("batch_size=26",))
    assert {error for of_ranks in errors.values() for error in of_ranks} == {None}
    return root


def cosines(folder: Path) -> list[float]:
    lines: list[dict[str, Any]] = list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    return [line[KEY] for line in lines if KEY in line]


def test_gradient_cosines_equal_those_of_one_process(root: Path) -> None:
    expected = cosines(root / "1" / "sampled")
    assert len(expected) == 8  # of 12 steps, in the first 4 of which only heads train
    assert len(set(expected)) == 8
    for name in ("sampled", "sampled, accumulation 2"):
        assert cosines(root / "3" / name) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("task", ["topic", "mood"])
def test_misclassified_texts_equal_those_of_one_process(root: Path, task: str) -> None:
    one, three = (misclassified(root / world / "sampled", task) for world in ("1", "3"))
    assert len(one) > 1
    assert [row[:-1] for row in three] == [row[:-1] for row in one]
    assert [row[-1] for row in three] == pytest.approx([row[-1] for row in one], rel=1e-7)


def misclassified(folder: Path, task: str) -> list[list[Any]]:
    (path,) = folder.glob(f"wandb/offline-run-*/files/media/table/test/{task}/misclassified_*.table.json")
    return json.loads(path.read_text())["data"]


@pytest.mark.parametrize("suffix", ["", ", accumulation 2"])
def test_tracking_does_not_change_a_bit_of_the_run(root: Path, suffix: str) -> None:
    one, other = (
        json.loads((root / "3" / f"{name}{suffix}" / "summary.json").read_text()) for name in ("plain", "sampled")
    )
    assert one["state_sha256"] == other["state_sha256"]
    assert cosines(root / "3" / f"plain{suffix}") == []
