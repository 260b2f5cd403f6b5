"""The schema of a recipe: every key with its type, default, allowed values and description.

The string under a field is its description in `launch/train.py --help` and in the JSON schema. Constructing a section
with a value that its own rules exclude raises pydantic's ValidationError; rules that involve several sections are in
`validation`. Imports neither torch nor transformers, so that `--help`, `--print-config` and job submission start at
once.
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from mtl_dist.config.data_recipe import DataConfig, SourceConfig, TaskConfig
from mtl_dist.config.metric_names import SIGNS, task_and_name
from mtl_dist.config.section import (
    Allowed,
    Count,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    RequiredText,
    Section,
    Strings,
    refuse_repeated,
)
from mtl_dist.config.selectors import GRAMMAR
from mtl_dist.errors import did_you_mean

RENAMED_KEYS = {"optimizer.thaw_warmup_steps": "optimizer.unfreeze_warmup_steps"}
"""Keys of earlier versions -> their present names, which the error message for the old key suggests."""
TRACKERS = ("tensorboard", "trackio")
"""Names that `tracking.also` accepts, as Accelerate spells them."""


class ModelConfig(Section):
    """The shared encoder, the pooling of its output to a sentence vector, and what stays frozen throughout."""

    encoder: str = "roberta-base"
    """Hub id or folder of a Hugging Face encoder."""
    pooling: Literal["first_token", "mean"] = "first_token"
    """How the last hidden states become one vector: the first token's, or the mean over the attended tokens."""
    dropout: Fraction = 0.1
    """Dropout after pooling and inside every head."""
    encoder_dropout: Fraction | None = None
    """Dropout inside the encoder; null keeps the encoder's own."""
    freeze: Strings = Field(default_factory=list)
    """Frozen in every phase: selectors as in `phases`, e.g. [all], [backbone], [heads.sentiment]."""
    dtype: Literal["float32", "float64"] = "float32"
    """Data type of the weights; float64 is for comparing runs without float32 rounding."""
    trust_remote_code: bool = False
    """Run code that comes with the encoder's folder. Leave off for folders you have not read."""


class SamplingConfig(Section):
    """Which rows make up each global batch."""

    strategy: Literal["uniform", "proportional", "weighted"] = "uniform"
    """Share of each task, or each source whose tasks share rows, in the sampled rows: equal, by number of rows, or by
    `sampling.weights`."""
    weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Share of each task for strategy `weighted`, equal for tasks that share rows; they need not sum to 1."""
    rows: Literal["shared", "per_task"] = "shared"
    """Draw a row of a source once for all tasks that use it, or for each task separately. With `shared`, tasks of one
    source have one share, and a row counts for those tasks whose label it has."""
    batches: Literal["mixed", "one_task"] = "mixed"
    """Rows of all tasks in every global batch, or each global batch from one task, or one source whose tasks share
    rows."""
    length_window: Count = 128
    """Steps within which rows are exchanged to batch similar lengths together; 1 leaves the order purely random."""

    @field_validator("weights")
    @classmethod
    def _only_for_weighted(cls, weights: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        strategy = info.data.get("strategy", "weighted")  # absent where the strategy itself is not valid
        if weights and strategy != "weighted":
            raise ValueError(f"strategy {strategy} has none; set sampling.strategy: weighted")
        return weights


class UntilConfig(Section):
    """A metric that ends the phase once it stops improving; the phase's length is then the most it may take."""

    metric: RequiredText
    """<task>/<name> or, for the mean over tasks, <name>: loss (better if lower), accuracy or macro_f1 (if higher)."""
    patience: Count = 3
    """End the phase after this many measurements in a row without improvement."""
    every_steps: Count = 100
    """Steps between two measurements on `evaluation.split`, counted from the phase's start."""
    min_delta: NonNegativeFloat = 0.0
    """Smallest change that counts as an improvement."""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, metric: str) -> str:
        _, name = task_and_name(metric)
        if name not in SIGNS:
            raise ValueError(f"no metric {name!r}{did_you_mean(name, SIGNS)}")
        return metric


class PhaseConfig(Section):
    """A range of consecutive steps with one set of trainable parameters."""

    name: RequiredText
    """Unique name of the phase."""
    train: Strings = Field(default_factory=list)
    """What trains: heads, heads.<task>, blocks[i], blocks[a:b], embeddings, backbone, all."""
    epochs: PositiveFloat | None = None
    """Length in passes over the training rows of all sources together; give this or `steps`. On the command line, each
    replaces the other."""
    steps: Count | None = None
    """Length in optimizer steps; give this or `epochs`."""
    until: UntilConfig | None = None

    @field_validator("train")
    @classmethod
    def _something_trains(cls, train: list[str]) -> list[str]:
        if not train:
            raise ValueError(f"empty; name what trains: {GRAMMAR}")
        return train

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


def default_phases() -> list[PhaseConfig]:
    """The three phases of the seed design: heads, then the upper third of twelve blocks, then everything."""
    return [
        PhaseConfig(name="heads", train=["heads"], epochs=1.0),
        PhaseConfig(name="upper", train=["heads", "blocks[-4:]"], epochs=1.0),
        PhaseConfig(name="all", train=["all"], epochs=1.0),
    ]


class OptimizerConfig(Section):
    """AdamW and its learning rate schedule."""

    lr: PositiveFloat = 2e-5
    """Learning rate of the encoder."""
    head_lr_multiplier: PositiveFloat = 5.0
    """The heads' learning rate, as a multiple of `lr`."""
    block_lr_decay: Annotated[float, Field(gt=0, le=1), Allowed("above 0 and at most 1")] = 1.0
    """Learning rate of each block as a fraction of that of the block above it; 1 gives all blocks the same."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay of matrices; biases and normalisation weights have none."""
    beta1: Fraction = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: Fraction = 0.999
    """AdamW's decay rate of the second moment."""
    eps: PositiveFloat = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Clip the norm of the whole gradient to this; null does not clip."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rates fall from the end of warm-up to the end of the run."""
    warmup_steps: NonNegativeInt = 500
    """Steps over which all learning rates rise from 0 at the start of the run."""
    unfreeze_warmup_steps: NonNegativeInt = 0
    """Steps over which the learning rate of newly unfrozen parameters rises from 0 at the start of a phase."""
    max_nonfinite_steps: Count = 5
    """A step whose gradient is not finite is skipped. After this many such steps in a row the weights and the optimizer
    state of the last checkpoint are loaded and training continues with the next step."""
    max_rollbacks: NonNegativeInt = 3
    """Most rollbacks to a checkpoint for this reason; where one more would be needed, the run ends with an error."""


class CacheConfig(Section):
    """Activation cache: outputs of the frozen lower layers, stored per text instead of being recomputed."""

    mode: Literal["auto", "always", "never"] = "auto"
    """Use the cache wherever a phase leaves the embeddings and the lowest block frozen; auto only where it saves
    time."""
    budget_gb: PositiveFloat = 2.0
    """Memory limit in GiB per machine; activations beyond it are recomputed each time."""
    folder: str | None = None
    """Store the activations in a memory-mapped file in this folder instead of in memory."""


class EvaluationConfig(Section):
    """When and on which split the model is evaluated: after each phase, at the end and as a phase's `until` says."""

    split: Literal["test", "validation"] | None = None
    """Split measured after each phase and for `until`; null takes validation where there is one, else test. The end of
    the run is always measured on test too."""
    batch_size: Count = 64
    """Rows per forward pass of a process."""


class CheckpointConfig(Section):
    """When checkpoints are saved, which of them are kept, and whether a stopped run resumes from them."""

    every_steps: Count | None = None
    """Save a checkpoint each time this many steps are done; null saves by time alone."""
    every_minutes: PositiveFloat | None = 10.0
    """Save a checkpoint when the last one is this old. If both this and `every_steps` are null, none is ever saved;
    otherwise one is also saved at the end of each phase and when the run is asked to stop."""
    resume: Literal["auto", "never"] = "auto"
    """Resume from the newest checkpoint in `output_dir`, or start from the beginning."""
    keep: Count = 2
    """Number of checkpoints kept, the newest ones; the second is a fallback in case the first is corrupt."""
    keep_best: Literal["accuracy", "macro_f1", "loss"] | None = None
    """Also keep, for each task, the checkpoint whose evaluation on `evaluation.split` is best by this metric."""
    on_error: Literal["stop", "continue"] = "stop"
    """When a checkpoint or a line of metrics cannot be written to disk: end the run, or warn and try again later."""


class SafetyConfig(Section):
    """How soon a lost process or a difference between processes is noticed, and how reproducible runs are."""

    timeout_seconds: Annotated[float, Field(ge=1), Allowed("at least 1")] = 300.0
    """End the run when processes have waited this long for one of them; one step, or one forward pass of an evaluation,
    must not take longer."""
    compare_every_steps: Count | None = 100
    """Compare what must be equal in every process each time this many steps are done, and before each checkpoint; null
    compares only at the start of each phase."""
    deterministic: bool = True
    """On GPUs, use deterministic kernels, which are not the fastest: a run that resumes from a checkpoint then gives
    the same result as one that was never interrupted. On CPUs all kernels are deterministic."""


class TrackingConfig(Section):
    """What is logged during training, and where to."""

    log_every_steps: Count = 10
    """Steps between two lines of metrics.jsonl."""
    gradient_cosine_every_steps: Count | None = None
    """Steps between two samples of the cosine between tasks' gradients; null takes none. For one process or DDP."""
    wandb: bool = False
    """Also log to Weights & Biases; offline if there is no API key."""
    wandb_project: str = "mtl_dist"
    """W&B project."""
    name: str | None = None
    """Name of the W&B run; null is `$WANDB_NAME`, else the name of the run folder."""
    group: str | None = None
    """Group of W&B runs that belong together; null is `$WANDB_RUN_GROUP`, else `sweep-<id>` for a run of a sweep."""
    job_type: str = "train"
    """Kind of W&B run within its group, e.g. train or ablation."""
    tags: Strings = Field(default_factory=list)
    """Tags of the W&B run."""
    artifacts: Literal["none", "model", "checkpoints"] = "none"
    """What is uploaded to W&B as artifacts: nothing, the final model, or the final model and every checkpoint."""
    misclassified: NonNegativeInt = 100
    """Most misclassified test texts per task in W&B's table at the end, most confident first; 0 logs none."""
    also: Strings = Field(default_factory=list)
    """Other trackers that receive the same metrics, through Accelerate: tensorboard, trackio."""

    @field_validator("also")
    @classmethod
    def _known_trackers(cls, also: list[str]) -> list[str]:
        for name in also:
            if name == "wandb":
                raise ValueError("wandb has a key of its own; set tracking.wandb: true")
            if name not in TRACKERS:
                raise ValueError(f"no tracker {name!r}{did_you_mean(name, TRACKERS)}")
        return refuse_repeated(also)


def _not_empty(folder: str) -> str:
    if not folder:
        raise ValueError("empty; name a folder")
    return folder


class Recipe(Section):
    """A complete training run."""

    output_dir: Annotated[str, AfterValidator(_not_empty)] = "runs/default"
    """Run folder: recipe, metrics, summary, checkpoints and the model."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Allowed("at least 0 and below 2**63")] = 42
    """Seed of everything random: row order, dropout, the heads' initial weights."""
    batch_size: Count = 8
    """Examples in a global batch, over all processes and micro-steps."""
    micro_batch_size: Count | None = None
    """Most examples in one forward pass of a process; null computes the process's part of the global batch at once."""
    model: ModelConfig = Field(default_factory=ModelConfig)
    sources: dict[str, SourceConfig] = Field(default_factory=dict)
    tasks: dict[str, TaskConfig] = Field(default_factory=dict)
    data: DataConfig = Field(default_factory=DataConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    phases: list[PhaseConfig] = Field(default_factory=default_phases)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    cache: CacheConfig = Field(default_factory=CacheConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    safety: SafetyConfig = Field(default_factory=SafetyConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
