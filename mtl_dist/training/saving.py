"""When a run saves a checkpoint, what it does where that fails, and its way back to one."""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.checkpoint.format import folder_name
from mtl_dist.config.recipe import Recipe
from mtl_dist.engines.base import Engine
from mtl_dist.errors import TrainingError
from mtl_dist.tracking.console import Console
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.train_state import TrainState


class Saver:
    """The checkpoints of a run. Every rank calls its methods alike; the first one writes."""

    def __init__(
        self,
        root: Path,
        recipe: Recipe,
        engine: Engine,
        train_state: TrainState,
        identity: Mapping[str, Any],
        tracker: Tracker,
        console: Console,
    ) -> None:
        """`root` is the folder of checkpoints; `identity`, by key, goes into each."""
        self.root = root
        self.recipe = recipe
        self.engine = engine
        self.train_state = train_state
        self.identity = identity
        self.tracker = tracker
        self.console = console
        self._since = time.monotonic()

    @property
    def keeps_any(self) -> bool:
        config = self.recipe.checkpoint
        return config.every_steps is not None or config.every_minutes is not None

    @property
    def last_is_old(self) -> bool:
        """By this process's clock, which differs from the others'."""
        minutes = self.recipe.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self._since > 60 * minutes

    def save(self, figures: Mapping[str, Mapping[str, float]]) -> None:
        """Saves, unless the run keeps no checkpoints. `figures` are by task, of an evaluation at this step if any.

        Compares first what the ranks should hold alike, and raises TrainingError where they do not. Where the disk
        refuses, all ranks end with its TrainingError or go on, as `checkpoint.on_error` says.
        """
        # Weights from which the gradient is not finite are nothing to go back to.
        if not self.keeps_any or self.train_state.nonfinite_in_row:
            return
        step = self.train_state.step
        if self.recipe.safety.compare_every_steps is not None:
            self.engine.check_replicas(f"after step {step}")
        state = {"identity": self.identity, "train_state": asdict(self.train_state), "figures": figures}
        weights, moments = self.engine.weights(), self.engine.moments()

        def write() -> None:
            self.tracker.flush()  # its lines up to here are not written again by a run that goes on from here
            checkpoint.save(self.root, step, weights, moments, state, self.recipe.checkpoint)

        try:
            self.engine.processes.on_main_process(write)
            self.tracker.log_artifact("checkpoint", self.root / folder_name(step), step)
        except TrainingError as error:
            if self.recipe.checkpoint.on_error == "stop":
                raise
            self.console.say(
                f"{error}; training goes on (checkpoint.on_error), the next checkpoint is tried as planned"
            )
        self._since = time.monotonic()

    def go_back(self) -> int | None:
        """Gives the engine the weights and moments of the newest checkpoint; returns its steps, or None without one.

        A phase is entered next.
        """
        processes = self.engine.processes
        found = None
        if processes.is_main:
            found, _ = checkpoint.newest(self.root)
        found = processes.all_gather(found)[0]
        if found is None:
            return None
        self.engine.load(*processes.together(lambda: checkpoint.load(found, self.engine.like)))
        return found.step
