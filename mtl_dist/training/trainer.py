"""The loop: one step at a time (`LayerwiseLearningRateTrainer`), phase by phase (`TransferLearningTrainer`)."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mtl_dist.activation_cache.cache import ActivationCache, Parts
from mtl_dist.config.recipe import Recipe
from mtl_dist.data.dataset import DataBundle
from mtl_dist.device import AsyncScalar
from mtl_dist.engines.base import Engine
from mtl_dist.errors import Interrupted, TrainingError
from mtl_dist.models.dropout import seed_dropout_masks
from mtl_dist.schedule.learning_rates import LearningRates
from mtl_dist.schedule.partition import partition_batch
from mtl_dist.schedule.phases import Phase, Schedule
from mtl_dist.schedule.sampler import GlobalBatch, TaskBalancedSampler
from mtl_dist.tracking.console import Progress
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.train_state import TrainState
from mtl_dist.training.gradient_cosine import TaskGradients
from mtl_dist.training.throughput import Throughput, memory_figures


@dataclass(frozen=True)
class TrainingSetup:
    """The parts of a run that training needs, put together before its first step."""

    recipe: Recipe
    engine: Engine
    data: DataBundle
    plan: TaskBalancedSampler
    rates: LearningRates
    micro_steps: int
    """Forward and backward passes of a process per optimizer step."""
    cache: ActivationCache
    unit_sizes: Mapping[str, int]
    """Parameters of each unit."""
    heartbeat: Callable[[str], None] = lambda place: None
    """Told the places that every rank comes by in a step, in the same order; see `watchdog`."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step leaves for the log."""

    batch: GlobalBatch
    losses: Tensor
    """This rank's part of each task's mean loss over the global batch, [num_tasks], in the recipe's order."""
    norm: AsyncScalar
    """Norm of the whole gradient before clipping."""
    computed: int
    """Tokens that all ranks have computed, padding counted."""
    unit_norms: Mapping[str, float] = field(default_factory=dict)
    """As `gradient_norm`, of each unit, where the step was looked at closely."""
    cosines: Mapping[str, float] = field(default_factory=dict)
    """Between the tasks' gradients, by `<task>/<other>`, where they were compared."""

    @property
    def gradient_norm(self) -> float:
        """`norm`, waited for."""
        return self.norm.value


class Stopwatch:
    """Time that is spent training."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Around what is not training."""
        before = time.monotonic()
        yield
        self._started += time.monotonic() - before


def dropout_seed(seed: int, step: int, rank: int, micro_step: int) -> int:
    """Seed of everything random inside one forward; 63 bits."""
    key = f"dropout/{seed}/{step}/{rank}/{micro_step}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds all that is random in a forward.

    Not by `torch.manual_seed`, which for every kind of device that a machine lacks keeps the call and its stack.
    """
    seed_dropout_masks(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class LayerwiseLearningRateTrainer:
    """Trains one step at a time with a learning rate for each unit of the model.

    The loss of a global batch is the weighted sum over tasks of the mean over that task's examples in it. The counts
    come from the plan, so each rank adds its part without asking the others, and the gradient is the same for any
    number of processes and micro-steps.
    """

    def __init__(self, setup: TrainingSetup, train_state: TrainState) -> None:
        self.recipe = setup.recipe
        self.engine = setup.engine
        self.data = setup.data
        self.plan = setup.plan
        self.rates = setup.rates
        self.micro_steps = setup.micro_steps
        self.cache = setup.cache
        self.unit_sizes = setup.unit_sizes
        self.heartbeat = setup.heartbeat
        self.train_state = train_state
        weights = [task.weight for task in self.recipe.tasks.values()]
        self._weights = torch.tensor(weights, dtype=self.engine.dtype, device=self.engine.device)
        self._unread: tuple[int, AsyncScalar] | None = None
        """The last step, and its gradient's norm, if nobody has looked whether that is finite."""

    @property
    def schedule(self) -> Schedule:
        """The phases with the ends that they have had, and those to come as planned."""
        return self.rates.schedule.with_early_stops(self.train_state.stops)

    def rates_at(self, step: int) -> dict[str, float]:
        """Learning rate of each trainable unit at `step`."""
        return self.rates.at(self.schedule.planned(step))

    def training_step(self, step: int) -> StepResult:
        """One optimizer step on the global batch of `step`.

        A gradient that is not finite is the same on every rank after the exchange, so that all of them skip the step.
        Raises TrainingError after `optimizer.max_nonfinite_steps` such steps in a row, if there is no way back.
        """
        batch = self.plan.batch(step)
        parts = partition_batch(
            batch.lengths, self.engine.processes.world_size, self.micro_steps, self.recipe.micro_batch_size
        )
        counts = batch.counts.tolist()
        present = [task for task, count in zip(self.recipe.tasks, counts, strict=True) if count]
        gradients = TaskGradients(self.engine, present) if self.compares_tasks(step + 1) else None
        losses = [self._micro_step(batch, parts, counts, micro_step, gradients) for micro_step in range(len(parts))]
        self.heartbeat(f"step {step + 1}: applying the gradient")
        cosines = {} if gradients is None else gradients.cosines()
        absent = [f"heads.{task}" for task in self.recipe.tasks if task not in present]
        with_unit_norms = self.is_logged(step + 1)
        output = self.engine.step(self.rates_at(step), absent, with_unit_norms)
        norm = AsyncScalar(output.grad_norm)
        self._look_at(step, norm, at_once=with_unit_norms)
        self.train_state.step = step + 1
        # Parts have their longest example first.
        computed = sum(len(part) * int(batch.lengths[part[0]]) for of_ranks in parts for part in of_ranks)
        return StepResult(batch, sum(losses[1:], losses[0]), norm, computed, output.unit_norms, cosines)

    def is_logged(self, done: int) -> bool:
        """Whether the last of `done` steps is written down. The same on every rank."""
        return False

    def compares_tasks(self, done: int) -> bool:
        """Whether the tasks' gradients in the last of `done` steps are compared. The same on every rank."""
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
        """Forward and backward of this rank's rows of one micro-step; returns losses as in StepResult, detached.

        `counts`: as those of `batch`. `gradients` takes in those of each task, if any does.
        """
        rank, step = self.engine.processes.rank, batch.step
        positions = parts[micro_step][rank]
        place = f"step {step + 1}, micro-step {micro_step + 1}"
        self.heartbeat(f"{place}: reading rows")
        prefix = self.cache.prefix_for_micro_step(batch, parts, micro_step)
        with_tokens = prefix is None or prefix.depth < self.engine.model.layout.num_blocks
        inputs = self.data.batch("train", batch.task_ids[positions], batch.rows[positions], with_tokens)
        inputs = inputs.to(self.engine.device)
        self.heartbeat(f"{place}: forward and backward")
        seed_device(self.engine.device, dropout_seed(self.recipe.seed, step, rank, micro_step))
        with self.engine.accumulating(last=micro_step == self.micro_steps - 1):
            logits = self.engine.logits(inputs, prefix)
            # A task without rows here gives a zero with a graph: DDP waits for every head's gradient.
            losses = torch.stack(
                [
                    cross_entropy(logits[task], inputs.labels[task], reduction="sum") / max(1, count)
                    for task, count in zip(self.recipe.tasks, counts, strict=True)
                ]
            )
            if gradients is not None:
                gradients.add([loss for loss, count in zip(losses, counts, strict=True) if count])
            self.engine.backward((losses * self._weights).sum())
        return losses.detach().double()

    def _look_at(self, step: int, norm: AsyncScalar, at_once: bool) -> None:
        """Looks whether the gradient of `step` is finite: one step late where the device has not made it yet.

        So the device always has a step to go on with. What gives up or goes back does so in the step itself, as on
        any device.
        """
        self.look_at_unread()
        self._unread = step, norm
        could_be_last = self.train_state.nonfinite_in_row + 1 >= self.recipe.optimizer.max_nonfinite_steps
        if at_once or norm.is_ready or could_be_last:
            self.look_at_unread()

    def look_at_unread(self) -> None:
        """Counts the last step as skipped or not. To be called before `train_state` is kept."""
        if self._unread is None:
            return
        (step, norm), self._unread = self._unread, None
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
        """Told the first step of a row whose gradient is not finite."""

    def give_up_or_roll_back(self) -> None:
        """What to do after too many steps in a row without a finite gradient."""
        raise TrainingError(
            f"the gradient was not finite in {self.train_state.nonfinite_in_row} steps in a row"
            " (optimizer.max_nonfinite_steps); lower optimizer.lr, or look at the data of these steps"
        )


class Hooks(Protocol):
    """What happens around the steps of a run. Every rank calls these, in the same order."""

    def evaluate(self, phase: Phase) -> object:
        """Measures at the end of `phase`."""

    def should_stop(self, phase: Phase) -> bool:
        """Measures for the `until` of `phase` and says, the same on every rank, whether the phase ends."""

    def save(self) -> None:
        """Saves a checkpoint, if the run keeps any."""

    def roll_back(self) -> bool:
        """Goes back to the weights of the last checkpoint; False if there is none, or it has done so too often."""

    def should_save(self) -> bool:
        """Whether it is time to save. Raises Interrupted, on every rank, where the run is asked to stop."""


class TransferLearningTrainer(LayerwiseLearningRateTrainer):
    """Runs the phases of a schedule: thaw, train, evaluate, save."""

    def __init__(
        self,
        setup: TrainingSetup,
        train_state: TrainState,
        tracker: Tracker,
        progress: Progress,
        hooks: Hooks,
    ) -> None:
        super().__init__(setup, train_state)
        self.tracker = tracker
        self.progress = progress
        self.hooks = hooks

    def train(self) -> None:
        """Trains from the step that `train_state` stands at to the end of the last phase.

        Evaluates after each phase that another follows and that no `until` has ended, and saves after that.
        """
        try:
            self._train_phases()
        except Interrupted:
            self.look_at_unread()
            raise

    def _train_phases(self) -> None:
        self._evaluate_if_due()
        while self.train_state.step < self.schedule.total_steps:
            phase = self.schedule.phase_at(self.train_state.step)
            self.engine.enter_phase(phase.name, phase.units)
            self.engine.train_mode()
            self.cache.enter_phase(phase, self.train_state)
            self._train_phase(phase)
            self._evaluate_if_due()
            self.hooks.save()

    def _evaluate_if_due(self) -> None:
        """A run that was stopped between the last step of a phase and its evaluation goes on with that."""
        step = self.train_state.step
        ended = next((phase for phase in self.schedule.phases[:-1] if phase.stop == step), None)
        if ended is not None and ended.name not in self.train_state.stops and self.train_state.evaluated != step:
            self.hooks.evaluate(ended)
            self.train_state.evaluated = step

    def _train_phase(self, phase: Phase) -> None:
        seconds = self.train_state.phase_seconds
        # A run that was stopped between a step and its measurement goes on with that.
        owed = phase.measurements_by(self.train_state.step) > len(self.train_state.measured.get(phase.name, ()))
        if owed and self._ends_early(phase):
            return
        before = seconds.get(phase.name, 0.0)
        watch, throughput = Stopwatch(), Throughput(self.cache)
        for step in range(self.train_state.step, phase.stop):
            result = self.training_step(step)
            done = step + 1
            throughput.count(int(result.batch.lengths.sum()), result.computed)
            logged = self.is_logged(done)
            loss = self._log(phase, result, throughput.figures(watch.seconds)) if logged else None
            seconds[phase.name] = before + watch.seconds
            with watch.stopped():
                ends = self._ends_early(phase)
            self.progress.advance(done, self.schedule.total_steps, phase.name, loss)
            if ends:
                return
            self._compare_and_save(phase, watch)

    def is_logged(self, done: int) -> bool:
        phase = self.schedule.phase_at(done - 1)
        asked = done % self.recipe.tracking.log_every_steps == 0 or self.compares_tasks(done)
        return asked or done == phase.stop or phase.measures_after(done)

    def _ends_early(self, phase: Phase) -> bool:
        """Measures where `until` asks for it, and says whether that ends the phase."""
        done = self.train_state.step
        if phase.measures_after(done) and self.hooks.should_stop(phase):
            self.train_state.stops[phase.name] = done
        return phase.name in self.train_state.stops

    def _compare_and_save(self, phase: Phase, watch: Stopwatch) -> None:
        """After a step, and after a measurement of it, so that a run that goes on from here does not repeat that."""
        done = self.train_state.step
        compare_every, save_every = self.recipe.safety.compare_every_steps, self.recipe.checkpoint.every_steps
        if compare_every and done % compare_every == 0:
            self.engine.check_replicas(f"after step {done}")
        save = self.hooks.should_save()
        if done < phase.stop and (save or (save_every and done % save_every == 0)):
            self.look_at_unread()
            with watch.stopped():
                self.hooks.save()

    def note_skipped(self, step: int) -> None:
        phase = self.schedule.phase_at(step)
        self.tracker.alert("Gradient not finite", f"step {step + 1}, phase {phase.name}: skipped", step + 1)

    def give_up_or_roll_back(self) -> None:
        if not self.hooks.roll_back():
            super().give_up_or_roll_back()

    def _log(self, phase: Phase, result: StepResult, figures: Mapping[str, float]) -> float:
        """Writes the line of a step, with `figures`; returns its loss. The only exchange besides gradients."""
        parts = torch.tensor(self.engine.processes.all_gather(result.losses.tolist()), dtype=torch.float64)
        by_task = dict(zip(self.recipe.tasks, parts.sum(dim=0).tolist(), strict=True))
        loss = sum(self.recipe.tasks[task].weight * value for task, value in by_task.items())
        present = dict(zip(self.recipe.tasks, result.batch.counts, strict=True))
        self.tracker.log(
            result.batch.step + 1,
            phase.name,
            {
                "train/loss": loss,
                **{f"train/{task}/loss": value for task, value in by_task.items() if present[task]},
                **self._drawn(result.batch.step + 1),
                **{f"optim/lr/{unit}": rate for unit, rate in self.rates_at(result.batch.step).items()},
                "optim/grad_norm": result.gradient_norm,
                **{f"optim/grad_norm/{unit}": norm for unit, norm in result.unit_norms.items()},
                **{f"optim/gradient_cosine/{pair}": cosine for pair, cosine in result.cosines.items()},
                "optim/nonfinite_steps": self.train_state.nonfinite_total,
                "phase/index": [one.name for one in self.schedule.phases].index(phase.name),
                "phase/trainable_parameters": sum(self.unit_sizes[unit] for unit in phase.units),
                "plan/digest": result.batch.digest,
                "plan/tokens": int(result.batch.lengths.sum()),
                **figures,
                **memory_figures(self.engine.device),
            },
        )
        return loss

    def _drawn(self, done: int) -> dict[str, float]:
        """Examples of each task in the `done` first steps, and passes over its training rows that these make."""
        figures: dict[str, float] = {}
        for task, draws in self.plan.draws(0, done).items():
            figures[f"train/{task}/draws"] = draws
            figures[f"train/{task}/passes"] = draws / len(self.data.tasks[task].splits["train"].lengths)
        return figures
