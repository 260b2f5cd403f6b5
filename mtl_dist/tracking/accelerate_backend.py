"""A tracker of Accelerate's that gets the same figures: TensorBoard, trackio."""

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
    """A started tracker. Every method may raise whatever it does."""

    def __init__(self, name: str, folder: Path, recipe: Recipe, step: int) -> None:
        """`name` as in `tracking.also`; `folder` is the run's, which goes on after `step` steps."""
        self.name = name
        self._tracker = _made(name, folder, recipe, step)
        self._tracker.start()

    def log(self, line: Mapping[str, Any], tables: object = None) -> None:
        """Sends the numbers of a line; what is text stays the same, or is the plan's."""
        numbers = {key: value for key, value in line.items() if isinstance(value, int | float) and key != "step"}
        self._tracker.log(numbers, step=int(line["step"]))

    def alert(self, title: str, text: str, step: int | None = None) -> None:
        """None of them has any."""

    def keep(self, kind: Literal["model", "checkpoint"], folder: Path, step: int) -> None:
        """Artifacts are W&B's."""

    def finish(self, summary: Mapping[str, Any] | None, exit_code: int) -> None:
        self._tracker.finish()


def _made(name: str, folder: Path, recipe: Recipe, step: int) -> GeneralTracker:
    tracker: Any = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        # What an earlier process wrote of the steps to come is hidden by TensorBoard, so that none shows twice.
        return tracker(TENSORBOARD, str(folder), purge_step=step + 1)
    run = recipe.tracking.name or folder.resolve().name
    return tracker(recipe.tracking.wandb_project, name=run, group=recipe.tracking.group, resume="allow")
