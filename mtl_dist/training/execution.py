"""One prepared run from its first step to its summary: training, the measurements between, and what is kept."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mtl_dist.config.load import resolved_yaml
from mtl_dist.distributed.consistency import combined, require_equal
from mtl_dist.distributed.preemption import StopRequest
from mtl_dist.distributed.watchdog import Watchdog
from mtl_dist.errors import Interrupted, TrainingError, UserError, reason
from mtl_dist.io import write_whole, writing_folder
from mtl_dist.models.model_card import CARD, run_card
from mtl_dist.report.page import write_report
from mtl_dist.run_layout import CHECKPOINTS, MODEL, RECIPE
from mtl_dist.schedule.early_stopping import has_run_out, value_of, why
from mtl_dist.schedule.phases import Phase, Schedule
from mtl_dist.tracking.console import Console, Progress
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.train_state import NONDETERMINISTIC_FIELDS, TrainState
from mtl_dist.training.evaluation import TaskMetrics, evaluate, flat_confusions, flat_metrics
from mtl_dist.training.misclassified import final_tables
from mtl_dist.training.run_folder import write_summary
from mtl_dist.training.run_metadata import start_of, versions, write_setup
from mtl_dist.training.saving import Saver
from mtl_dist.training.trainer import TrainingSetup, TransferLearningTrainer

_SAVE, _STOP = 1, 2
"""Wishes of a rank between two steps; the greater one wins."""


class Execution:
    """Carries a run out. Every rank does all of it; files are written by the first."""

    def __init__(
        self,
        setup: TrainingSetup,
        train_state: TrainState,
        console: Console,
        description: dict[str, Any],
        identity: dict[str, Any],
        stop_request: StopRequest,
        watchdog: Watchdog,
    ) -> None:
        """`description` is what the run is made of, for setup.json; `identity`, by key, goes into checkpoints."""
        self.setup = setup
        self.train_state = train_state
        self.console = console
        self.description = description
        self.identity = identity
        self.stop_request = stop_request
        self.watchdog = watchdog
        self.recipe = setup.recipe
        self.engine = setup.engine
        self.processes = setup.engine.processes
        self.folder = Path(setup.recipe.output_dir)
        self._vote = self.processes.vote()
        self.measured: tuple[int, dict[str, TaskMetrics]] = -1, {}
        """The last evaluation between two phases or within one, and after how many steps it was."""

    def execute(self) -> None:
        """Trains what is left to train, measures on the test split and saves model and summary.

        Raises Interrupted, on every rank, after a checkpoint, where the run was asked to stop.
        """
        self.processes.on_main_process(lambda: write_whole(self.folder / RECIPE, resolved_yaml(self.recipe)))
        start = start_of(self.engine, self.train_state.step, self.setup.micro_steps)
        self.processes.on_main_process(lambda: write_setup(self.folder, self.description, start))
        done = self.train_state.step
        self.tracker = Tracker(self.folder, self.recipe, self.processes, self.train_state.wandb_id, done)
        self.train_state.wandb_id = self.tracker.wandb_id
        self.saver = Saver(
            self.folder / CHECKPOINTS,
            self.recipe,
            self.engine,
            self.train_state,
            self.identity,
            self.tracker,
            self.console,
        )
        summary, exit_code = None, TrainingError.exit_code
        with self.stop_request.waiting():
            try:
                with self.watchdog.running():
                    summary = self._train_and_measure()
                exit_code = 0
                # No rank asks the others any more, and what remains of the run is nothing to go on with.
                self.stop_request.end_with(exit_code)
            except (Interrupted, UserError) as error:
                exit_code = error.exit_code
                if isinstance(error, Interrupted):
                    self.tracker.alert("Stopped, and can go on", str(error))
                raise
            finally:
                self.tracker.finish(summary, exit_code)

    def _train_and_measure(self) -> dict[str, Any]:
        try:
            self._train()
            # The last boundary: nothing trains any more, and the ranks compare what they have become.
            self.engine.enter_phase("the end", ())
            summary = self._summary(self._measure_end())
        except Interrupted:
            self._save()
            raise
        with self.watchdog.suspended("saving the model"):
            weights = self.engine.weights()
            self.processes.on_main_process(lambda: self._save_model(weights, summary))
            self.tracker.log_artifact("model", self.folder / MODEL, self.train_state.step)
            self.processes.on_main_process(lambda: write_summary(self.folder, summary))
            self.processes.on_main_process(self._write_report)
        self.console.say(f"model, metrics and summary are in {self.folder}")
        return summary

    @property
    def _schedule(self) -> Schedule:
        """The phases with the ends that they have had."""
        return self.setup.rates.schedule.with_early_stops(self.train_state.stops)

    def _train(self) -> None:
        progress = Progress(self.processes.is_main, self._schedule.total_steps, self.train_state.step)
        try:
            TransferLearningTrainer(self.setup, self.train_state, self.tracker, progress, self).train()
        finally:
            progress.close()

    def _measure(self, split: str, most_mistakes: int = 0) -> dict[str, TaskMetrics]:
        def before_batch() -> None:
            self.watchdog.passing(f"after step {self.train_state.step}: a batch of {split}")
            self.should_save()

        return evaluate(
            self.engine,
            self.setup.data,
            split,
            self.recipe.evaluation.batch_size,
            self.setup.cache,
            before_batch,
            most_mistakes,
        )

    def evaluate(self, phase: Phase) -> dict[str, TaskMetrics]:
        split, step = self.recipe.evaluation.split, self.train_state.step
        metrics = self._measure(split)
        self.measured = step, metrics
        self.tracker.log(step, phase.name, flat_metrics(metrics, "eval") | flat_confusions(metrics, "eval"))
        when = f"after phase {phase.name}" if step == phase.stop else f"phase {phase.name}, after step {step}"
        self._say(f"{when}, {split}", metrics)
        return metrics

    def should_stop(self, phase: Phase) -> bool:
        """Measures, and decides whether the `until` of `phase` ends it here.

        Raises TrainingError on every rank where the ranks have measured different values.
        """
        until, step = phase.until, self.train_state.step
        assert until is not None, "else nothing is measured within a phase"
        metrics = self.evaluate(phase)
        value = value_of(until.metric, {task: one.as_dict() for task, one in metrics.items()})
        require_equal(self.processes, f"after step {step}", {until.metric: repr(value)})
        values = self.train_state.measured.setdefault(phase.name, [])
        values.append(value)
        # The first rank decides: one that thought otherwise would wait in another phase for ever.
        enough = self.processes.all_gather(has_run_out(values, until))[0]
        if enough:
            self.console.say(f"phase {phase.name} ends early, after step {step}: {why(values, until, phase.start)}")
        return enough

    def _measure_end(self) -> dict[str, TaskMetrics]:
        tracking = self.recipe.tracking
        test = self._measure("test", tracking.misclassified if tracking.wandb else 0)
        split = self.recipe.evaluation.split
        last = test if split == "test" else self._measure(split)
        figures = flat_metrics(last, "eval") | flat_metrics(test, "test")
        confusions = flat_confusions(last, "eval") | flat_confusions(test, "test")
        self.tracker.log(
            self.train_state.step, "end", figures | confusions, lambda: final_tables(test, self.setup.data, "test")
        )
        self._say("at the end, test", test)
        return test

    def _say(self, when: str, metrics: dict[str, TaskMetrics]) -> None:
        figures = ", ".join(
            f"{task} accuracy {one.accuracy:.4f} macro-F1 {one.macro_f1:.4f}" for task, one in metrics.items()
        )
        self.console.say(f"{when}: {figures}")

    def should_save(self) -> bool:
        """Whether the last checkpoint is old. Raises Interrupted on every rank where any was asked to stop."""
        old = self.processes.is_main and self.saver.last_is_old
        outcome = self._vote.cast(_STOP if self.stop_request.made else _SAVE if old else 0)
        if outcome == _STOP:
            requests = [one for one in self.processes.all_gather(self.stop_request.signal) if one is not None]
            done, total = self.train_state.step, self._schedule.total_steps
            ending = "goes on from there" if self.saver.keeps_any else "starts anew: checkpoint.every_* are null"
            raise Interrupted(f"stopped by {requests[0].name} after step {done} of {total}; the same command {ending}")
        return outcome == _SAVE

    def save(self) -> None:
        if self.recipe.checkpoint.keep_best and self.train_state.step == self._schedule.total_steps:
            # The end is measured after its checkpoint is saved, so that a run killed in between need not train again.
            self.measured = self.train_state.step, self._measure(self.recipe.evaluation.split)
        self._save()

    def _save(self) -> None:
        with self.watchdog.suspended(f"after step {self.train_state.step}: saving a checkpoint"):
            self.saver.save(self._figures())

    def _figures(self) -> dict[str, dict[str, float]]:
        """Figures of each task at this step, where it has been measured; else none."""
        step, metrics = self.measured
        return {task: one.as_dict() for task, one in metrics.items()} if step == self.train_state.step else {}

    def roll_back(self) -> bool:
        if len(self.train_state.rollbacks) >= self.recipe.optimizer.max_rollbacks:
            return False
        back_to, lost_to = self.saver.go_back(), self.train_state.step + 1
        if back_to is None:
            return False
        phase = self._schedule.phase_at(self.train_state.step)
        self.engine.enter_phase(phase.name, phase.units)
        self.engine.train_mode()
        self.train_state.rollbacks.append([back_to, lost_to])
        self.setup.cache.enter_phase(phase, self.train_state)
        self.train_state.nonfinite_in_row = 0
        self.tracker.log(lost_to, phase.name, {"safety/rolled_back_to": back_to})
        self.tracker.alert("Rolled back", f"after step {lost_to}, to the weights after step {back_to}", lost_to)
        self.console.say(
            f"after step {lost_to}: the gradient was not finite {self.recipe.optimizer.max_nonfinite_steps} times in a"
            f" row; back to the weights after step {back_to}, on with the samples of step {lost_to + 1}"
        )
        return True

    def _save_model(self, weights: dict[str, Tensor], summary: dict[str, Any]) -> None:
        with writing_folder(self.folder / MODEL) as folder:
            self.engine.raw.save_pretrained(folder, weights)
            self.setup.data.tokenizer.save_pretrained(folder)
            card = run_card(self.recipe, self.engine.raw.labels, summary)
            (folder / CARD).write_text(card, encoding="utf-8")

    def _write_report(self) -> None:
        """The run is finished without it: what goes wrong here is said and ends nothing."""
        try:
            write_report(self.folder)
        except Exception as error:  # noqa: BLE001 - a page that cannot be drawn must not make a finished run fail
            words = str(error) if isinstance(error, UserError | TrainingError) else reason(error)
            self.console.say(f"warning: the run is finished, its report is not: {' '.join(words.split())}")

    def _state_digest(self) -> str:
        """One SHA-256 over parameters, moments, the place in the schedule and the counters; how long it took is not in.

        Two runs with the same have become the same.
        """
        counters = {key: value for key, value in asdict(self.train_state).items() if key not in NONDETERMINISTIC_FIELDS}
        state = {**self.engine.parameter_digests(), **self.engine.optimizer_state_digests(), "": json.dumps(counters)}
        return combined(state)

    def _summary(self, test: dict[str, TaskMetrics]) -> dict[str, Any]:
        by_rank = self.processes.all_gather(combined(self.engine.parameter_digests()))
        return {
            **flat_metrics(test, "test"),
            "steps": self.train_state.step,
            "phases": [
                {
                    "name": phase.name,
                    "steps": phase.steps,
                    "seconds": self.train_state.phase_seconds.get(phase.name, 0.0),
                    "trainable_parameters": sum(self.setup.unit_sizes[unit] for unit in phase.units),
                    "draws": self.setup.plan.draws(phase.start, phase.stop),
                }
                for phase in self._schedule.phases
            ],
            "nonfinite_steps": self.train_state.nonfinite_total,
            "world_size": self.processes.world_size,
            "engine": self.engine.name,
            "mixed_precision": self.engine.accelerator.mixed_precision,
            "params_sha256": by_rank[0],
            "params_sha256_by_rank": by_rank,
            "state_sha256": self._state_digest(),
            "digests": self.description["digests"],
            "versions": versions(),
        }
