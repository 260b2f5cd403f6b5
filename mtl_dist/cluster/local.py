"""The backend `local`: the run on this machine, started again where it stops for a reason that is not the user's."""

import os
import shlex
from pathlib import Path

from mtl_dist.cluster.job import Job, write_recipe
from mtl_dist.cluster.node_agent import Launch, Requests, finished, run_part
from mtl_dist.errors import Interrupted, TrainingError, UserError
from mtl_dist.resources import TRAIN_SCRIPT
from mtl_dist.run_layout import CHECKPOINTS

MAX_STOPS = 3
"""Starts in a row that end before a checkpoint is saved, until that is said to lead nowhere."""


def run(job: Job, dry: bool) -> int:
    """Runs it to its end; returns the run's own exit code. Raises UserError and TrainingError."""
    if job.nodes > 1:
        raise UserError(f"--nodes: {job.nodes}: local is this machine alone")
    launch = Launch(TRAIN_SCRIPT, ("--config", str(job.recipe_path)), job.engine_file, 1, job.processes)
    if dry:
        print(shlex.join(launch.command()))
        return 0
    write_recipe(job)
    os.environ |= job.environment_with_threads()
    requests = Requests()
    requests.listen()
    stops = 0
    while not finished(job.run):
        before = _newest(job.run)
        code = run_part(launch, requests, alone=True, save_seconds=job.save_seconds)
        if code != Interrupted.exit_code or requests.times:
            return code
        stops = stops + 1 if _newest(job.run) == before else 0
        if stops == MAX_STOPS:
            raise TrainingError(f"stopped {stops} times in a row before a checkpoint was saved")
        print("stopped by a signal that this command has not had; starting it again", flush=True)
    return 0


def _newest(run_folder: Path) -> str | None:
    """Name of the newest checkpoint."""
    return max((path.name for path in (run_folder / CHECKPOINTS).glob("step-*")), default=None)
