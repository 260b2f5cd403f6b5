"""The hooks that the trainer calls around the steps of a run."""

from contextlib import AbstractContextManager
from typing import Protocol

from mtl_dist.schedule.phases import Phase, Schedule
from mtl_dist.train_state import TrainState
from mtl_dist.training.step_result import StepResult


class PhaseTrainer(Protocol):
    """The part of `TransferLearningTrainer` that callbacks use."""

    @property
    def train_state(self) -> TrainState: ...
    @property
    def schedule(self) -> Schedule: ...
    @property
    def training_seconds(self) -> float: ...
    def rates_at(self, step: int) -> dict[str, float]: ...
    def is_logged(self, done: int) -> bool: ...
    def settle_last_step(self) -> None: ...
    def not_training(self) -> AbstractContextManager[None]: ...


class Callback:
    """A part of a run that acts around its steps; every hook does nothing unless overridden.

    Every rank calls all hooks of all callbacks in the same order, so a hook may communicate. The model is
    OLMo-core's `train/callbacks`.
    """

    trainer: PhaseTrainer

    def attach(self, trainer: PhaseTrainer) -> None:
        """Called once, by the trainer that calls the hooks."""
        self.trainer = trainer

    def on_train_start(self) -> None:
        """Called before the first phase, also of a resumed run."""

    def on_phase_start(self, phase: Phase) -> None:
        """Called when the units of `phase` have been unfrozen, also where a run resumes within the phase."""

    def on_step_end(self, phase: Phase, result: StepResult) -> None:
        """Called after each optimizer step; `train_state.step` counts it."""

    def on_step_boundary(self, phase: Phase) -> None:
        """Called between two steps, after every `on_step_end`, unless early stopping has just ended the phase."""

    def on_skipped_step(self, step: int) -> None:
        """Called for the first step in a row whose gradient is not finite; `step` is counted from 0."""

    def on_divergence(self) -> bool:
        """Called after too many steps in a row without a finite gradient; returns whether training can continue."""
        return False

    def on_phase_end(self, phase: Phase) -> None:
        """Called after the last step of `phase`."""
