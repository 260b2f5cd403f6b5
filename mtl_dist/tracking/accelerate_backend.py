"""Trackers of Accelerate as backends: TensorBoard and trackio."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

from mtl_dist.config.recipe import Recipe, TrackingConfig
from mtl_dist.errors import UserError
from mtl_dist.run_layout import TENSORBOARD


def check_trackers(config: TrackingConfig) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    available = [str(kind) for kind in get_available_trackers()]
    for name in config.also:
        if name not in available:
            raise UserError(f"tracking.also: {name} is not installed here; pip install {name}, or take it out")


class AccelerateTracker:
    """A started tracker of Accelerate. Every method may raise any exception of the tracker."""

    def __init__(self, name: str, folder: Path, recipe: Recipe, step: int) -> None:
        """Starts the tracker `name` of `tracking.also` for the run in `folder`, of which `step` steps are done."""
        self.name = name
        self._tracker = _create_tracker(name, folder, recipe, step)
        self._tracker.start()

    def log(self, line: Mapping[str, Any], tables: object = None) -> None:
        """Sends the numbers of a line; its texts are the phase's name and digests, which these trackers cannot plot."""
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
        self._tracker.log(numbers, step=int(line["step"]))

    def alert(self, title: str, text: str, step: int | None = None) -> None:
        """Does nothing: no tracker supports alerts."""

    def log_artifact(self, kind: Literal["model", "checkpoint"], folder: Path, step: int) -> None:
        """Does nothing: only W&B stores artifacts."""

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int) -> None:
        self._tracker.finish()


def _create_tracker(name: str, folder: Path, recipe: Recipe, step: int) -> GeneralTracker:
    tracker: Any = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        # TensorBoard hides what an earlier process wrote about the steps to come, so that no step appears twice.
        return tracker(TENSORBOARD, str(folder), purge_step=step + 1)
    run = recipe.tracking.name or folder.resolve().name
    return tracker(recipe.tracking.wandb_project, name=run, group=recipe.tracking.group, resume="allow")
