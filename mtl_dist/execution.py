"""One prepared run from its first step to its summary: training, the measurements between, and what is kept."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from mtl_dist import checkpoint
from mtl_dist.cli import resolved_yaml
from mtl_dist.digests import combined, require_equal
from mtl_dist.disk import flush, flush_all, write_whole, writing
from mtl_dist.errors import TrainingError, reason
from mtl_dist.evaluation import TaskMetrics, evaluate, flat_metrics
from mtl_dist.phases import Phase, Schedule
from mtl_dist.run_folder import CHECKPOINTS, MODEL, RECIPE, write_summary
from mtl_dist.tracking import Console, Progress, Tracker
from mtl_dist.trainer import Progression, TrainingSetup, TransferLearningTrainer
from mtl_dist.until import has_run_out, value_of, why

LIBRARIES = ("mtl_dist", "torch", "transformers", "accelerate", "datasets")


class Execution:
    """Carries a run out. Every rank does all of it; files are written by the first."""

    def __init__(
        self,
        setup: TrainingSetup,
        progression: Progression,
        console: Console,
        digests: dict[str, str],
        identity: dict[str, Any],
    ) -> None:
        """`digests`, of what the run is made from, go into the summary; `identity`, by key, into checkpoints."""
        self.setup = setup
        self.progression = progression
        self.console = console
        self.digests = digests
        self.identity = identity
        self.recipe = setup.recipe
        self.engine = setup.engine
        self.processes = setup.engine.processes
        self.folder = Path(setup.recipe.output_dir)
        self.measured: tuple[int, dict[str, TaskMetrics]] = -1, {}
        """The last evaluation between two phases or within one, and after how many steps it was."""

    def execute(self) -> None:
        """Trains what is left to train, measures on the test split and saves model and summary."""
        self._on_first(lambda: write_whole(self.folder / RECIPE, resolved_yaml(self.recipe)))
        self.tracker = Tracker(self.folder, self.recipe, self.console, self.processes)
        summary = None
        try:
            self._train()
            # The last boundary: nothing trains any more, and the ranks compare what they have become.
            self.engine.enter_phase("the end", ())
            results = self._summary(self._measure_end())
            weights = self.engine.weights()
            self._on_first(lambda: self._save_model(weights))
            self._on_first(lambda: write_summary(self.folder, results))
            summary = results
            self.console.say(f"model, metrics and summary are in {self.folder}")
        finally:
            self.tracker.finish(summary, exit_code=0 if summary else 1)

    def _on_first(self, work: Callable[[], object]) -> None:
        """Does what only the first rank does; every rank calls this, and raises what `work` raises of ours."""
        self.processes.together(lambda: work() if self.processes.is_main else None)

    @property
    def _schedule(self) -> Schedule:
        """The phases with the ends that they have had."""
        return self.setup.rates.schedule.cut(self.progression.stops)

    def _train(self) -> None:
        progress = Progress(self.console, self._schedule.total_steps, self.progression.step)
        try:
            TransferLearningTrainer(
                self.setup,
                self.progression,
                self.tracker,
                progress,
                self._measure_phase,
                self._has_enough,
                self._save_checkpoint,
            ).train()
        finally:
            progress.close()

    def _measure(self, split: str) -> dict[str, TaskMetrics]:
        return evaluate(self.engine, self.setup.data, split, self.recipe.evaluation.batch_size)

    def _measure_phase(self, phase: Phase) -> dict[str, TaskMetrics]:
        split, step = self.recipe.evaluation.split, self.progression.step
        metrics = self._measure(split)
        self.measured = step, metrics
        self.tracker.log(step, phase.name, flat_metrics(metrics, "eval"))
        when = f"after phase {phase.name}" if step == phase.stop else f"phase {phase.name}, after step {step}"
        self._say(f"{when}, {split}", metrics)
        return metrics

    def _has_enough(self, phase: Phase) -> bool:
        """Measures, and decides whether the `until` of `phase` ends it here.

        Raises TrainingError on every rank where the ranks have measured different values.
        """
        until, step = phase.until, self.progression.step
        assert until is not None, "else nothing is measured within a phase"
        metrics = self._measure_phase(phase)
        value = value_of(until.metric, {task: one.as_dict() for task, one in metrics.items()})
        require_equal(self.processes, f"after step {step}", {until.metric: repr(value)})
        values = self.progression.measured.setdefault(phase.name, [])
        values.append(value)
        # The first rank decides: one that thought otherwise would wait in another phase for ever.
        enough = self.processes.all_gather(has_run_out(values, until))[0]
        if enough:
            self.console.say(f"phase {phase.name} ends early, after step {step}: {why(values, until, phase.start)}")
        return enough

    def _measure_end(self) -> dict[str, TaskMetrics]:
        test = self._measure("test")
        split = self.recipe.evaluation.split
        last = test if split == "test" else self._measure(split)
        self.tracker.log(self.progression.step, "end", flat_metrics(last, "eval") | flat_metrics(test, "test"))
        self._say("at the end, test", test)
        return test

    def _say(self, when: str, metrics: dict[str, TaskMetrics]) -> None:
        figures = ", ".join(
            f"{task} accuracy {one.accuracy:.4f} macro-F1 {one.macro_f1:.4f}" for task, one in metrics.items()
        )
        self.console.say(f"{when}: {figures}")

    def _save_checkpoint(self) -> None:
        """Where the disk refuses, all ranks end with its TrainingError or go on, as `checkpoint.on_error` says."""
        config = self.recipe.checkpoint
        if config.every_steps is None:
            return
        step = self.progression.step
        state = {"identity": self.identity, "progression": asdict(self.progression), "figures": self._figures()}
        weights, moments = self.engine.weights(), self.engine.moments()

        def save() -> None:
            self.tracker.flush()  # its lines up to here are not written again by a run that goes on from here
            checkpoint.save(self.folder / CHECKPOINTS, step, weights, moments, state, config)

        try:
            self._on_first(save)
        except TrainingError as error:
            if config.on_error == "stop":
                raise
            self.console.say(
                f"{error}; training goes on (checkpoint.on_error), the next checkpoint is tried as planned"
            )

    def _figures(self) -> dict[str, dict[str, float]]:
        """Figures of each task at this step, where it has been measured or is the last one; else none."""
        if self.recipe.checkpoint.keep_best and self.progression.step == self._schedule.total_steps:
            # The end is measured after its checkpoint is saved, so that a run killed in between need not train again.
            self.measured = self.progression.step, self._measure(self.recipe.evaluation.split)
        step, metrics = self.measured
        return {task: one.as_dict() for task, one in metrics.items()} if step == self.progression.step else {}

    def _save_model(self, weights: dict[str, Tensor]) -> None:
        final, partial = self.folder / MODEL, self.folder / f".{MODEL}.partial"
        with writing(final):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                self.engine.raw.save_pretrained(partial, weights)
                self.setup.data.tokenizer.save_pretrained(partial)
                flush_all(partial)
            except Exception as error:  # the tokenizers library has no class of its own for a full disk
                shutil.rmtree(partial, ignore_errors=True)
                raise TrainingError(f"cannot write {final}: {reason(error)}") from error
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            flush(self.folder)

    def _state_digest(self) -> str:
        """One SHA-256 over parameters, moments, the place in the schedule and the counters; how long it took is not in.

        Two runs with the same have become the same.
        """
        counters = {key: value for key, value in asdict(self.progression).items() if key != "phase_seconds"}
        state = {**self.engine.parameter_digests(), **self.engine.moment_digests(), "": json.dumps(counters)}
        return combined(state)

    def _summary(self, test: dict[str, TaskMetrics]) -> dict[str, Any]:
        names = self.engine.raw.unit_parameters()
        parameters = dict(self.engine.raw.named_parameters())
        sizes = {unit: sum(parameters[name].numel() for name in names[unit]) for unit in names}
        by_rank = self.processes.all_gather(combined(self.engine.parameter_digests()))
        return {
            **flat_metrics(test, "test"),
            "steps": self.progression.step,
            "phases": [
                {
                    "name": phase.name,
                    "steps": phase.steps,
                    "seconds": self.progression.phase_seconds.get(phase.name, 0.0),
                    "trainable_parameters": sum(sizes[unit] for unit in phase.units),
                }
                for phase in self._schedule.phases
            ],
            "nonfinite_steps": self.progression.nonfinite_total,
            "world_size": self.processes.world_size,
            "engine": self.engine.name,
            "mixed_precision": self.engine.accelerator.mixed_precision,
            "params_sha256": by_rank[0],
            "params_sha256_by_rank": by_rank,
            "state_sha256": self._state_digest(),
            "digests": self.digests,
            "versions": {library: version(library) for library in LIBRARIES},
        }
