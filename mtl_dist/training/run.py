"""From a recipe to a finished run: check, prepare, train, evaluate, save. Every rank goes through all of it."""

import hashlib
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PretrainedConfig, PreTrainedModel

from mtl_dist.activation_cache.cache import ActivationCache
from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.config.load import Command, resolved_yaml
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import DataBundle, prepare
from mtl_dist.device import choose_kernels
from mtl_dist.distributed.consistency import require_equal
from mtl_dist.distributed.launch_check import bf16_hint, start_accelerator
from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.distributed.watchdog import Watchdog
from mtl_dist.engines.ddp import DataParallel
from mtl_dist.engines.factory import EngineClass, engine_class_of
from mtl_dist.models.attention import use_fast_attention
from mtl_dist.models.dropout import use_fast_dropout
from mtl_dist.models.encoder import (
    check_max_length,
    encoder_skeleton,
    find_encoder_layout,
    load_encoder,
    load_encoder_config,
)
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer, check_task_names, encoder_inputs
from mtl_dist.models.vocab_trimming import PLACEHOLDER, rows_in_use, trim_vocabulary
from mtl_dist.run_layout import STACKS
from mtl_dist.schedule.early_stopping import first_end
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.partition import micro_steps_for
from mtl_dist.schedule.phases import Schedule, compile_schedule, trainable_units
from mtl_dist.schedule.plan_table import plan_table
from mtl_dist.schedule.sampler import TaskBalancedSampler, shares
from mtl_dist.tracking.accelerate_backend import check_trackers
from mtl_dist.tracking.console import Console, show_log_lines
from mtl_dist.train_state import TrainState
from mtl_dist.training.dry_run import try_out
from mtl_dist.training.execution import Execution
from mtl_dist.training.run_folder import open_run_folder
from mtl_dist.training.run_metadata import describe
from mtl_dist.training.trainer import TrainingSetup


def run(command: Command, stop_request: StopRequest) -> None:
    """Does what the command line asked for, until `stop_request` is made.

    Raises UserError, TrainingError or Interrupted, the same on every rank.
    """
    accelerator, processes, asked = start_accelerator()
    run_on(
        accelerator, processes, command, engine_class_of(asked, command.recipe, accelerator.device.type), stop_request
    )
    accelerator.end_training()


def run_on(
    accelerator: Accelerator,
    processes: ProcessGroup,
    command: Command,
    engine_class: EngineClass = DataParallel,
    stop_request: StopRequest | None = None,
) -> None:
    """`run` among processes that have met already."""
    console = Console(processes.is_main)
    show_log_lines(processes.is_main)
    recipe = command.recipe
    choose_kernels(accelerator.device, recipe.safety.deterministic)
    processes.on_main_process(lambda: check_trackers(recipe.tracking))
    accumulation = accelerator.gradient_accumulation_steps
    config, skeleton = processes.together(lambda: check_encoder(recipe))
    num_blocks = find_encoder_layout(skeleton).num_blocks
    micro_steps = processes.together(
        lambda: micro_steps_for(recipe.batch_size, processes.world_size, recipe.micro_batch_size, accumulation)
    )
    data = prepare(recipe, processes, console.say)
    sizes = {task: len(source.splits["train"].lengths) for task, source in data.tasks.items()}
    schedule = processes.together(lambda: compile_schedule(recipe, num_blocks, sum(sizes.values())))
    plan = build_plan(recipe, data)
    rates = LearningRates(recipe.optimizer, schedule, num_blocks)
    for line in [*data.warnings, *warnings_of(recipe, schedule)]:
        console.say(f"warning: {line}")
    parameters = processes.together(lambda: unit_sizes(recipe, skeleton, data))
    console.say(plan_table(rates, plan, sizes, parameters))
    if command.plan_only:
        return
    if hint := bf16_hint(accelerator):
        console.say(f"note: {hint}")
    digests = {
        "recipe": hashlib.sha256(resolved_yaml(recipe).encode()).hexdigest(),
        "data": data.digest,
        "plan": plan.digest,
        "schedule": schedule.digest,
    }
    require_equal(processes, "start", {f"the {name}": digest for name, digest in digests.items()})
    model = processes.together(lambda: build_model(recipe, config, data))
    console.say(vocabulary_line(model))
    processes.together(lambda: try_out(accelerator, model))
    engine = engine_class(accelerator, processes, model, recipe.optimizer)
    cache = ActivationCache(recipe, engine, data, plan, schedule, micro_steps, console.say)
    # Last of all that can be refused, because it moves an earlier run's files aside.
    folder, resume = Path(recipe.output_dir), recipe.checkpoint.resume
    identity = {**recipe.model_dump(), "data_sha256": data.digest}
    found = processes.together(
        lambda: open_run_folder(folder, identity, resume, console) if processes.is_main else None
    )
    found = processes.all_gather(found)[0]
    train_state = TrainState()
    if found is not None:
        engine.load(*processes.together(lambda: checkpoint.load(found, engine.like)))
        train_state = TrainState(**found.state["train_state"])
        total = schedule.with_early_stops(train_state.stops).total_steps
        console.say(f"going on from {found.folder.name}, step {train_state.step} of {total}")
    watchdog = Watchdog(processes, recipe.safety.timeout_seconds, folder / STACKS)
    setup = TrainingSetup(recipe, engine, data, plan, rates, micro_steps, cache, parameters, watchdog.passing)
    stop_request = stop_request or StopRequest()
    description = describe(setup, parameters, digests)
    Execution(setup, train_state, console, description, identity, stop_request, watchdog).execute()


def check_encoder(recipe: Recipe) -> tuple[PretrainedConfig, PreTrainedModel]:
    """The encoder's configuration and its skeleton, after all that can be refused before data or weights are read.

    Raises UserError for an encoder that cannot be loaded or is not understood, for `data.max_length` beyond its
    positions, for task names that torch cannot use and for selectors of blocks that it lacks.
    """
    check_task_names(recipe.tasks)
    config = load_encoder_config(recipe.model)
    skeleton = encoder_skeleton(config, recipe.model.trust_remote_code)
    check_max_length(skeleton, recipe.data.max_length)
    trainable_units(recipe, find_encoder_layout(skeleton).num_blocks)
    return config, skeleton


def build_plan(recipe: Recipe, data: DataBundle) -> TaskBalancedSampler:
    """The plan over the training rows of `data`."""
    lengths = {task: source.splits["train"].lengths for task, source in data.tasks.items()}
    return TaskBalancedSampler(
        lengths,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        shares=shares(recipe.sampling, {task: len(rows) for task, rows in lengths.items()}),
        batches=recipe.sampling.batches,
        length_window=recipe.sampling.length_window,
    )


def build_model(recipe: Recipe, config: PretrainedConfig, data: DataBundle) -> MultitaskTransformer:
    """The pretrained encoder with new heads. Raises UserError where its weights cannot be loaded."""
    encoder = load_encoder(recipe.model, config)
    trim_vocabulary(encoder, data.vocabulary)
    sentences = SentenceTransformer(encoder, recipe.model.pooling, recipe.model.dropout)
    model = MultitaskTransformer(sentences, labels_of(data), recipe.model.dropout, recipe.seed)
    use_fast_dropout(model)
    use_fast_attention(encoder)
    tokens = torch.full((1, 2), PLACEHOLDER)
    model.stages.learn(encoder_inputs(tokens, torch.ones_like(tokens)))
    return model


def vocabulary_line(model: MultitaskTransformer) -> str:
    """What trains of the table of tokens."""
    in_use = rows_in_use(model.sentence_transformer.encoder)
    if in_use is None:
        return "token vectors: all train, for the encoder has a table or code of its own"
    return "token vectors: {} of {} are in use; the others take no part in training".format(*in_use)


def unit_sizes(recipe: Recipe, skeleton: PreTrainedModel, data: DataBundle) -> dict[str, int]:
    """Number of parameters of each unit that train with it, without loading a weight.

    Leaves `skeleton` with the rows of its table of tokens that `data` uses, as `build_model` does its encoder.
    """
    trim_vocabulary(skeleton, data.vocabulary)
    model = MultitaskTransformer(SentenceTransformer(skeleton, recipe.model.pooling), labels_of(data))
    parameters = dict(model.named_parameters())
    return {unit: sum(parameters[name].numel() for name in names) for unit, names in model.unit_parameters().items()}


def labels_of(data: DataBundle) -> dict[str, tuple[str, ...]]:
    """Class names of each task, in order."""
    return {task: source.labels for task, source in data.tasks.items()}


def warnings_of(recipe: Recipe, schedule: Schedule) -> list[str]:
    """Lines on what is allowed and yet is hardly meant."""
    lines = []
    config = recipe.optimizer
    if schedule.phases and config.warmup_steps >= schedule.total_steps:
        lines.append(
            f"optimizer.warmup_steps: {config.warmup_steps}, and the run has {schedule.total_steps} steps:"
            " the full learning rate is never reached"
        )
    for index, phase in enumerate(schedule.phases):
        if phase.until is not None and first_end(phase.until) >= phase.steps:
            lines.append(
                f"phases[{index}].until: ends a phase after {first_end(phase.until)} steps or more, and phase"
                f" {phase.name!r} has {phase.steps}: it is never cut short"
            )
        if phase.unfrozen and config.unfreeze_warmup_steps >= phase.steps:
            lines.append(
                f"optimizer.unfreeze_warmup_steps: {config.unfreeze_warmup_steps}, and phase {phase.name!r} has"
                f" {phase.steps} steps: what thaws there never reaches its full learning rate"
            )
    return lines
