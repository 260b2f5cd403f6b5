"""Rows that count for several tasks: the same run on 1 to 3 processes, on each engine, and in a plain PyTorch loop.

The table has three tasks and 40 % of its labels missing, so that there are batches, ranks and micro-steps without a row
of some task. Runs use float64; DeepSpeed only has float32 and is compared with a run of one process in float32.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtl_dist.config.load import parse
from mtl_dist.data.dataset import DataBundle, prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.models.encoder import load_encoder_config
from mtl_dist.training.build import build_model, build_sampler
from tests.distributed.variants import Variant, run_variants
from tests.utils.plain_loop import PlainLoop, PlainStep
from tests.utils.shared_rows import CLASSES, shared_recipe_file, ticket_tables

COMMON = ("model.dtype=float64", "checkpoint.every_steps=4", "checkpoint.every_minutes=null")
FP32 = ("model.dtype=float32",)
PER_TASK = ("sampling.rows=per_task",)
STEPS = 15

DATA_PARALLEL = {"accumulation 1": Variant(), "accumulation 2": Variant(2), "per task": Variant(overrides=PER_TASK)}
FSDP2 = {"fsdp2": Variant(engine="fsdp2"), "fsdp2, accumulation 2": Variant(2, engine="fsdp2")}
ZERO = {
    f"zero{stage}{words}": Variant(accumulation, FP32, f"zero{stage}")
    for stage in (1, 2, 3)
    for words, accumulation in (("", 1), (", accumulation 2", 2))
}
REFERENCE = {"fp32": Variant(overrides=FP32)}
ON_WORLD = {
    1: DATA_PARALLEL | REFERENCE,
    2: DATA_PARALLEL | FSDP2 | ZERO,
    3: DATA_PARALLEL | FSDP2 | ZERO,
}
COMPARED = [(world, name) for world, variants in ON_WORLD.items() for name in variants if name not in REFERENCE]
RESUMED = ("accumulation 1", "accumulation 2", "fsdp2", "zero1", "zero2", "zero3")
"""Variants that are also killed in the second phase and resumed, on two processes."""


class Run:
    """Run folder and errors of one run."""

    def __init__(self, folder: Path, errors: list[str | None]) -> None:
        self.folder = folder
        self.errors = errors
        """Error that ended each rank, or None."""

    def steps(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if "train/loss" in line]

    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())


Runs = Callable[[int, str], Run]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared rows")


@pytest.fixture(scope="module")
def runs(root: Path) -> Runs:
    """Runs of every variant on each of its numbers of processes, and those that are killed and resumed."""
    # The run of one process never uses the activation cache, the others use it wherever possible.
    errors = run_variants(root, {1: ON_WORLD[1]}, (*COMMON, "cache.mode=never"), shared_recipe_file)
    several = {2: with_resumed_runs(root), 3: ON_WORLD[3]}
    errors |= run_variants(root, several, (*COMMON, "cache.mode=always"), shared_recipe_file)
    return lambda world, name: Run(root / str(world) / name, errors[world, name])


def with_resumed_runs(root: Path) -> dict[str, Variant]:
    """The variants on two processes, and after those of RESUMED two runs in one folder.

    The first ends after six steps, the second is the same command again.
    """
    variants: dict[str, Variant] = {}
    for name, one in ON_WORLD[2].items():
        variants[name] = one
        if name in RESUMED:
            overrides = (*one.overrides, f"output_dir={root}/2/{name}, resumed")
            variants[f"{name}, killed"] = Variant(one.accumulation, overrides, one.engine, "the later steps")
            variants[f"{name}, resumed"] = Variant(one.accumulation, overrides, one.engine)
    return variants


@pytest.fixture(scope="module")
def plain(root: Path, runs: Runs) -> dict[str, tuple[list[PlainStep], dict[str, tuple[float, float]]]]:
    """Steps and test figures of the plain loop, for shared rows and rows per task."""
    tables, results = ticket_tables(), {}
    for rows in ("shared", "per_task"):
        recipe = parse(["--config", str(root / "recipe.yaml"), *COMMON, f"sampling.rows={rows}"]).recipe
        data: DataBundle = prepare(recipe, ProcessGroup())
        sampler = build_sampler(recipe, data)
        pools = [list(CLASSES)] if rows == "shared" else [[task] for task in CLASSES]
        loop = PlainLoop(build_model(recipe, load_encoder_config(recipe.model), data), tables["train"], pools)
        results[rows] = [loop.step(sampler.batch(step)) for step in range(STEPS)], loop.evaluate(tables["test"])
    return results


@pytest.mark.parametrize(("world", "name"), [pair for pair in COMPARED if not pair[1].startswith("zero")])
def test_a_run_equals_the_plain_loop(runs: Runs, plain: dict[str, Any], world: int, name: str) -> None:
    run = runs(world, name)
    assert run.errors == [None] * world
    expected, figures = plain["per_task" if name == "per task" else "shared"]
    assert len(run.steps()) == STEPS
    for line, step in zip(run.steps(), expected, strict=True):
        losses = {task: line[f"train/{task}/loss"] for task in CLASSES if f"train/{task}/loss" in line}
        assert losses == pytest.approx(step.losses, rel=1e-9)
        assert line["optim/grad_norm"] == pytest.approx(step.norm, rel=1e-9)
        if name != "per task":
            assert {task: line[f"train/{task}/labels"] for task in CLASSES} == step.labels
    summary = run.summary()
    for task, (loss, accuracy) in figures.items():
        assert summary[f"test/{task}/loss"] == pytest.approx(loss, rel=1e-9)
        assert summary[f"test/{task}/accuracy"] == pytest.approx(accuracy)


def test_some_batches_lack_a_task(plain: dict[str, Any]) -> None:
    """Otherwise the test above would not show that a head without rows is left untouched."""
    steps, _ = plain["shared"]
    absent = [step for step in steps if not step.labels["mood"]]
    assert 0 < len(absent) < STEPS
    assert all(sum(step.labels.values()) > 11 for step in steps)  # rows count for several tasks


@pytest.mark.parametrize(("world", "name"), [pair for pair in COMPARED if pair[1].startswith("zero")])
def test_zero_equals_one_process_in_float32(runs: Runs, world: int, name: str) -> None:
    run, reference = runs(world, name), runs(1, "fp32")
    assert run.errors == [None] * world
    for line, other in zip(run.steps(), reference.steps(), strict=True):
        assert line["plan/digest"] == other["plan/digest"]
        for key in ("train/loss", "optim/grad_norm", *(f"train/{task}/loss" for task in CLASSES)):
            assert line.get(key) == (pytest.approx(other[key], rel=1e-5) if key in other else None)
    for task in CLASSES:
        key = f"test/{task}/loss"
        assert run.summary()[key] == pytest.approx(reference.summary()[key], rel=1e-5)


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_resumes_with_the_same_bits(runs: Runs, name: str) -> None:
    whole, killed, resumed = (runs(2, f"{name}{words}") for words in ("", ", killed", ", resumed"))
    assert killed.errors == ["killed"] * 2
    assert resumed.errors == [None] * 2
    same = ("params_sha256", "state_sha256", *(f"test/{task}/loss" for task in CLASSES))
    assert {key: resumed.summary()[key] for key in same} == {key: whole.summary()[key] for key in same}
    assert len(json.loads((resumed.folder / "setup.json").read_text())["starts"]) == 2


def test_a_task_has_the_draws_of_its_pool_and_its_own_rows(runs: Runs, root: Path) -> None:
    setup = json.loads((root / "2" / "accumulation 1" / "setup.json").read_text())
    tables = ticket_tables()
    for task in CLASSES:
        labelled = {split: sum(bool(row[task]) for row in table) for split, table in tables.items()}
        assert setup["tasks"][task]["rows"] == labelled
        assert setup["tasks"][task]["missing"] == {split: len(tables[split]) - rows for split, rows in labelled.items()}
    assert setup["pools"]["tickets"]["tasks"] == list(CLASSES)
    assert [phase["draws"] for phase in runs(2, "accumulation 1").summary()["phases"]] == [
        dict.fromkeys(CLASSES, 55)
    ] * 3
