"""The same run anywhere: a three-phase run in float64 is the same on 1 to 4 processes and with any accumulation.

float64 and no dropout, because rounding in fp32 hides small mistakes: a wrong mean, a lost gradient, a stale reducer.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.launching import launched
from tests.tiny import tiny_recipe_file

WORLDS = (1, 2, 3, 4)
# A batch that neither processes nor micro-steps divide evenly, and a weight that a wrong mean would show.
COMMON = ("model.dtype=float64", "batch_size=26", "tasks.mood.weight=2", "optimizer.thaw_warmup_steps=2")
VARIANTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "accumulation 1": (1, ()),
    "accumulation 2": (2, ()),
    "accumulation 4": (4, ()),
    "micro-batches of 3": (1, ("micro_batch_size=3",)),
    "one task": (1, ("sampling.batches=one_task",)),
    "one task, accumulation 2": (2, ("sampling.batches=one_task",)),
}
REFERENCE = {variant: "one task" if variant.startswith("one task") else "accumulation 1" for variant in VARIANTS}
BROKEN = ("rewrap", "rewrap and check", "stray rank")


@dataclass(frozen=True)
class Run:
    """What one run left."""

    folder: Path
    errors: list[str | None]
    """By rank, how it ended."""

    def steps(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if "train/loss" in line]

    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model" / "model.safetensors")


Runs = Callable[[int, str], Run]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every variant on every world size; and on two processes, runs with a part taken out of the engine."""
    root = tmp_path_factory.mktemp("same_run")
    recipe = tiny_recipe_file(root)
    errors: dict[tuple[int, str], list[str | None]] = {}
    for world in WORLDS:
        jobs: list[dict[str, Any]] = []
        for name in (*VARIANTS, *(BROKEN if world == 2 else ())):
            accumulation, overrides = VARIANTS.get(name, (1, ()))
            arguments = ["--config", str(recipe), f"output_dir={root / str(world) / name}", *COMMON, *overrides]
            without = name if name in BROKEN else None
            jobs.append({"name": name, "arguments": arguments, "accumulation": accumulation, "without": without})
        file = root / f"jobs{world}.json"
        file.write_text(json.dumps(jobs))
        launched("tests/distributed/worker.py", str(file), processes=world)
        by_rank = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(world)]
        errors |= {(world, job["name"]): list(ended) for job, *ended in zip(jobs, *by_rank, strict=True)}
    return lambda world, name: Run(root / str(world) / name, errors[world, name])


@pytest.mark.parametrize(("world", "variant"), list(itertools.product(WORLDS, VARIANTS)))
def test_losses_digests_and_parameters_are_those_of_one_process(runs: Runs, world: int, variant: str) -> None:
    run, reference = runs(world, variant), runs(1, REFERENCE[variant])
    assert run.errors == [None] * world
    assert run.summary()["world_size"] == world
    steps, expected = run.steps(), reference.steps()
    assert [step["plan/digest"] for step in steps] == [step["plan/digest"] for step in expected]
    assert [step["step"] for step in steps] == list(range(1, 13))
    for step, other in zip(steps, expected, strict=True):
        for key in ("train/loss", "train/loss/topic", "train/loss/mood", "optim/grad_norm"):
            assert step.get(key) == (pytest.approx(other[key], rel=1e-9) if key in other else None)
    weights, others = run.weights(), reference.weights()
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        assert weight.dtype == torch.float64
        assert torch.linalg.vector_norm(weight - others[name]) <= 1e-9 * torch.linalg.vector_norm(others[name]), name
    assert run.summary()["test/mood/loss"] == pytest.approx(reference.summary()["test/mood/loss"], rel=1e-9)
    assert run.summary()["test/topic/accuracy"] == reference.summary()["test/topic/accuracy"]


@pytest.mark.parametrize("world", WORLDS[1:])
def test_ranks_end_with_the_same_bytes(runs: Runs, world: int) -> None:
    for variant in VARIANTS:
        assert len(set(runs(world, variant).summary()["params_sha256_by_rank"])) == 1
        assert runs(world, variant).summary()["engine"] == "ddp"


def test_phases_train_something_else_each(runs: Runs) -> None:
    """Guards the tests above from comparing runs in which nothing thaws."""
    trainable = [phase["trainable_parameters"] for phase in runs(2, "accumulation 1").summary()["phases"]]
    assert trainable == sorted(set(trainable))
    assert len(trainable) == 3
    losses = [step["train/loss"] for step in runs(2, "accumulation 1").steps()]
    assert len(set(losses)) == len(losses)


def test_without_the_rewrap_the_ranks_stop_at_the_next_boundary(runs: Runs) -> None:
    first, second = runs(2, "rewrap").errors
    assert first == second
    assert first is not None
    assert first.startswith("start of phase 'all': rank 1 differs from rank 0 in parameter ")


def test_without_rewrap_and_check_the_losses_differ(runs: Runs) -> None:
    """The negative control: what the comparison above would see if thawed blocks trained unsynchronised."""
    broken, reference = runs(2, "rewrap and check").steps(), runs(1, "accumulation 1").steps()
    differences = [
        abs(step["train/loss"] / other["train/loss"] - 1) for step, other in zip(broken, reference, strict=True)
    ]
    assert max(differences[:5]) <= 1e-9  # up to the first step with thawed blocks, whose loss came before the damage
    assert max(differences[5:]) > 1e-5


def test_a_stray_weight_is_named_at_the_boundary(runs: Runs) -> None:
    where = "start of phase 'upper': rank 1 differs from rank 0 in parameter heads.mood.3.bias"
    assert runs(2, "stray rank").errors == [f"{where} (1 differences in all)"] * 2
