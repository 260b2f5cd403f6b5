"""The parts of a run, built from its recipe; what can be refused is refused before a weight is touched."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from accelerate import Accelerator
from transformers import PretrainedConfig, PreTrainedModel

from mtl_dist.activation_cache.cache import ActivationCache
from mtl_dist.config.load import resolved_yaml
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import DataBundle, RowPool, prepare
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.engines.factory import EngineClass
from mtl_dist.models.attention import use_fast_attention
from mtl_dist.models.dropout import use_fast_dropout
from mtl_dist.models.encoder import (
    check_max_length,
    encoder_skeleton,
    find_encoder_layout,
    load_encoder,
    load_encoder_config,
)
from mtl_dist.models.limits import limits_of
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer, check_task_names
from mtl_dist.models.vocab_trimming import trim_vocabulary, trimmed_size
from mtl_dist.schedule.early_stopping import earliest_stop
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.partition import micro_steps_for
from mtl_dist.schedule.phases import Schedule, compile_schedule, trainable_units
from mtl_dist.schedule.plan_table import PoolSize, plan_table
from mtl_dist.schedule.sampler import Pool, TaskBalancedSampler, pool_shares
from mtl_dist.training.context import RunContext
from mtl_dist.training.device_check import check_model_on_device
from mtl_dist.training.evaluation_split import check_measured_tasks, evaluation_split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPlan:
    """Everything that is decided before weights are loaded: data, samples, phases and learning rates."""

    recipe: Recipe
    encoder_config: PretrainedConfig
    data: DataBundle
    sampler: TaskBalancedSampler
    rates: LearningRates
    micro_steps: int
    """Forward and backward passes of a process per optimizer step."""
    unit_sizes: dict[str, int]
    """Trainable parameters of each unit."""
    evaluation_split: str
    """Split that is measured within the run; see `training.evaluation_split`."""

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of what the run is made of; equal on every rank."""
        return {
            "recipe": hashlib.sha256(resolved_yaml(self.recipe).encode()).hexdigest(),
            "data": self.data.digest,
            "plan": self.sampler.digest,
            "schedule": self.rates.schedule.digest,
        }

    def table(self) -> str:
        """The phases as a table; see `plan_table`."""
        pools = {
            pool.name: PoolSize(pool.size, {task: self.data.tasks[task].rows("train") for task in pool.tasks})
            for pool in self.data.pools
        }
        return plan_table(self.rates, self.sampler, pools, self.unit_sizes)


def plan_run(recipe: Recipe, group: ProcessGroup, accumulation: int) -> RunPlan:
    """Checks the encoder, prepares the data and compiles the phases. Every rank calls this.

    `accumulation` is the number of gradient-accumulation steps that the launcher asks for. Raises UserError, the same
    on every rank, for what the run cannot be made from.
    """
    with group.raise_together():
        config, skeleton = check_encoder(recipe)
        num_blocks = find_encoder_layout(skeleton).num_blocks
    with group.raise_together():
        micro_steps = micro_steps_for(recipe.batch_size, group.world_size, recipe.micro_batch_size, accumulation)
    data = prepare(recipe, group, limits_of(skeleton))
    with group.raise_together():
        split = evaluation_split(recipe, data)
        unmeasured = check_measured_tasks(recipe, data, split)
        schedule = compile_schedule(recipe, num_blocks, sum(pool.size for pool in data.pools))
    for line in [*data.warnings, *unmeasured, *warnings_of(recipe, schedule)]:
        logger.warning("%s", line)
    with group.raise_together():
        sizes = unit_sizes(recipe, skeleton, data)
    rates = LearningRates(recipe.optimizer, schedule, num_blocks)
    return RunPlan(recipe, config, data, build_sampler(recipe, data), rates, micro_steps, sizes, split)


def build_context(
    plan: RunPlan,
    accelerator: Accelerator,
    group: ProcessGroup,
    engine_class: EngineClass,
    heartbeat: Callable[[str], None],
) -> RunContext:
    """Loads the model, tries it out on the device and wraps it in its engine. Every rank calls this.

    Raises UserError, the same on every rank, where weights cannot be loaded or the device cannot compute the model.
    """
    recipe = plan.recipe
    with group.raise_together():
        model = build_model(recipe, plan.encoder_config, plan.data)
    logger.info("%s", vocabulary_line(model))
    with group.raise_together():
        check_model_on_device(accelerator, model)
    engine = engine_class(accelerator, group, model, recipe.optimizer)
    schedule = plan.rates.schedule
    cache = ActivationCache(recipe, engine, plan.data, plan.sampler, schedule, plan.micro_steps)
    return RunContext(
        recipe,
        group,
        engine,
        plan.data,
        plan.sampler,
        plan.rates,
        plan.micro_steps,
        cache,
        plan.unit_sizes,
        plan.evaluation_split,
        plan.digests,
        heartbeat,
    )


def check_encoder(recipe: Recipe) -> tuple[PretrainedConfig, PreTrainedModel]:
    """Returns the encoder's configuration and its skeleton, checked before data or weights are read.

    Raises UserError for an encoder that cannot be loaded or whose layout is not understood, for `data.max_length`
    beyond its positions, for task names that torch cannot use and for selectors of blocks that it lacks.
    """
    check_task_names(recipe.tasks)
    config = load_encoder_config(recipe.model)
    skeleton = encoder_skeleton(config, recipe.model.trust_remote_code)
    check_max_length(skeleton, recipe.data.max_length)
    trainable_units(recipe, find_encoder_layout(skeleton).num_blocks)
    return config, skeleton


def build_sampler(recipe: Recipe, data: DataBundle) -> TaskBalancedSampler:
    """The sampler over the training rows of `data`."""
    sizes = {pool.name: pool.size for pool in data.pools}
    return TaskBalancedSampler(
        [_sampled(pool, data) for pool in data.pools],
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        shares=pool_shares(recipe.sampling, sizes, {pool.name: pool.tasks for pool in data.pools}),
        batches=recipe.sampling.batches,
        length_window=recipe.sampling.length_window,
    )


def _sampled(pool: RowPool, data: DataBundle) -> Pool:
    """The arrays of a pool that the sampler reads: labels only of tasks that some of its rows have no label for."""
    train, tasks = pool.examples.splits["train"], list(data.tasks)
    labels = {
        tasks.index(task): None if data.tasks[task].rows("train") == pool.size else train.labels[task]
        for task in pool.tasks
    }
    return Pool(pool.name, train.lengths, labels, pool.rows)


def build_model(recipe: Recipe, config: PretrainedConfig, data: DataBundle) -> MultitaskTransformer:
    """The pretrained encoder with new heads. Raises UserError where its weights cannot be loaded."""
    encoder = load_encoder(recipe.model, config)
    trim_vocabulary(encoder, data.vocabulary)
    sentences = SentenceTransformer(encoder, recipe.model.pooling, recipe.model.dropout)
    model = MultitaskTransformer(sentences, labels_of(data), recipe.model.dropout, recipe.seed)
    use_fast_dropout(model)
    use_fast_attention(encoder)
    return model


def vocabulary_line(model: MultitaskTransformer) -> str:
    """A line on the share of the token embeddings that is trained."""
    in_use = trimmed_size(model.sentence_transformer.encoder)
    if in_use is None:
        return "token vectors: all train, for the encoder has a table or code of its own"
    return "token vectors: {} of {} are in use; the others take no part in training".format(*in_use)


def unit_sizes(recipe: Recipe, skeleton: PreTrainedModel, data: DataBundle) -> dict[str, int]:
    """Number of trainable parameters of each unit, without loading a weight.

    Trims the token embeddings of `skeleton` to those that `data` uses, as `build_model` does with its encoder.
    """
    trim_vocabulary(skeleton, data.vocabulary)
    model = MultitaskTransformer(SentenceTransformer(skeleton, recipe.model.pooling), labels_of(data))
    parameters = dict(model.named_parameters())
    return {unit: sum(parameters[name].numel() for name in names) for unit, names in model.unit_parameters().items()}


def labels_of(data: DataBundle) -> dict[str, tuple[str, ...]]:
    """Class names of each task, in order."""
    return {task: source.labels for task, source in data.tasks.items()}


def warnings_of(recipe: Recipe, schedule: Schedule) -> list[str]:
    """Lines about settings that are allowed and yet hardly intended."""
    lines = []
    config = recipe.optimizer
    if schedule.phases and config.warmup_steps >= schedule.total_steps:
        lines.append(
            f"optimizer.warmup_steps: {config.warmup_steps}, and the run has {schedule.total_steps} steps:"
            " the full learning rate is never reached"
        )
    for index, phase in enumerate(schedule.phases):
        if phase.until is not None and earliest_stop(phase.until) >= phase.steps:
            lines.append(
                f"phases[{index}].until: ends a phase after {earliest_stop(phase.until)} steps or more, and phase"
                f" {phase.name!r} has {phase.steps}: it is never cut short"
            )
        if phase.unfrozen and config.unfreeze_warmup_steps >= phase.steps:
            lines.append(
                f"optimizer.unfreeze_warmup_steps: {config.unfreeze_warmup_steps}, and phase {phase.name!r} has"
                f" {phase.steps} steps: what is unfrozen there never reaches its full learning rate"
            )
    return lines
