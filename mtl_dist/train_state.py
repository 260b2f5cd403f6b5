"""How far a run has come: what a checkpoint holds beside weights and moments."""

from dataclasses import dataclass, field

NONDETERMINISTIC_FIELDS = ("phase_seconds", "wandb_id")
"""Fields of a TrainState that differ between equal runs."""


@dataclass
class TrainState:
    """What a run has done so far; a checkpoint holds it."""

    step: int = 0
    """Steps done."""
    nonfinite_total: int = 0
    """Steps skipped because the gradient was not finite."""
    nonfinite_in_row: int = 0
    """Such steps since the last finite one."""
    rollbacks: list[list[int]] = field(default_factory=list)
    """The times that the run went back to earlier weights, as [steps these had done, steps done then]. What was learnt
    between them is lost, and its samples are not drawn again."""
    evaluated: int = 0
    """Steps done when the last evaluation at a phase's end was made."""
    wandb_id: str = ""
    """Of the run at Weights & Biases, which goes on with this one; empty without."""
    phase_seconds: dict[str, float] = field(default_factory=dict)
    """Training time of each phase, evaluation and saving left out."""
    measured: dict[str, list[float]] = field(default_factory=dict)
    """What a phase's `until` has measured, by phase and in order."""
    stops: dict[str, int] = field(default_factory=dict)
    """Phases that their `until` has ended, each with the steps of the run that were done by then."""
