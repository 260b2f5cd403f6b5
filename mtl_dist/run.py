"""From a recipe to a finished run: check, prepare, train, evaluate, save. Every rank goes through all of it."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PretrainedConfig, PreTrainedModel

from mtl_dist import checkpoint
from mtl_dist.accelerate_tracker import check_trackers
from mtl_dist.attention import use_fast_attention
from mtl_dist.cli import Command, resolved_yaml
from mtl_dist.cut import micro_steps_for
from mtl_dist.data import DataBundle, prepare
from mtl_dist.deterministic import choose_kernels, try_out
from mtl_dist.digests import require_equal
from mtl_dist.dropout import make_dropout_fast
from mtl_dist.encoder import check_max_length, encoder_skeleton, find_anatomy, load_encoder, load_encoder_config
from mtl_dist.engine import DataParallel
from mtl_dist.engines import EngineClass, engine_class_of
from mtl_dist.execution import Execution
from mtl_dist.folder_names import STACKS
from mtl_dist.interruption import StopRequest
from mtl_dist.launch_guard import bf16_hint, start_accelerator
from mtl_dist.model import MultitaskTransformer, SentenceTransformer, check_task_names, encoder_inputs
from mtl_dist.optim import LearningRates
from mtl_dist.phases import Schedule, compile_schedule, trainable_units
from mtl_dist.plan import Plan, shares
from mtl_dist.plan_view import plan_table
from mtl_dist.prefix_cache import PrefixCache
from mtl_dist.processes import Processes
from mtl_dist.progression import Progression
from mtl_dist.recipe import Recipe
from mtl_dist.run_folder import open_run_folder
from mtl_dist.setup_record import describe
from mtl_dist.tracking import Console
from mtl_dist.trainer import TrainingSetup
from mtl_dist.until import first_end
from mtl_dist.vocabulary import PLACEHOLDER, keep_rows_in_use, rows_in_use
from mtl_dist.watchdog import Watchdog


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
    processes: Processes,
    command: Command,
    engine_class: EngineClass = DataParallel,
    stop_request: StopRequest | None = None,
) -> None:
    """`run` among processes that have met already."""
    console = Console(processes.is_main)
    recipe = command.recipe
    choose_kernels(accelerator.device, recipe.safety.deterministic)
    processes.on_first(lambda: check_trackers(recipe.tracking))
    accumulation = accelerator.gradient_accumulation_steps
    config, skeleton = processes.together(lambda: check_encoder(recipe))
    num_blocks = find_anatomy(skeleton).num_blocks
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
    cache = PrefixCache(recipe, engine, data, plan, schedule, micro_steps, console.say)
    # Last of all that can be refused, because it moves an earlier run's files aside.
    folder, resume = Path(recipe.output_dir), recipe.checkpoint.resume
    identity = {**asdict(recipe), "data_sha256": data.digest}
    found = processes.together(
        lambda: open_run_folder(folder, identity, resume, console) if processes.is_main else None
    )
    found = processes.all_gather(found)[0]
    progression = Progression()
    if found is not None:
        engine.load(*processes.together(lambda: checkpoint.load(found, engine.like)))
        progression = Progression(**found.state["progression"])
        total = schedule.cut(progression.stops).total_steps
        console.say(f"going on from {found.folder.name}, step {progression.step} of {total}")
    watchdog = Watchdog(processes, recipe.safety.timeout_seconds, folder / STACKS)
    setup = TrainingSetup(recipe, engine, data, plan, rates, micro_steps, cache, parameters, watchdog.passing)
    stop_request = stop_request or StopRequest()
    description = describe(setup, parameters, digests)
    Execution(setup, progression, console, description, identity, stop_request, watchdog).execute()


def check_encoder(recipe: Recipe) -> tuple[PretrainedConfig, PreTrainedModel]:
    """The encoder's configuration and its skeleton, after all that can be refused before data or weights are read.

    Raises UserError for an encoder that cannot be loaded or is not understood, for `data.max_length` beyond its
    positions, for task names that torch cannot use and for selectors of blocks that it lacks.
    """
    check_task_names(recipe.tasks)
    config = load_encoder_config(recipe.model)
    skeleton = encoder_skeleton(config, recipe.model.trust_remote_code)
    check_max_length(skeleton, recipe.data.max_length)
    trainable_units(recipe, find_anatomy(skeleton).num_blocks)
    return config, skeleton


def build_plan(recipe: Recipe, data: DataBundle) -> Plan:
    """The plan over the training rows of `data`."""
    lengths = {task: source.splits["train"].lengths for task, source in data.tasks.items()}
    return Plan(
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
    keep_rows_in_use(encoder, data.vocabulary)
    sentences = SentenceTransformer(encoder, recipe.model.pooling, recipe.model.dropout)
    model = MultitaskTransformer(sentences, labels_of(data), recipe.model.dropout, recipe.seed)
    make_dropout_fast(model)
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
    keep_rows_in_use(skeleton, data.vocabulary)
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
        if phase.thawed and config.thaw_warmup_steps >= phase.steps:
            lines.append(
                f"optimizer.thaw_warmup_steps: {config.thaw_warmup_steps}, and phase {phase.name!r} has"
                f" {phase.steps} steps: what thaws there never reaches its full learning rate"
            )
    return lines
