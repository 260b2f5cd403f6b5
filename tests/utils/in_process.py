"""Runs and their components in the process of the test, without a launcher, on the CPU by default."""

import json
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mtl_dist.activation_cache.cache import ActivationCache
from mtl_dist.config.load import Command
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import prepare
from mtl_dist.device import choose_kernels
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.ddp import DataParallel
from mtl_dist.models.encoder import load_encoder_config
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.partition import micro_steps_for
from mtl_dist.schedule.phases import compile_schedule
from mtl_dist.training.build import build_model, build_sampler
from mtl_dist.training.context import RunContext
from mtl_dist.training.evaluation_split import evaluation_split
from mtl_dist.training.run import run_on


def accelerator_here(accumulation: int = 1, precision: str = "no", on_cpu: bool = True) -> Accelerator:
    """A new Accelerator; resets the global state that Accelerate keeps of an earlier one."""
    AcceleratorState._reset_state(True)
    return Accelerator(cpu=on_cpu, gradient_accumulation_steps=accumulation, mixed_precision=precision)


def run_here(recipe: Recipe, accumulation: int = 1, precision: str = "no", on_cpu: bool = True) -> None:
    """Executes the whole run of `recipe`."""
    run_on(accelerator_here(accumulation, precision, on_cpu), ProcessGroup(), Command(recipe, plan_only=False))


def setup_here(recipe: Recipe, accumulation: int = 1, precision: str = "no", on_cpu: bool = True) -> RunContext:
    """Builds the components that `run_on` builds before the first step of `recipe`."""
    processes = ProcessGroup()
    data = prepare(recipe, processes)
    model = build_model(recipe, load_encoder_config(recipe.model), data)
    accelerator = accelerator_here(accumulation, precision, on_cpu)
    choose_kernels(accelerator.device, recipe.safety.deterministic)
    engine = DataParallel(accelerator, processes, model, recipe.optimizer)
    num_blocks = model.layout.num_blocks
    schedule = compile_schedule(recipe, num_blocks, sum(pool.size for pool in data.pools))
    rates = LearningRates(recipe.optimizer, schedule, num_blocks)
    micro_steps = micro_steps_for(recipe.batch_size, 1, recipe.micro_batch_size, accumulation)
    plan = build_sampler(recipe, data)
    cache = ActivationCache(recipe, engine, data, plan, schedule, micro_steps)
    parameters = dict(model.named_parameters())
    sizes = {unit: sum(parameters[name].numel() for name in names) for unit, names in model.unit_parameters().items()}
    split = evaluation_split(recipe, data)
    return RunContext(recipe, processes, engine, data, plan, rates, micro_steps, cache, sizes, split)


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without the metrics of speed (`perf/...`)."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("perf/")} for line in lines]


def summary_of(folder: Path) -> dict[str, Any]:
    """The content of summary.json."""
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))
