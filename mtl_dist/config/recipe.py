"""The recipe: every key a run has, with its type, default and meaning.

The text under a field is its help: `launch/train.py --help` prints it. This module holds the schema only and imports
neither torch nor transformers, so that `--help`, `--print-config` and job submission start at once.
"""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ModelConfig:
    """The shared encoder, how a sentence vector is taken from it, and what never trains."""

    encoder: str = "roberta-base"
    """Hub id or folder of a Hugging Face encoder."""
    pooling: Literal["first_token", "mean"] = "first_token"
    """How the last hidden states become one vector: the first token's, or the mean over the attended tokens."""
    dropout: float = 0.1
    """Dropout after pooling and inside every head."""
    encoder_dropout: float | None = None
    """Dropout inside the encoder; null keeps the encoder's own."""
    freeze: list[str] = field(default_factory=list)
    """Never trained, whatever the phases say: selectors as in `phases`, e.g. [all], [backbone], [heads.sentiment]."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type of the weights; float64 is for comparing runs beyond rounding."""
    trust_remote_code: bool = False
    """Run code that comes with the encoder's folder. Leave off for folders you have not read."""


@dataclass
class TaskConfig:
    """One classification task: where its rows are, which columns to read, what it weighs."""

    path: str = "???"
    """What `datasets.load_dataset` takes: a hub id, or json, csv, parquet together with `data_files`."""
    name: str | None = None
    """The data set's configuration on the hub, e.g. `sentiment` of `tweet_eval`."""
    data_files: dict[str, str] = field(default_factory=dict)
    """Files (globs allowed) per split: train and test, and validation if `evaluation.split` asks for it."""
    text: list[str] = field(default_factory=lambda: ["text"])
    """Text column, or two columns for a sentence pair."""
    label: str = "label"
    """Label column: integers from 0, or strings."""
    labels: list[str] | None = None
    """Class names in order; null takes them from the data (the feature's own names, else the training split)."""
    weight: float = 1.0
    """Weight of this task's mean loss in the global batch's loss."""
    max_rows: int | None = None
    """Train on this many rows, drawn once and the same for every seed; null takes all."""


@dataclass
class DataConfig:
    """From text to tokens."""

    max_length: int = 128
    """Tokens kept of an example, special tokens included."""
    empty_text: Literal["error", "skip"] = "error"
    """What to do with rows whose text is empty or missing: stop, or leave them out and say how many."""
    cache_dir: str | None = None
    """Where tokenised data is kept; null is `$MTL_DIST_CACHE`, else `~/.cache/mtl_dist`."""


@dataclass
class SamplingConfig:
    """Which rows make up each global batch."""

    strategy: Literal["uniform", "proportional", "weighted"] = "uniform"
    """Share of each task in the draws: equal, by number of rows, or by `sampling.weights`."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each task for strategy `weighted`; they need not sum to 1."""
    batches: Literal["mixed", "one_task"] = "mixed"
    """Rows of all tasks in every global batch, or each global batch from one task."""
    length_window: int = 128
    """Steps over which rows are exchanged to batch like lengths together; 1 leaves the order purely random."""


@dataclass
class UntilConfig:
    """A metric that ends the phase once it improves no more; the phase's length is then the most it may take."""

    metric: str = "???"
    """<task>/<name> or, for the mean over tasks, <name>: loss (better if lower), accuracy or macro_f1 (if higher)."""
    patience: int = 3
    """End the phase after this many measurements in a row without improvement."""
    every_steps: int = 100
    """Steps between two measurements on `evaluation.split`, counted from the phase's start."""
    min_delta: float = 0.0
    """Least change that counts as improvement."""


@dataclass
class PhaseConfig:
    """A stretch of the run with one set of trainable parameters."""

    name: str = "???"
    """Unique name of the phase."""
    train: list[str] = field(default_factory=list)
    """What trains: heads, heads.<task>, blocks[i], blocks[a:b], embeddings, backbone, all."""
    epochs: float | None = None
    """Length in passes over the training rows of all tasks together; give this or `steps`."""
    steps: int | None = None
    """Length in optimizer steps; give this or `epochs`."""
    until: UntilConfig | None = None


def seed_phases() -> list[PhaseConfig]:
    """The three phases of the seed design: heads, then the upper third of twelve blocks, then everything."""
    return [
        PhaseConfig(name="heads", train=["heads"], epochs=1.0),
        PhaseConfig(name="upper", train=["heads", "blocks[-4:]"], epochs=1.0),
        PhaseConfig(name="all", train=["all"], epochs=1.0),
    ]


@dataclass
class OptimizerConfig:
    """AdamW and its rates."""

    lr: float = 2e-5
    """Learning rate of the encoder."""
    head_lr_multiplier: float = 5.0
    """The heads' learning rate, as a multiple of `lr`."""
    block_lr_decay: float = 1.0
    """Rate of each block as a fraction of the one above it; 1 gives all blocks the same."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases and normalisation weights have none."""
    beta1: float = 0.9
    """AdamW's decay rate of the first moment."""
    beta2: float = 0.999
    """AdamW's decay rate of the second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: float | None = 1.0
    """Clip the norm of the whole gradient to this; null does not clip."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How rates fall from the end of warm-up to the end of the run."""
    warmup_steps: int = 500
    """Steps over which all rates rise from 0 at the start of the run."""
    unfreeze_warmup_steps: int = 0
    """Steps over which the rate of what has just unfrozen rises from 0 at a phase's start."""
    max_nonfinite_steps: int = 5
    """After this many steps in a row without a finite gradient, each of which is skipped, go back to the weights of the
    last checkpoint, and on with the steps that follow."""
    max_rollbacks: int = 3
    """Times that the run may go back so; the next one ends it."""


@dataclass
class CacheConfig:
    """Keeping what the encoder's frozen lower part gives for a text, instead of computing it again."""

    mode: Literal["auto", "always", "never"] = "auto"
    """Keep it wherever a phase leaves the embeddings and the lowest block frozen; auto does so where it pays."""
    budget_gb: float = 2.0
    """Most GiB that a machine gives to it; what does not fit is computed each time."""
    folder: str | None = None
    """Keep it in a file of this folder, memory-mapped, and not in memory."""


@dataclass
class EvaluationConfig:
    """When and on what the model is measured: after each phase, at the end and as a phase's `until` says."""

    split: Literal["test", "validation"] = "test"
    """Split measured after each phase and for `until`; the end of the run is always measured on test too."""
    batch_size: int = 64
    """Rows in one forward of a process."""


@dataclass
class CheckpointConfig:
    """What is kept so that a stopped run can go on."""

    every_steps: int | None = None
    """Save a checkpoint after every this many steps; null goes by time alone."""
    every_minutes: float | None = 10.0
    """Save one when the last is this old. With null here and in `every_steps` none is ever saved; else one is saved at
    each phase's end as well, and when the run is asked to stop."""
    resume: Literal["auto", "never"] = "auto"
    """Go on from the newest checkpoint in `output_dir`, or start anew."""
    keep: int = 2
    """Checkpoints kept, the newest ones; the second is there in case the first gets damaged."""
    keep_best: Literal["accuracy", "macro_f1", "loss"] | None = None
    """Keep also, for each task, the checkpoint whose evaluation on `evaluation.split` is best by this figure."""
    on_error: Literal["stop", "continue"] = "stop"
    """Where the disk takes no checkpoint or no line of metrics: end the run, or say so and try again later."""


@dataclass
class SafetyConfig:
    """How soon it is noticed that processes have lost each other, and what is done to have the same run twice."""

    timeout_seconds: float = 300.0
    """End the run when processes have waited this long for one of them; one step, or one forward of an evaluation, must
    not take longer."""
    compare_every_steps: int | None = 100
    """Compare what every process should hold alike after every this many steps, and before each checkpoint; null
    compares at the start of phases alone."""
    deterministic: bool = True
    """On GPUs, take kernels that give the same bits every time, which are not the fastest: a run that goes on from a
    checkpoint then becomes what it would have become. CPUs have no other."""


@dataclass
class TrackingConfig:
    """What is written down while training."""

    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl."""
    gradient_cosine_every_steps: int | None = None
    """Steps between two samples of the cosine between tasks' gradients; null takes none. For one process or DDP."""
    wandb: bool = False
    """Also log to Weights & Biases; offline where there is no key."""
    wandb_project: str = "mtl_dist"
    """W&B project."""
    name: str | None = None
    """Name of the W&B run; null is `$WANDB_NAME`, else the name of the run folder."""
    group: str | None = None
    """Group of W&B runs that belong together; null is `$WANDB_RUN_GROUP`, else `sweep-<id>` for a run of a sweep."""
    job_type: str = "train"
    """What W&B runs of a group do, e.g. train or ablation."""
    tags: list[str] = field(default_factory=list)
    """Tags of the W&B run."""
    artifacts: Literal["none", "model", "checkpoints"] = "none"
    """What W&B also gets as artifacts: nothing, the final model, or the final model and every checkpoint."""
    misclassified: int = 100
    """Most misclassified test texts of each task in W&B's table at the end, the surest first; 0 sends none."""
    also: list[str] = field(default_factory=list)
    """Other trackers that get the same figures, through Accelerate: tensorboard, trackio."""


@dataclass
class Recipe:
    """A whole run."""

    output_dir: str = "runs/default"
    """Run folder: recipe, metrics, summary, checkpoints and the model."""
    seed: int = 42
    """Seeds everything random: row order, dropout, the heads' first weights."""
    batch_size: int = 8
    """Examples in a global batch, over all processes and micro-steps."""
    micro_batch_size: int | None = None
    """Most examples in one forward of a process; null does the process's part of the global batch at once."""
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    phases: list[PhaseConfig] = field(default_factory=seed_phases)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
