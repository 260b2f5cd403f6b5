"""The training loop: one step (`LayerwiseLearningRateTrainer`), and the phases (`TransferLearningTrainer`)."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mtl_dist.activation_cache.cache import Parts
from mtl_dist.device import AsyncScalar
from mtl_dist.errors import Interrupted, TrainingError
from mtl_dist.models.dropout import seed_dropout_masks
from mtl_dist.schedule.partition import partition_batch
from mtl_dist.schedule.phases import Phase, Schedule
from mtl_dist.schedule.sampler import GlobalBatch
from mtl_dist.tasks.classification import summed_loss
from mtl_dist.train_state import TrainState
from mtl_dist.training.callbacks.base import Callback
from mtl_dist.training.context import RunContext
from mtl_dist.training.gradient_cosine import TaskGradients
from mtl_dist.training.step_result import StepResult


class Stopwatch:
    """Measures time, without that spent inside `stopped`."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Leaves the time spent inside out of the measurement, also where an exception ends it."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - before


def dropout_seed(seed: int, step: int, rank: int, micro_step: int) -> int:
    """Seed of everything random inside one forward pass; 63 bits."""
    key = f"dropout/{seed}/{step}/{rank}/{micro_step}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds everything random in a forward pass on `device`.

    Not by `torch.manual_seed`, which for every kind of device that a machine lacks keeps the call and its stack.
    """
    seed_dropout_masks(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class LayerwiseLearningRateTrainer:
    """Trains one step at a time with a learning rate for each unit of the model.

    The loss of a global batch is the weighted sum over tasks of the mean over its rows that have that task's label; a
    row can count for several tasks. The counts come from the sampler, so each rank adds its share without asking the
    others, and the gradient is the same for any number of processes and any number of gradient-accumulation steps.
    """

    def __init__(self, context: RunContext, train_state: TrainState) -> None:
        self.context = context
        self.recipe = context.recipe
        self.engine = context.engine
        self.train_state = train_state
        weights = [task.weight for task in self.recipe.tasks.values()]
        self._weights = torch.tensor(weights, dtype=self.engine.dtype, device=self.engine.device)
        self._unsettled: tuple[int, AsyncScalar] | None = None
        """The last step and its gradient's norm, if it is not known yet whether that is finite."""

    @property
    def schedule(self) -> Schedule:
        """The phases with the ends that early stopping has given them, and those to come as planned."""
        return self.context.schedule_of(self.train_state)

    def rates_at(self, step: int) -> dict[str, float]:
        """Learning rate of each trainable unit at `step`."""
        return self.context.rates.at(self.schedule.planned(step))

    def training_step(self, step: int) -> StepResult:
        """Makes one optimizer step on the global batch of `step`.

        A gradient that is not finite is the same on every rank after the exchange, so that all of them skip the step.
        Raises TrainingError after `optimizer.max_nonfinite_steps` such steps in a row, if training cannot roll back.
        """
        batch = self.context.sampler.batch(step)
        parts = self._partition(batch)
        counts = batch.counts.tolist()
        present = [task for task, count in zip(self.recipe.tasks, counts, strict=True) if count]
        gradients = TaskGradients(self.engine, present) if self.compares_tasks(step + 1) else None
        losses = [self._micro_step(batch, parts, counts, micro_step, gradients) for micro_step in range(len(parts))]
        self.context.heartbeat(f"step {step + 1}: applying the gradient")
        cosines = {} if gradients is None else gradients.cosines()
        absent = [f"heads.{task}" for task in self.recipe.tasks if task not in present]
        logged = self.is_logged(step + 1)
        output = self.engine.step(self.rates_at(step), absent, with_unit_norms=logged)
        norm = AsyncScalar(output.grad_norm)
        self._settle(step, norm, at_once=logged)
        self.train_state.step = step + 1
        # Parts have their longest example first.
        computed = sum(len(part) * int(batch.lengths[part[0]]) for of_ranks in parts for part in of_ranks)
        return StepResult(batch, sum(losses[1:], losses[0]), norm, computed, output.unit_norms, cosines)

    def _partition(self, batch: GlobalBatch) -> Parts:
        world_size, most = self.context.group.world_size, self.recipe.micro_batch_size
        return partition_batch(batch.lengths, world_size, self.context.micro_steps, most)

    def is_logged(self, done: int) -> bool:
        """Returns whether the last of `done` steps is logged; the same on every rank."""
        return False

    def compares_tasks(self, done: int) -> bool:
        """Returns whether the tasks' gradients in the last of `done` steps are compared; the same on every rank."""
        every = self.recipe.tracking.gradient_cosine_every_steps
        return every is not None and done % every == 0

    def _micro_step(
        self,
        batch: GlobalBatch,
        parts: Parts,
        counts: Sequence[int],
        micro_step: int,
        gradients: TaskGradients | None,
    ) -> Tensor:
        """Forward and backward pass of this rank's rows of one micro-step; returns losses as in StepResult, detached.

        `counts` are the rows of `batch` with each task's label. `gradients`, if given, adds up each task's gradient.
        """
        context, step = self.context, batch.step
        rank = context.group.rank
        positions = parts[micro_step][rank]
        place = f"step {step + 1}, micro-step {micro_step + 1}"
        context.heartbeat(f"{place}: reading rows")
        prefix = context.cache.prefix_for_micro_step(batch, parts, micro_step)
        with_tokens = prefix is None or prefix.depth < self.engine.model.layout.num_blocks
        inputs = context.data.training_batch(batch.pool_ids[positions], batch.rows[positions], with_tokens)
        inputs = inputs.to(self.engine.device)
        context.heartbeat(f"{place}: forward and backward")
        seed_device(self.engine.device, dropout_seed(self.recipe.seed, step, rank, micro_step))
        with self.engine.accumulating(last=micro_step == context.micro_steps - 1):
            logits = self.engine.logits(inputs, prefix)
            # A task without rows here gives a zero with a graph: DDP waits for every head's gradient.
            losses = torch.stack(
                [
                    summed_loss(logits[task], inputs.labels[task]) / max(1, count)
                    for task, count in zip(self.recipe.tasks, counts, strict=True)
                ]
            )
            if gradients is not None:
                gradients.add([loss for loss, count in zip(losses, counts, strict=True) if count])
            self.engine.backward((losses * self._weights).sum())
        return losses.detach().double()

    def _settle(self, step: int, norm: AsyncScalar, at_once: bool) -> None:
        """Checks whether the gradient of `step` is finite: one step late where the device has not computed it yet.

        So the device always has queued work. The check that gives up or rolls back is made in the step itself, as on
        any device.
        """
        self.settle_last_step()
        self._unsettled = step, norm
        could_be_last = self.train_state.nonfinite_in_row + 1 >= self.recipe.optimizer.max_nonfinite_steps
        if at_once or norm.is_ready or could_be_last:
            self.settle_last_step()

    def settle_last_step(self) -> None:
        """Counts the last step as applied or skipped; called before `train_state` is saved."""
        if self._unsettled is None:
            return
        (step, norm), self._unsettled = self._unsettled, None
        if math.isfinite(norm.value):
            self.train_state.nonfinite_in_row = 0
            return
        self.train_state.nonfinite_total += 1
        self.train_state.nonfinite_in_row += 1
        if self.train_state.nonfinite_in_row >= self.recipe.optimizer.max_nonfinite_steps:
            self.give_up_or_roll_back()
        elif self.train_state.nonfinite_in_row == 1:
            self.note_skipped(step)

    def note_skipped(self, step: int) -> None:
        """Called for the first step in a row whose gradient is not finite."""

    def give_up_or_roll_back(self) -> None:
        """Called after too many steps in a row without a finite gradient."""
        raise TrainingError(
            f"the gradient was not finite in {self.train_state.nonfinite_in_row} steps in a row"
            " (optimizer.max_nonfinite_steps); lower optimizer.lr, or look at the data of these steps"
        )


class TransferLearningTrainer(LayerwiseLearningRateTrainer):
    """Trains phase by phase: unfreezes, trains, and calls its callbacks in their order."""

    def __init__(self, context: RunContext, train_state: TrainState, callbacks: Sequence[Callback]) -> None:
        super().__init__(context, train_state)
        self._callbacks = callbacks
        self._clock: Stopwatch | None = None
        self._clock_phase, self._earlier_seconds = "", 0.0
        for callback in callbacks:
            callback.attach(self)

    @property
    def training_seconds(self) -> float:
        """Training time of the phase in this process, without evaluation and saving."""
        return 0.0 if self._clock is None else self._clock.seconds

    def fit(self) -> None:
        """Trains from the step at which `train_state` stands to the end of the last phase."""
        try:
            for callback in self._callbacks:
                callback.on_train_start()
            while self.train_state.step < self.schedule.total_steps:
                phase = self.schedule.phase_at(self.train_state.step)
                self.engine.enter_phase(phase.name, phase.units)
                self.engine.train_mode()
                self.context.cache.enter_phase(phase, self.train_state)
                self._train_phase(phase)
                for callback in self._callbacks:
                    callback.on_phase_end(phase)
        except Interrupted:
            self.settle_last_step()
            raise

    def _train_phase(self, phase: Phase) -> None:
        for callback in self._callbacks:
            callback.on_phase_start(phase)
        with self._timed(phase.name):
            while self.train_state.step < phase.stop and not self._ended_early(phase):
                result = self.training_step(self.train_state.step)
                for callback in self._callbacks:
                    callback.on_step_end(phase, result)
                if self._ended_early(phase):
                    return
                for callback in self._callbacks:
                    callback.on_step_boundary(phase)

    def _ended_early(self, phase: Phase) -> bool:
        return phase.name in self.train_state.stops

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        """Adds the training time inside to that of `phase`."""
        self._clock_phase, self._earlier_seconds = phase, self.train_state.phase_seconds.get(phase, 0.0)
        self._clock = Stopwatch()
        try:
            yield
        finally:
            self._note_seconds()
            self._clock = None

    def _note_seconds(self) -> None:
        self.train_state.phase_seconds[self._clock_phase] = self._earlier_seconds + self.training_seconds

    @contextmanager
    def not_training(self) -> Iterator[None]:
        """Leaves evaluation and saving, which run inside, out of the training time."""
        if self._clock is None:
            yield
            return
        self._note_seconds()
        with self._clock.stopped():
            yield

    def is_logged(self, done: int) -> bool:
        phase = self.schedule.phase_at(done - 1)
        wanted = done % self.recipe.tracking.log_every_steps == 0 or self.compares_tasks(done)
        return wanted or done == phase.stop or phase.measures_after(done)

    def note_skipped(self, step: int) -> None:
        for callback in self._callbacks:
            callback.on_skipped_step(step)

    def give_up_or_roll_back(self) -> None:
        if not any(callback.on_divergence() for callback in self._callbacks):
            super().give_up_or_roll_back()
