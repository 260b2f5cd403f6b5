"""Early stopping on one process and on two: phases end at the same step, with the same losses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.distributed.variants import Variant, run_variants

UNTIL = {
    "heads": "{metric: topic/loss, patience: 2, every_steps: 1}",
    "upper": "{metric: mood/loss, patience: 1, every_steps: 2}",
    "all": "{metric: accuracy, patience: 1, every_steps: 1, min_delta: 1}",
}
COMMON = (
    *("batch_size=26", "evaluation.split=validation", "evaluation.batch_size=5", "optimizer.lr=1e-2"),
    *(f"phases.{index}.steps=9" for index in range(3)),
    *(f"phases.{index}.until={until}" for index, until in enumerate(UNTIL.values())),
)
DOUBLE = ("model.dtype=float64",)

SAME = {
    "data parallel": Variant(1, DOUBLE),
    "accumulation 2": Variant(2, DOUBLE),
    "fsdp2": Variant(1, DOUBLE, "fsdp2"),
    "fsdp2, accumulation 2": Variant(2, DOUBLE, "fsdp2"),
    "stray memory": Variant(1, DOUBLE, without="stray memory"),
}
# DeepSpeed computes in float32, in which losses are similar but not equal.
ZERO = {f"zero{stage}": Variant(engine=f"zero{stage}") for stage in (1, 2, 3)}
BROKEN = {"stray measurement": Variant(1, DOUBLE, without="stray measurement")}
ON_WORLD = {
    1: {"data parallel": Variant(1, DOUBLE), "single": Variant()},
    2: SAME | ZERO | BROKEN,
}


class Run(NamedTuple):
    """Run folder and errors of one run."""

    folder: Path
    errors: list[str | None]

    def lines(self) -> list[dict[str, Any]]:
        return list(map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines()))

    def steps(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "train/loss" in line]

    def lengths(self) -> dict[str, int]:
        summary = json.loads((self.folder / "summary.json").read_text())
        return {phase["name"]: phase["steps"] for phase in summary["phases"]}


Runs = Callable[[int, str], Run]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("until")
    errors = run_variants(root, ON_WORLD, COMMON)
    return lambda world, name: Run(root / str(world) / name, errors[world, name])


@pytest.mark.parametrize("name", [*SAME, *ZERO])
def test_phases_end_at_the_same_step_and_losses_as_on_one_process(runs: Runs, name: str) -> None:
    run, reference = runs(2, name), runs(1, "single" if name in ZERO else "data parallel")
    assert run.errors == [None, None]
    assert run.lengths() == reference.lengths()
    assert [(line["step"], line["phase"]) for line in run.lines()] == [
        (line["step"], line["phase"]) for line in reference.lines()
    ]
    tolerance = 1e-3 if name in ZERO else 1e-9
    for line, other in zip(run.lines(), reference.lines(), strict=True):
        assert line.get("plan/digest") == other.get("plan/digest")
        for key in ("train/loss", "eval/topic/loss", "eval/mood/loss"):
            assert line.get(key) == (pytest.approx(other[key], rel=tolerance) if key in other else None)


def test_phases_end_early_but_not_all_at_the_first_evaluation(runs: Runs) -> None:
    """Otherwise the test above could compare runs that never stop early, or that stop whatever the metric is."""
    lengths = runs(1, "data parallel").lengths()
    assert 3 < lengths["heads"] < 9  # patience 2 needs at least three evaluations
    assert lengths["all"] < 9
    steps = [line["step"] for line in runs(2, "data parallel").steps()]
    assert steps == list(range(1, sum(lengths.values()) + 1))


def test_ranks_with_different_metric_values_stop_with_an_error_that_names_one(runs: Runs) -> None:
    """The run stops at the first evaluation of the metric, although metrics that are not used may differ."""
    run = runs(2, "stray measurement")
    step = runs(1, "data parallel").lengths()["heads"] + 2
    line = f"after step {step}: rank 1 differs from rank 0 in mood/loss (1 differences in all)"
    assert run.errors == [line, line]
    assert run.steps()[-1]["step"] == step
