"""Equality of runs: a three-phase run is the same on 1 to 4 processes, on each engine and with any accumulation.

Runs use float64 and no dropout, because rounding in float32 hides small errors: a wrong mean, a lost gradient, a stale
reducer. DeepSpeed only has float32 and is compared with a reference in float32.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.variants import Variant, run_variants

# A batch size that neither processes nor micro-steps divide evenly, and a task weight that reveals a wrong mean.
COMMON = (
    *("model.dtype=float64", "batch_size=26", "tasks.mood.weight=2", "optimizer.unfreeze_warmup_steps=2"),
    "checkpoint.every_steps=4",
)
ONE_TASK = ("sampling.batches=one_task",)
FP32 = ("model.dtype=float32",)
COMPUTED = ("cache.mode=never",)
TABLE = "sentence_transformer.encoder.embeddings.word_embeddings.weight"


@dataclass(frozen=True)
class EqualVariant(Variant):
    """Variant of the recipe's run that must equal the reference."""

    @property
    def fp32(self) -> bool:
        return self.overrides[:1] == FP32

    @property
    def rounding(self) -> float:
        """Largest relative difference to the reference that counts as equal."""
        return 1e-5 if self.fp32 else 1e-9


FP32_REFERENCES = {"fp32": EqualVariant(overrides=FP32), "fp32, one task": EqualVariant(overrides=FP32 + ONE_TASK)}
DATA_PARALLEL = {
    "accumulation 1": EqualVariant(),
    "accumulation 2": EqualVariant(2),
    "accumulation 4": EqualVariant(4),
    "micro-batches of 3": EqualVariant(overrides=("micro_batch_size=3",)),
    "one task": EqualVariant(overrides=ONE_TASK),
    "one task, accumulation 2": EqualVariant(2, ONE_TASK),
}
UNTRIMMED = {"untrimmed embeddings": EqualVariant(without="trimming")}
FSDP2 = {
    "fsdp2": EqualVariant(engine="fsdp2"),
    "fsdp2, accumulation 2": EqualVariant(2, engine="fsdp2"),
    "fsdp2, one task": EqualVariant(1, ONE_TASK, "fsdp2"),
    "fsdp2, one task, accumulation 2": EqualVariant(2, ONE_TASK, "fsdp2"),
}
ZERO = {
    f"zero{stage}{words}": EqualVariant(accumulation, FP32 + overrides, f"zero{stage}")
    for stage in (1, 2, 3)
    for words, accumulation, overrides in (
        ("", 1, ()),
        (", accumulation 2", 2, ()),
        (", one task", 1, ONE_TASK),
        (", one task, accumulation 2", 2, ONE_TASK),
    )
}
BROKEN = {
    "no rewrap": EqualVariant(without="rewrap"),
    "no rewrap, no check": EqualVariant(without="rewrap and check"),
    "stray rank": EqualVariant(without="stray rank"),
    # Without the activation cache, because torch reshards by itself after its forward passes.
    "fsdp2, no resharding": EqualVariant(overrides=COMPUTED, engine="fsdp2", without="resharding"),
    "fsdp2, no resharding, no check": EqualVariant(overrides=COMPUTED, engine="fsdp2", without="resharding and checks"),
    **{
        f"zero{stage}, no {what}": EqualVariant(1, FP32, f"zero{stage}", without)
        for stage in (1, 2, 3)
        for what, without in (
            ("initialization", "new initialization"),
            ("initialization, no check", "new initialization and check"),
            ("optimizer state", "optimizer state"),
            ("optimizer state, no check", "optimizer state and check"),
        )
    },
}
VARIANTS = DATA_PARALLEL | UNTRIMMED | FSDP2 | ZERO | BROKEN
ON_WORLD = {
    1: DATA_PARALLEL | UNTRIMMED | FP32_REFERENCES,
    2: VARIANTS,
    3: DATA_PARALLEL | FSDP2 | ZERO,
    4: DATA_PARALLEL,
}
COMPARED = [(world, name) for world, variants in ON_WORLD.items() for name in variants if name not in BROKEN]


@dataclass(frozen=True)
class Run:
    """Run folder and errors of one run."""

    folder: Path
    errors: list[str | None]
    """Error that ended each rank, or None."""

    def steps(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if "train/loss" in line]

    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.folder / "model" / "model.safetensors")

    def optimizer_state(self, step: int) -> dict[str, torch.Tensor]:
        """Returns the optimizer state after `step` steps, with keys `<key>/<parameter>`."""
        return load_file(self.folder / "checkpoints" / f"step-{step:010d}" / "optimizer.safetensors")


Runs = Callable[[int, str], Run]
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs of every variant on each of its numbers of processes."""
    root = tmp_path_factory.mktemp("same_run")
    # The reference runs never use the activation cache, the others use it wherever possible.
    errors = run_variants(root, {1: ON_WORLD[1]}, (*COMMON, *COMPUTED))
    several = {world: variants for world, variants in ON_WORLD.items() if world > 1}
    errors |= run_variants(root, several, (*COMMON, "cache.mode=always"))
    return lambda world, name: Run(root / str(world) / name, errors[world, name])


def variant_of(name: str) -> EqualVariant:
    return (VARIANTS | FP32_REFERENCES)[name]


def reference_of(runs: Runs, name: str) -> Run:
    """Returns the run of one process with one micro-step and the same global batches."""
    variant = variant_of(name)
    one_task = "one task" if variant.overrides[-1:] == ONE_TASK else ""
    if variant.fp32:
        return runs(1, f"fp32, {one_task}" if one_task else "fp32")
    return runs(1, one_task or "accumulation 1")


def require_close(tensors: Tensors, others: Tensors, rounding: float) -> None:
    """Requires each tensor to be within `rounding` (relative to the norm) of its counterpart."""
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        if rounding > 1e-9 and name.endswith("key.bias"):
            # Its gradient is zero up to rounding errors, which AdamW scales to the size of any other update.
            continue
        distance = torch.linalg.vector_norm(tensor - others[name])
        assert distance <= 1e-15 + rounding * torch.linalg.vector_norm(others[name]), name


@pytest.mark.parametrize(("world", "name"), COMPARED)
def test_losses_digests_and_parameters_equal_those_of_one_process(runs: Runs, world: int, name: str) -> None:
    run, reference, rounding = runs(world, name), reference_of(runs, name), variant_of(name).rounding
    assert run.errors == [None] * world
    assert run.summary()["world_size"] == world
    steps, expected = run.steps(), reference.steps()
    assert [step["plan/digest"] for step in steps] == [step["plan/digest"] for step in expected]
    assert [step["step"] for step in steps] == list(range(1, 13))
    for step, other in zip(steps, expected, strict=True):
        norms = {key for line in (step, other) for key in line if key.startswith("optim/grad_norm")}
        for key in ("train/loss", "train/topic/loss", "train/mood/loss", *norms):
            assert step.get(key) == (pytest.approx(other[key], rel=rounding) if key in other else None)
    assert {weight.dtype for weight in run.weights().values()} == {torch.float32 if rounding > 1e-9 else torch.float64}
    require_close(run.weights(), reference.weights(), rounding)
    assert run.summary()["test/mood/loss"] == pytest.approx(reference.summary()["test/mood/loss"], rel=rounding)
    assert run.summary()["test/topic/accuracy"] == reference.summary()["test/topic/accuracy"]
    figures = ["name", "steps", "draws"] if name in UNTRIMMED else ["name", "steps", "draws", "trainable_parameters"]
    of_phases = [[[phase[key] for key in figures] for phase in one.summary()["phases"]] for one in (run, reference)]
    assert of_phases[0] == of_phases[1]


@pytest.mark.parametrize(("world", "name"), COMPARED)
def test_optimizer_state_after_each_unfreezing_equals_that_of_one_process(runs: Runs, world: int, name: str) -> None:
    for step, embeddings_train in ((8, False), (12, True)):
        state, expected = (run.optimizer_state(step) for run in (runs(world, name), reference_of(runs, name)))
        if name in UNTRIMMED:
            expected.pop(f"decay/{TABLE}", None)
        require_close(state, expected, variant_of(name).rounding)
        assert (f"exp_avg/{TABLE}" in state) == embeddings_train


@pytest.mark.parametrize("world", [2, 3, 4])
def test_all_ranks_end_with_the_same_bytes(runs: Runs, world: int) -> None:
    for name, variant in ON_WORLD[world].items():
        if name not in BROKEN:
            summary = runs(world, name).summary()
            assert len(summary["params_sha256_by_rank"]) == world
            assert set(summary["params_sha256_by_rank"]) == {summary["params_sha256"]}
            assert summary["engine"] == ("ddp" if variant.engine == "data parallel" else variant.engine)


def test_each_phase_trains_more_parameters(runs: Runs) -> None:
    """Otherwise the tests above could compare runs in which nothing is unfrozen."""
    trainable = [phase["trainable_parameters"] for phase in runs(2, "accumulation 1").summary()["phases"]]
    assert trainable == sorted(set(trainable))
    assert len(trainable) == 3
    losses = [step["train/loss"] for step in runs(2, "accumulation 1").steps()]
    assert len(set(losses)) == len(losses)


def test_without_rewrapping_ddp_the_ranks_stop_at_the_next_phase_boundary(runs: Runs) -> None:
    first, second = runs(2, "no rewrap").errors
    assert first == second
    assert first is not None
    # Compared before the checkpoint at the end of the phase, which comes before the next one's start.
    assert first.startswith("after step 8: rank 1 differs from rank 0 in parameter ")


def test_without_rewrapping_and_replica_check_the_losses_differ(runs: Runs) -> None:
    """Negative control: the comparison above detects unfrozen blocks that train without synchronisation."""
    broken, reference = runs(2, "no rewrap, no check").steps(), runs(1, "accumulation 1").steps()
    differences = [
        abs(step["train/loss"] / other["train/loss"] - 1) for step, other in zip(broken, reference, strict=True)
    ]
    assert (
        max(differences[:5]) <= 1e-9
    )  # up to the first step with unfrozen blocks, whose loss precedes the wrong update
    assert max(differences[5:]) > 1e-5


def test_fsdp2_without_resharding_is_stopped(runs: Runs) -> None:
    first, second = runs(2, "fsdp2, no resharding").errors
    assert first == second
    assert first is not None
    assert re.fullmatch("start of phase 'upper': rank 0: .* is to train, and the optimizer does not have it", first)


def test_fsdp2_without_resharding_and_checks_the_losses_differ(runs: Runs) -> None:
    """Negative control of FSDP2: parameters that are unfrozen without resharding stay frozen."""
    broken, reference = runs(2, "fsdp2, no resharding, no check").steps(), runs(1, "accumulation 1").steps()
    losses = zip(broken, reference, strict=True)
    assert max(abs(step["train/loss"] / other["train/loss"] - 1) for step, other in losses) > 1e-5


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    ("what", "problem"),
    [
        ("initialization", "is to train, and the optimizer does not have it"),
        ("optimizer state", "is not the one from before"),
    ],
)
def test_zero_with_a_stale_optimizer_is_stopped(runs: Runs, stage: int, what: str, problem: str) -> None:
    first, second = runs(2, f"zero{stage}, no {what}").errors
    assert first == second
    assert first is not None
    assert re.fullmatch(f"start of phase 'upper': rank 0: .* {problem}", first)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_without_a_new_initialization_unfrozen_blocks_do_not_train(runs: Runs, stage: int) -> None:
    """Negative control of DeepSpeed: the optimizer does not know the unfrozen parameters."""
    broken, trained = runs(2, f"zero{stage}, no initialization, no check").weights(), runs(1, "fp32").weights()
    before = load_file(runs(1, "fp32").folder.parents[1] / "encoder" / "model.safetensors")
    encoder = [name for name in broken if name.startswith("bert.")]
    assert encoder
    for name in encoder:
        start = before[name.removeprefix("bert.")]
        assert torch.equal(broken[name], start)
        assert not torch.equal(trained[name], start)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_without_its_optimizer_state_the_losses_differ(runs: Runs, stage: int) -> None:
    broken, reference = runs(2, f"zero{stage}, no optimizer state, no check").steps(), runs(1, "fp32").steps()
    losses = zip(broken, reference, strict=True)
    assert max(abs(step["train/loss"] / other["train/loss"] - 1) for step, other in losses) > 1e-4


def test_a_weight_that_differs_between_ranks_is_named_at_the_phase_boundary(runs: Runs) -> None:
    where = "start of phase 'upper': rank 1 differs from rank 0 in parameter heads.mood.3.bias"
    assert runs(2, "stray rank").errors == [f"{where} (1 differences in all)"] * 2
