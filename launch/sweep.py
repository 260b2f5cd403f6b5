"""Makes a W&B sweep and runs it here: `python launch/sweep.py recipes/sweep.yaml [most runs]`."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mtl_dist.errors import TrainingError, UserError, root_cause


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code. An error of ours is one line."""
    try:
        sweep(*_checked(arguments))
    except (UserError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def sweep(config: dict[str, Any], most_runs: int | None) -> None:
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
    except Exception as error:  # wandb.Error, requests' own, and others
        raise TrainingError(f"W&B does not take the sweep: {root_cause(error)}") from error
    wandb.agent(sweep_id, project=config.get("project"), count=most_runs)


def _checked(arguments: Sequence[str]) -> tuple[dict[str, Any], int | None]:
    if len(arguments) not in (1, 2) or not all(one.isdecimal() for one in arguments[1:]):
        raise UserError("command line: give a sweep's file and, if you like, the most runs to make")
    path = Path(arguments[0])
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: is not a mapping of keys to values")
    return config, int(arguments[1]) if len(arguments) == 2 else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
