"""Hooks for negative controls: each disables one mechanism of a run, so that its campaign must fail."""

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialize
from torch import Tensor

from mtl_dist.checkpoint import format
from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.checkpoint.format import sha256_of
from mtl_dist.config.recipe import CheckpointConfig
from mtl_dist.data import columns, validation
from mtl_dist.data.reading.json_rows import JsonFile
from mtl_dist.errors import UserError
from mtl_dist.io import reporting_write_errors
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.training import run_folder, trainer
from tests.utils.checkpoints import renew_manifest

Tensors = Mapping[str, Tensor]


def optimizer_state() -> None:
    """A resumed run loads the weights but no optimizer state."""
    load = checkpoint.load

    def load_weights_only(
        checkpoint: checkpoint.Checkpoint, like: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return load(checkpoint, like)[0], {}

    checkpoint.load = load_weights_only


def trimming_metrics() -> None:
    """A resumed run keeps the metrics lines of steps that it repeats."""
    run_folder.trim_metrics = lambda path, step: None


def safe_saving() -> None:
    """Checkpoints are written directly into their final folder and loaded without verification."""
    checkpoint.save = save_in_place

    def read_unverified(folder: Path, step: int, sha256: Callable[[Path], str] = sha256_of) -> dict[str, Any]:
        return json.loads((folder / format.STATE).read_text(encoding="utf-8"))

    checkpoint.verify = read_unverified


def save_in_place(
    root: Path,
    step: int,
    weights: Tensors,
    optimizer_state: Tensors,
    state: Mapping[str, Any],
    config: CheckpointConfig,
) -> Path:
    """Replacement of `checkpoint.save` that uses no temporary folder."""
    folder = root / format.folder_name(step)
    with reporting_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / format.WEIGHTS).write_bytes(serialize(dict(weights)))
        (folder / format.OPTIMIZER).write_bytes(serialize(dict(optimizer_state)))
        (folder / format.STATE).write_text(json.dumps(state), encoding="utf-8")
        renew_manifest(folder)
    return folder


def fixed_seeds() -> None:
    """Dropout masks are not a function of seed and step."""
    trainer.dropout_seed = lambda seed, step, rank, micro_step: random.SystemRandom().getrandbits(63)


def guarding_trackers() -> None:
    """An error raised by W&B is an error of the run."""

    def unguarded(self: Tracker, name: str, action: Callable[[], object]) -> None:
        action()

    Tracker._disable_on_error = unguarded


def refusing_rows() -> None:
    """Rows are not validated."""
    for module in (columns, validation):
        module.refuse_rows = lambda location, bad, describe: None


def finding_lines() -> None:
    """The error of a file's reader is reported without the line that caused it."""
    JsonFile._invalid = lambda self, line, error: UserError("no valid JSON")
