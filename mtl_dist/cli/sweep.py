"""`mtl-dist sweep`: makes a W&B sweep and runs it here."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mtl_dist.errors import TrainingError, UserError, root_cause


def sweep(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", show_default=False, help="Sweep, as W&B describes it in YAML.")
    ] = None,
    most_runs: Annotated[
        str | None, typer.Argument(metavar="RUNS", show_default=False, help="Make no more runs than this.")
    ] = None,
) -> None:
    """Make a W&B sweep and run it here; needs a key of W&B."""
    if file is None or not (most_runs is None or most_runs.isdecimal()):
        raise UserError("command line: give a sweep's file and, if you like, the most runs to make")
    run_sweep(_read(Path(file)), None if most_runs is None else int(most_runs))


def run_sweep(config: dict[str, Any], most_runs: int | None) -> None:
    """Makes the sweep and runs what W&B hands out, up to `most_runs`.

    Raises UserError without a key, and TrainingError where W&B does not take the sweep.
    """
    # Imported here because mistakes should not wait for it.
    import wandb

    if os.environ.get("WANDB_MODE") in ("offline", "disabled") or not wandb.login(prompt=False, verify=False):
        raise UserError(
            "a sweep lives at W&B, which hands out its runs, so that there is none offline or without a key;"
            " set WANDB_API_KEY or run `wandb login`, and unset WANDB_MODE"
        )
    # The command of a sweep names programs of this environment.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    try:
        sweep_id = wandb.sweep(config)
    except Exception as error:  # wandb.Error, errors of requests, and others
        raise TrainingError(f"W&B does not take the sweep: {root_cause(error)}") from error
    wandb.agent(sweep_id, project=config.get("project"), count=most_runs)


def _read(path: Path) -> dict[str, Any]:
    """The sweep in a file. Raises UserError."""
    import yaml

    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: is not a mapping of keys to values")
    return config
