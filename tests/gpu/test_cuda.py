"""Training on a GPU gives the results of the CPU, and the host does not synchronize between logged steps."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mtl_dist.config.load import parse
from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import Interrupted, TrainingError, UserError
from mtl_dist.models.multitask import SentenceTransformer
from mtl_dist.train_state import TrainState
from mtl_dist.training.context import RunContext
from mtl_dist.training.step_result import StepResult
from mtl_dist.training.trainer import LayerwiseLearningRateTrainer
from tests.distributed.launching import ROOT, LaunchOptions, launched
from tests.utils.in_process import metrics_of, run_here, setup_here, summary_of
from tests.utils.stopping import stop_at_check
from tests.utils.tiny import KINDS, tiny_encoder, tiny_recipe, tiny_recipe_file

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),  # once a process
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),  # DeBERTa in transformers
]

ENGINES = ("data parallel", "fsdp2", "zero1", "zero2", "zero3")
SYNCHRONIZING = ("deberta", "deberta-v2", "mpnet")
"""Encoders whose forward pass synchronizes: transformers computes their relative positions on the CPU."""

Build = Callable[..., RunContext]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_recipe_file(tmp_path_factory.mktemp("cuda"))


@pytest.fixture
def build(recipe_file: Path) -> Build:
    """Builds the parts of a run of the tiny recipe, on the GPU or on the CPU."""

    def of(*overrides: str, on_cpu: bool = False, precision: str = "no") -> RunContext:
        recipe = parse(["--config", str(recipe_file), "batch_size=13", *overrides]).recipe
        return setup_here(recipe, precision=precision, on_cpu=on_cpu)

    return of


def enter(setup: RunContext, index: int) -> None:
    phase = setup.rates.schedule.phases[index]
    setup.engine.enter_phase(phase.name, phase.units)
    setup.engine.train_mode()
    setup.cache.enter_phase(phase, TrainState(step=phase.start))


def trained(setup: RunContext, kind: type[LayerwiseLearningRateTrainer]) -> Iterator[StepResult]:
    """Trains all phases; yields after every step."""
    trainer = kind(setup, TrainState())
    for index, phase in enumerate(setup.rates.schedule.phases):
        enter(setup, index)
        for step in range(phase.start, phase.stop):
            yield trainer.training_step(step)


def of_weights(setup: RunContext) -> dict[str, Tensor]:
    """All weights except the key biases: their gradient is only rounding, which AdamW scales like any other."""
    return {name: value for name, value in setup.engine.weights().items() if ".key.bias" not in name}


@pytest.mark.parametrize("mode", ["never", "always"])
@pytest.mark.parametrize("batches", ["mixed", "one_task"])
def test_a_run_equals_that_of_the_cpu(build: Build, mode: str, batches: str) -> None:
    """Compares losses, gradient norms and weights in float64, in all phases."""
    overrides = ("model.dtype=float64", f"cache.mode={mode}", f"sampling.batches={batches}", "optimizer.warmup_steps=0")
    ours, theirs = build(*overrides), build(*overrides, on_cpu=True)
    both = zip(*(trained(one, LayerwiseLearningRateTrainer) for one in (ours, theirs)), strict=True)
    for mine, other in both:
        torch.testing.assert_close(mine.losses.cpu(), other.losses, rtol=1e-9, atol=1e-12)
        assert mine.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-9)
    expected = of_weights(theirs)
    for name, value in of_weights(ours).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-7, atol=1e-9)


class NeverSynchronizing(LayerwiseLearningRateTrainer):
    """A trainer whose step fails where torch detects that the host waits for the device."""

    def training_step(self, step: int) -> StepResult:
        first = step in {phase.start for phase in self.schedule.phases}
        torch.cuda.set_sync_debug_mode("default" if first else "error")
        try:
            return super().training_step(step)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in SYNCHRONIZING])
def test_a_step_that_is_not_logged_does_not_synchronize(tmp_path: Path, kind: str, precision: str) -> None:
    """With dropout, clipping and gradient accumulation; the first step of a phase may synchronize."""
    file = tiny_recipe_file(tmp_path)
    encoder = tiny_encoder(tmp_path / kind, kind)
    settings = (f"model.encoder={encoder}", "model.dropout=0.1", "model.encoder_dropout=0.1", "cache.mode=never")
    recipe = parse(["--config", str(file), *settings]).recipe
    steps = list(trained(setup_here(recipe, 2, precision, on_cpu=False), NeverSynchronizing))
    assert len(steps) == 12
    assert all(step.gradient_norm > 0 for step in steps)


def test_a_step_on_cached_vectors_does_not_synchronize(build: Build) -> None:
    setup = build("cache.mode=always", "phases.0.steps=40")
    steps = iter(trained(setup, LayerwiseLearningRateTrainer))
    for _ in range(30):  # by then the vector of every text is cached
        next(steps)
    computed = setup.cache.computed
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(9):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert setup.cache.computed == computed


def test_the_host_runs_one_step_ahead_of_the_device(build: Build) -> None:
    """A gradient norm is read after the next step is queued, and counts for its own step."""
    setup = build("optimizer.max_nonfinite_steps=4", "batch_size=12")
    enter(setup, 0)
    trainer = LayerwiseLearningRateTrainer(setup, TrainState())
    with torch.no_grad():
        setup.engine.model.get_submodule("heads.mood.0").get_parameter("weight")[0, 0] = torch.inf
    before = setup.engine.parameter_digests()
    counted = []
    for step in range(3):
        trainer.training_step(step)
        counted.append(trainer.train_state.nonfinite_in_row)
    assert counted == [0, 1, 2]
    with pytest.raises(TrainingError, match="4 steps in a row"):  # raised within the step itself
        trainer.training_step(3)
    assert setup.engine.parameter_digests() == before


@pytest.mark.parametrize("poisoned", [4, 7, 9])
def test_a_gradient_that_is_not_finite_is_skipped_as_on_the_cpu(build: Build, poisoned: int) -> None:
    """Optimizer state and step counts are compared too."""
    states = []
    for on_cpu in (False, True):
        setup = build("model.dtype=float64", "optimizer.warmup_steps=0", "cache.mode=never", on_cpu=on_cpu)
        trainer = LayerwiseLearningRateTrainer(setup, TrainState())
        for index, phase in enumerate(setup.rates.schedule.phases):
            enter(setup, index)
            for step in range(phase.start, phase.stop):
                weight = setup.engine.model.get_submodule("heads.mood.0").get_parameter("weight")
                kept = weight.detach().clone()
                with torch.no_grad():
                    if step == poisoned:
                        weight[0, 0] = torch.inf
                result = trainer.training_step(step)
                assert (step == poisoned) != (result.gradient_norm < float("inf"))
                with torch.no_grad():
                    if step == poisoned:
                        weight.copy_(kept)
        trainer.settle_last_step()
        assert trainer.train_state.nonfinite_total == 1
        counted = ("step/", "decay/")
        steps = {
            name: float(value) for name, value in setup.engine.optimizer_state().items() if name.startswith(counted)
        }
        states.append((of_weights(setup), steps))
    (mine, steps), (theirs, their_steps) = states
    assert steps == pytest.approx(their_steps, rel=1e-12)
    assert sum(name.startswith("decay/") for name in steps) == 1
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path, precision: str) -> None:
    """With dropout, and with cached hidden states."""

    def recipe_of(run: str) -> Recipe:
        dropout = ("model.dropout=0.1", "model.encoder_dropout=0.1")
        return tiny_recipe(tmp_path, *dropout, "cache.mode=always", f"output_dir={tmp_path / run}")

    run_here(recipe_of("whole"), precision=precision, on_cpu=False)
    for round_ in (2, 5, 11):
        recipe = recipe_of(f"stopped{round_}")
        with pytest.MonkeyPatch.context() as patch:
            stop_at_check(patch, round_)
            with pytest.raises(Interrupted):
                run_here(recipe, precision=precision, on_cpu=False)
        run_here(recipe, precision=precision, on_cpu=False)
        results = [summary_of(tmp_path / run)["state_sha256"] for run in ("whole", f"stopped{round_}")]
        assert results[0] == results[1]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_two_equal_runs_give_the_same_bits(tmp_path: Path, kind: str, precision: str) -> None:
    if kind == "deberta" and precision == "bf16":
        pytest.skip("transformers' DeBERTa does not compute in bf16 under autocast; refused, tests/unit has that")
    encoder = tiny_encoder(tmp_path / kind, kind)
    settings = (f"model.encoder={encoder}", "model.dropout=0.1", "model.encoder_dropout=0.1")
    states = []
    for name in ("first", "second"):
        recipe = tiny_recipe(tmp_path, *settings, f"output_dir={tmp_path / name}")
        run_here(recipe, precision=precision, on_cpu=False)
        states.append(summary_of(tmp_path / name)["state_sha256"])
    assert states[0] == states[1]


def test_the_cublas_workspace_variable_is_not_left_in_the_environment(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.11 would parse it at every matrix product, which takes ten times as long as launching the product."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    build()
    assert torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize("deterministic", [True, False])
def test_an_operation_without_a_deterministic_kernel_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    """It is allowed with safety.deterministic=False."""
    pool = SentenceTransformer.pool

    def pooled_again(*given: Any) -> Tensor:
        vectors = pool(*given)
        return adaptive_avg_pool2d(vectors.unsqueeze(0), (len(vectors), vectors.shape[1]))[0]

    monkeypatch.setattr(SentenceTransformer, "pool", pooled_again)
    settings = (f"safety.deterministic={deterministic}", "cache.mode=never")
    recipe = tiny_recipe(tmp_path, *settings)
    if not deterministic:
        run_here(recipe, on_cpu=False)
        return
    with pytest.raises(
        UserError, match=r"^safety\.deterministic: this encoder needs adaptive_avg_pool2d\w*, which has no"
    ):
        run_here(recipe, on_cpu=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_runs_on_a_gpu(tmp_path: Path, engine: str) -> None:
    """One process under NCCL, in all three phases, compared with one process on the CPU."""
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs DeepSpeed")
    file = tiny_recipe_file(tmp_path)
    arguments = ["--config", str(file), f"output_dir={tmp_path}/{engine}"]
    jobs = tmp_path / "jobs"
    jobs.write_text(json.dumps([{"arguments": arguments, "accumulation": 2, "engine": engine, "without": None}]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command += ["--nproc-per-node=1", "tests/distributed/worker.py", str(jobs)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(Path(f"{jobs}.0").read_text()) == [None]
    run_here(tiny_recipe(tmp_path, f"output_dir={tmp_path}/plain"), accumulation=2)
    mine, theirs = (
        [line["train/loss"] for line in metrics_of(tmp_path / name) if "train/loss" in line]
        for name in (engine, "plain")
    )
    assert mine == pytest.approx(theirs, rel=1e-4)
    assert summary_of(tmp_path / engine)["engine"] == ("single" if engine == "data parallel" else engine)


def test_the_launcher_trains_on_the_gpu(tmp_path: Path) -> None:
    """`evaluate` then reproduces the figures of the run."""
    file = tiny_recipe_file(tmp_path)
    how: LaunchOptions = {"config": "gpu.yaml", "flags": ("--mixed_precision", "bf16")}
    launched("launch/train.py", "--config", str(file), **how)
    evaluate = [sys.executable, "-m", "mtl_dist", "evaluate", str(tmp_path / "run")]
    done = subprocess.run(evaluate, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "to the last bit" in done.stdout
    figures = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert figures[-2]["perf/gpu_memory_gb"] > 0
