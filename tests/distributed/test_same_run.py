"""The same run anywhere: a three-phase run in float64 is the same on 1 to 4 processes and with any accumulation.

float64 and no dropout, because rounding in fp32 hides small mistakes: a wrong mean, a lost gradient, a stale reducer.
"""

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

# A batch that neither processes nor micro-steps divide evenly, and a weight that a wrong mean would show.
COMMON = (
    *("model.dtype=float64", "batch_size=26", "tasks.mood.weight=2", "optimizer.thaw_warmup_steps=2"),
    "checkpoint.every_steps=4",
)
ONE_TASK = ("sampling.batches=one_task",)


@dataclass(frozen=True)
class Variant:
    """A way to run the recipe that must not change the run."""

    accumulation: int = 1
    overrides: tuple[str, ...] = ()
    engine: str = "data parallel"
    without: str | None = None
    """What is taken out of the engine; see BREAKS in worker.py."""


DATA_PARALLEL = {
    "accumulation 1": Variant(),
    "accumulation 2": Variant(2),
    "accumulation 4": Variant(4),
    "micro-batches of 3": Variant(overrides=("micro_batch_size=3",)),
    "one task": Variant(overrides=ONE_TASK),
    "one task, accumulation 2": Variant(2, ONE_TASK),
}
FSDP2 = {
    "fsdp2": Variant(engine="fsdp2"),
    "fsdp2, accumulation 2": Variant(2, engine="fsdp2"),
    "fsdp2, one task": Variant(1, ONE_TASK, "fsdp2"),
    "fsdp2, one task, accumulation 2": Variant(2, ONE_TASK, "fsdp2"),
}
BROKEN = {
    "no rewrap": Variant(without="rewrap"),
    "no rewrap, no check": Variant(without="rewrap and check"),
    "stray rank": Variant(without="stray rank"),
    "fsdp2, no settling, no check": Variant(engine="fsdp2", without="settling and check"),
}
VARIANTS = DATA_PARALLEL | FSDP2 | BROKEN
ON_WORLD = {1: DATA_PARALLEL, 2: VARIANTS, 3: DATA_PARALLEL | FSDP2, 4: DATA_PARALLEL}
COMPARED = [(world, name) for world, variants in ON_WORLD.items() for name in variants if name not in BROKEN]


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

    def moments(self, step: int) -> dict[str, torch.Tensor]:
        """AdamW's state after `step` steps, as `<moment>/<parameter>`."""
        return load_file(self.folder / "checkpoints" / f"step-{step:010d}" / "optimizer.safetensors")


Runs = Callable[[int, str], Run]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every variant on the numbers of processes that it is for."""
    root = tmp_path_factory.mktemp("same_run")
    recipe = tiny_recipe_file(root)
    errors: dict[tuple[int, str], list[str | None]] = {}
    for world, variants in ON_WORLD.items():
        jobs = [
            {
                "arguments": ["--config", str(recipe), f"output_dir={root / str(world) / name}", *COMMON, *v.overrides],
                "accumulation": v.accumulation,
                "engine": v.engine,
                "without": v.without,
            }
            for name, v in variants.items()
        ]
        file = root / f"jobs{world}.json"
        file.write_text(json.dumps(jobs))
        launched("tests/distributed/worker.py", str(file), processes=world)
        by_rank = [json.loads(Path(f"{file}.{rank}").read_text()) for rank in range(world)]
        errors |= {(world, name): list(ended) for name, *ended in zip(variants, *by_rank, strict=True)}
    return lambda world, name: Run(root / str(world) / name, errors[world, name])


def reference_of(runs: Runs, name: str) -> Run:
    """The run of one process in one micro-step on the same global batches."""
    return runs(1, "one task" if VARIANTS[name].overrides == ONE_TASK else "accumulation 1")


def require_close(tensors: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    """Each within 1e-9 of the other's norm, or of rounding: a key's bias has no gradient but that."""
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        distance = torch.linalg.vector_norm(tensor - others[name])
        assert distance <= 1e-15 + 1e-9 * torch.linalg.vector_norm(others[name]), name


@pytest.mark.parametrize(("world", "name"), COMPARED)
def test_losses_digests_and_parameters_are_those_of_one_process(runs: Runs, world: int, name: str) -> None:
    run, reference = runs(world, name), reference_of(runs, name)
    assert run.errors == [None] * world
    assert run.summary()["world_size"] == world
    steps, expected = run.steps(), reference.steps()
    assert [step["plan/digest"] for step in steps] == [step["plan/digest"] for step in expected]
    assert [step["step"] for step in steps] == list(range(1, 13))
    for step, other in zip(steps, expected, strict=True):
        for key in ("train/loss", "train/loss/topic", "train/loss/mood", "optim/grad_norm"):
            assert step.get(key) == (pytest.approx(other[key], rel=1e-9) if key in other else None)
    assert {weight.dtype for weight in run.weights().values()} == {torch.float64}
    require_close(run.weights(), reference.weights())
    assert run.summary()["test/mood/loss"] == pytest.approx(reference.summary()["test/mood/loss"], rel=1e-9)
    assert run.summary()["test/topic/accuracy"] == reference.summary()["test/topic/accuracy"]


@pytest.mark.parametrize(("world", "name"), COMPARED)
def test_moments_after_each_thaw_are_those_of_one_process(runs: Runs, world: int, name: str) -> None:
    for step, embeddings_train in ((8, False), (12, True)):
        moments = runs(world, name).moments(step)
        require_close(moments, reference_of(runs, name).moments(step))
        embeddings = "exp_avg/sentence_transformer.encoder.embeddings.word_embeddings.weight"
        assert (embeddings in moments) == embeddings_train


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_end_with_the_same_bytes(runs: Runs, world: int) -> None:
    for name, variant in ON_WORLD[world].items():
        if name not in BROKEN:
            summary = runs(world, name).summary()
            assert len(summary["params_sha256_by_rank"]) == world
            assert set(summary["params_sha256_by_rank"]) == {summary["params_sha256"]}
            assert summary["engine"] == ("fsdp2" if variant.engine == "fsdp2" else "ddp")


def test_phases_train_something_else_each(runs: Runs) -> None:
    """Guards the tests above from comparing runs in which nothing thaws."""
    trainable = [phase["trainable_parameters"] for phase in runs(2, "accumulation 1").summary()["phases"]]
    assert trainable == sorted(set(trainable))
    assert len(trainable) == 3
    losses = [step["train/loss"] for step in runs(2, "accumulation 1").steps()]
    assert len(set(losses)) == len(losses)


def test_without_the_rewrap_the_ranks_stop_at_the_next_boundary(runs: Runs) -> None:
    first, second = runs(2, "no rewrap").errors
    assert first == second
    assert first is not None
    assert first.startswith("start of phase 'all': rank 1 differs from rank 0 in parameter ")


def test_without_rewrap_and_check_the_losses_differ(runs: Runs) -> None:
    """The negative control: what the comparison above would see if thawed blocks trained unsynchronised."""
    broken, reference = runs(2, "no rewrap, no check").steps(), runs(1, "accumulation 1").steps()
    differences = [
        abs(step["train/loss"] / other["train/loss"] - 1) for step, other in zip(broken, reference, strict=True)
    ]
    assert max(differences[:5]) <= 1e-9  # up to the first step with thawed blocks, whose loss came before the damage
    assert max(differences[5:]) > 1e-5


def test_fsdp2_without_settling_the_losses_differ(runs: Runs) -> None:
    """The negative control of FSDP2: what is thawed in the wrong place stays frozen."""
    broken, reference = runs(2, "fsdp2, no settling, no check").steps(), runs(1, "accumulation 1").steps()
    losses = zip(broken, reference, strict=True)
    assert max(abs(step["train/loss"] / other["train/loss"] - 1) for step, other in losses) > 1e-5


def test_a_stray_weight_is_named_at_the_boundary(runs: Runs) -> None:
    where = "start of phase 'upper': rank 1 differs from rank 0 in parameter heads.mood.3.bias"
    assert runs(2, "stray rank").errors == [f"{where} (1 differences in all)"] * 2
