"""Training progress: what a checkpoint stores beside model weights and optimizer state."""

from dataclasses import dataclass, field

NONDETERMINISTIC_FIELDS = ("phase_seconds", "wandb_id")
"""Fields of TrainState that differ between two otherwise identical runs."""


@dataclass
class TrainState:
    """Progress of a run, saved in every checkpoint. The field names are part of the checkpoint format."""

    step: int = 0
    """Training steps done so far."""
    nonfinite_total: int = 0
    """Steps skipped so far because the gradient was not finite."""
    nonfinite_in_row: int = 0
    """Consecutive steps just skipped because the gradient was not finite; 0 after a finite gradient."""
    rollbacks: list[list[int]] = field(default_factory=list)
    """One `[restored step, step]` pair per rollback: the step of the checkpoint whose weights were restored, and the
    step at which that happened. The updates in between are lost; the sampler does not draw their samples again."""
    evaluated: int = 0
    """Value of `step` at the last evaluation at the end of a phase."""
    wandb_id: str = ""
    """ID of the Weights & Biases run, so that a resumed run continues it; empty without W&B."""
    phase_seconds: dict[str, float] = field(default_factory=dict)
    """Training time of each phase by name, in seconds, without evaluation and checkpointing."""
    measured: dict[str, list[float]] = field(default_factory=dict)
    """Values of the metric that early stopping (`until`) monitors, by phase, in the order of the evaluations."""
    stops: dict[str, int] = field(default_factory=dict)
    """Value of `step` at the end of each phase that early stopping (`until`) ended, by phase."""
