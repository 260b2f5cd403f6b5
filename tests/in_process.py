"""Runs, and the parts of runs, in the test's own process, without a launcher; at first on the CPU."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mtl_dist.cli import Command
from mtl_dist.cut import micro_steps_for
from mtl_dist.data import prepare
from mtl_dist.deterministic import choose_kernels
from mtl_dist.encoder import load_encoder_config
from mtl_dist.engine import DataParallel
from mtl_dist.optim import LearningRates
from mtl_dist.phases import compile_schedule
from mtl_dist.prefix_cache import PrefixCache
from mtl_dist.processes import Processes
from mtl_dist.recipe import Recipe
from mtl_dist.run import build_model, build_plan, run_on
from mtl_dist.trainer import TrainingSetup


def accelerator_here(accumulation: int = 1, precision: str = "no", on_cpu: bool = True) -> Accelerator:
    """A fresh Accelerator; Accelerate keeps the state of the one before."""
    AcceleratorState._reset_state(True)
    return Accelerator(cpu=on_cpu, gradient_accumulation_steps=accumulation, mixed_precision=precision)


def run_here(recipe: Recipe, accumulation: int = 1, precision: str = "no", on_cpu: bool = True) -> None:
    """The whole run of `recipe`."""
    run_on(accelerator_here(accumulation, precision, on_cpu), Processes(), Command(recipe, plan_only=False))


def setup_here(recipe: Recipe, accumulation: int = 1, precision: str = "no", on_cpu: bool = True) -> TrainingSetup:
    """What `run_on` puts together before the first step of `recipe`."""
    processes = Processes()
    data = prepare(recipe, processes, lambda line: None)
    model = build_model(recipe, load_encoder_config(recipe.model), data)
    accelerator = accelerator_here(accumulation, precision, on_cpu)
    choose_kernels(accelerator.device, recipe.safety.deterministic)
    engine = DataParallel(accelerator, processes, model, recipe.optimizer)
    rows = sum(len(source.splits["train"].lengths) for source in data.tasks.values())
    num_blocks = model.anatomy.num_blocks
    schedule = compile_schedule(recipe, num_blocks, rows)
    rates = LearningRates(recipe.optimizer, schedule, num_blocks)
    micro_steps = micro_steps_for(recipe.batch_size, 1, recipe.micro_batch_size, accumulation)
    plan = build_plan(recipe, data)
    cache = PrefixCache(recipe, engine, data, plan, schedule, micro_steps, lambda line: None)
    parameters = dict(model.named_parameters())
    sizes = {unit: sum(parameters[name].numel() for name in names) for unit, names in model.unit_parameters().items()}
    return TrainingSetup(recipe, engine, data, plan, rates, micro_steps, cache, sizes)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without how fast they were."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
