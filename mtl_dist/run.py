"""From a recipe to a finished run: check, prepare, train, evaluate, save. Every rank goes through all of it."""

import hashlib
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mtl_dist import checkpoint
from mtl_dist.cli import Command, resolved_yaml
from mtl_dist.data import DataBundle, prepare
from mtl_dist.digests import combined, require_equal
from mtl_dist.encoder import build_encoder, check_max_length, load_encoder_config
from mtl_dist.engine import Engine
from mtl_dist.evaluation import TaskMetrics, evaluate, flat_metrics
from mtl_dist.launch_guard import bf16_hint, start_accelerator
from mtl_dist.model import MultitaskTransformer
from mtl_dist.optim import LearningRates, build_optimizer
from mtl_dist.phases import Phase, Schedule, compile_schedule, trainable_units
from mtl_dist.plan import Plan, micro_steps_for, shares
from mtl_dist.plan_view import plan_table
from mtl_dist.recipe import Recipe
from mtl_dist.run_folder import CHECKPOINTS, MODEL, RECIPE, open_run_folder, write_summary, write_whole
from mtl_dist.tracking import Console, Progress, Tracker
from mtl_dist.trainer import Progression, TrainingSetup, TransferLearningTrainer


def run(command: Command) -> None:
    """Does what the command line asked for. Raises UserError or TrainingError, the same on every rank."""
    accelerator, processes = start_accelerator()
    console = Console(processes.is_main)
    recipe = command.recipe
    accumulation = accelerator.gradient_accumulation_steps

    def check() -> tuple[int, int]:
        """What can be refused before any data or weight is read; returns blocks of the encoder and micro-steps."""
        config = load_encoder_config(recipe.model)
        check_max_length(config, recipe.data.max_length)
        trainable_units(recipe, config.num_hidden_layers)
        return config.num_hidden_layers, micro_steps_for(
            recipe.batch_size, processes.world_size, recipe.micro_batch_size, accumulation
        )

    num_blocks, micro_steps = processes.together(check)
    data = prepare(recipe, processes, console.say)
    lengths = {task: source.splits["train"].lengths for task, source in data.tasks.items()}
    sizes = {task: len(rows) for task, rows in lengths.items()}
    schedule = processes.together(lambda: compile_schedule(recipe, num_blocks, sum(sizes.values())))
    plan = Plan(
        lengths,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        shares=shares(recipe.sampling, sizes),
        batches=recipe.sampling.batches,
        length_window=recipe.sampling.length_window,
    )
    rates = LearningRates(recipe.optimizer, schedule, num_blocks)
    for line in [*data.warnings, *warnings_of(recipe, schedule), bf16_hint(accelerator)]:
        if line:
            console.say(f"warning: {line}")
    if command.plan_only:
        console.say(plan_table(rates, plan, sizes, unit_sizes(recipe, data)))
        return
    recipe_digest = hashlib.sha256(resolved_yaml(recipe).encode()).hexdigest()
    inputs = {"the recipe": recipe_digest, "the data": data.digest, "the plan": plan.digest}
    require_equal(processes, "start", inputs | {"the schedule": schedule.digest})
    found = processes.together(lambda: open_run_folder(recipe, console) if processes.is_main else None)
    found = processes.all_gather(found)[0]

    engine = Engine(accelerator, processes, processes.together(lambda: build_model(recipe, data)))
    optimizer = build_optimizer(engine.raw, engine.raw.unit_parameters(), recipe.optimizer)
    progression = Progression()
    if found is not None:
        processes.together(lambda: checkpoint.restore(found, engine.raw, optimizer))
        progression = Progression(**found.state["progression"])
        console.say(f"going on from {found.folder.name}, step {progression.step} of {schedule.total_steps}")
    setup = TrainingSetup(recipe, engine, data, plan, rates, optimizer, micro_steps)
    Execution(setup, progression, console, inputs).execute()
    engine.close()
