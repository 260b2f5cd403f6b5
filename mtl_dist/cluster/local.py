"""The backend `local`: runs on this machine and restarts the run if it was stopped by a signal from elsewhere."""

import os
import shlex
from pathlib import Path

from mtl_dist.cluster.job import Job, write_recipe
from mtl_dist.cluster.node_agent import Launch, StopSignals, finished, run_node
from mtl_dist.errors import Interrupted, TrainingError, UserError
from mtl_dist.resources import TRAIN_SCRIPT
from mtl_dist.run_layout import CHECKPOINTS

MAX_STOPS = 3
"""Consecutive starts without a new checkpoint after which the run is given up."""


def run(job: Job, dry: bool) -> int:
    """Runs `job` until it finishes or fails; returns the exit code of the run. Raises UserError and TrainingError."""
    if job.nodes > 1:
        raise UserError(f"--nodes: {job.nodes}: local is this machine alone")
    launch = Launch(TRAIN_SCRIPT, ("--config", str(job.recipe_path)), job.engine_file, 1, job.processes)
    if dry:
        print(shlex.join(launch.command()))
        return 0
    write_recipe(job)
    os.environ |= job.environment_with_threads()
    stop_signals = StopSignals()
    stop_signals.listen()
    stops = 0
    while not finished(job.run):
        before = _newest(job.run)
        code = run_node(launch, stop_signals, alone=True, save_seconds=job.save_seconds)
        if code != Interrupted.exit_code or stop_signals.times:
            return code
        stops = stops + 1 if _newest(job.run) == before else 0
        if stops == MAX_STOPS:
            raise TrainingError(f"stopped {stops} times in a row before a checkpoint was saved")
        print("stopped by a signal that this command has not had; starting it again", flush=True)
    return 0


def _newest(run_folder: Path) -> str | None:
    """Name of the newest checkpoint folder, or None."""
    return max((path.name for path in (run_folder / CHECKPOINTS).glob("step-*")), default=None)
