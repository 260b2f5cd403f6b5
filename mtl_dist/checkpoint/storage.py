"""Checkpoints of weights, optimizer state and train state: written atomically, verified before use, without pickle.

A checkpoint is written to a temporary folder, flushed, given a manifest (see `format`), read again from the disk,
verified and renamed; older ones are removed only after that. Everything random is a function of (seed, step), so
there is no state of a generator or a data loader to save.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from mtl_dist.checkpoint.format import (
    OPTIMIZER,
    STATE,
    WEIGHTS,
    CorruptCheckpoint,
    folder_name,
    read_state,
    step_of,
    verify,
    write_manifest,
)
from mtl_dist.checkpoint.tensor_io import sha256_on_disk, write_tensors
from mtl_dist.config.earlier import differing_keys
from mtl_dist.config.metric_names import SIGNS
from mtl_dist.config.recipe import CheckpointConfig
from mtl_dist.errors import TrainingError, UserError
from mtl_dist.io import fsync, remove_path, reporting_write_errors

PARTIAL = ".partial-"
# Keys that may change between stop and resume, because they cannot change the run's samples or weights.
FREE_KEYS = (
    "output_dir",
    "micro_batch_size",
    "data.cache_dir",
    "cache.",
    "evaluation.",
    "checkpoint.",
    "safety.",
    "tracking.",
)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    state: dict[str, Any]
    """The state that was passed to `save`: identity, train_state, figures."""

    @property
    def step(self) -> int:
        """Optimizer steps done when it was saved."""
        return self.state["train_state"]["step"]


def save(
    root: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer_state: Mapping[str, Tensor],
    state: Mapping[str, Any],
    config: CheckpointConfig,
) -> Path:
    """Writes the checkpoint of `step` (steps done) under `root` and prunes older ones. Called by one rank.

    `weights` and `optimizer_state` are those of `Engine.weights` and `Engine.optimizer_state`. `state` has the run's
    `identity`, its `train_state`, and the `figures` by task of an evaluation at this step, if there was one. Raises
    TrainingError where it cannot be written or not be read again; older checkpoints are left as they were then.
    """
    final, partial = root / folder_name(step), root / f"{PARTIAL}{step:010d}"
    with reporting_write_errors(final):
        root.mkdir(parents=True, exist_ok=True)
        # A run folder has one writer, which has not begun yet: these are left by killed processes.
        for leftover in root.glob(f"{PARTIAL}*"):
            remove_path(leftover)
        partial.mkdir()
        try:
            state_text = json.dumps(state).encode()
            (partial / STATE).write_bytes(state_text)
            fsync(partial / STATE)
            digests = {
                WEIGHTS: write_tensors(partial / WEIGHTS, weights),
                OPTIMIZER: write_tensors(partial / OPTIMIZER, optimizer_state),
                STATE: hashlib.sha256(state_text).hexdigest(),
            }
            write_manifest(partial, step, digests)
            verify(partial, step, sha256_on_disk)
        except Exception as error:
            remove_path(partial)
            if isinstance(error, CorruptCheckpoint):
                raise TrainingError(f"cannot write {final}: read again, it is not what was written: {error}") from error
            raise
        _publish(partial, final)
        _prune(root, step, config)
    return final


def newest_valid(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest checkpoint that passes verification, and a line for each newer one that does not."""
    skipped = []
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            return Checkpoint(folder, verify(folder, step_of(folder))), skipped
        except CorruptCheckpoint as corruption:
            skipped.append(f"checkpoint {folder.name} skipped: {corruption}")
    return None, skipped


def load(checkpoint: Checkpoint, like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the weights and the optimizer state that were passed to `save`.

    `like` has a tensor of the shape and type of each of the model's parameters. Verifies the checkpoint again, because
    another rank may have chosen it. Raises UserError where that fails and where names, shapes or types differ.
    """
    folder = checkpoint.folder
    try:
        verify(folder, checkpoint.step)
    except CorruptCheckpoint as corruption:
        raise UserError(f"{folder}: {corruption}; all ranks must see the same output_dir") from corruption
    weights = load_file(folder / WEIGHTS)
    held, wanted = ({name: (value.shape, value.dtype) for name, value in of.items()} for of in (weights, like))
    different = sorted(name for name in held | wanted if held.get(name) != wanted.get(name))
    if different:
        raise UserError(
            f"{folder}: holds other parameters than this model, first {different[0]!r};"
            " give back the encoder and data of its run, or start anew with checkpoint.resume=never"
        )
    return weights, load_file(folder / OPTIMIZER)


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the dotted keys that differ between two runs' identities and could change the run.

    `before` may be that of a run of an earlier version.
    """
    return [key for key in differing_keys(before, now) if not key.startswith(FREE_KEYS)]


def _publish(partial: Path, final: Path) -> None:
    """Gives a verified checkpoint its name.

    Where another checkpoint has that name, the run has resumed from an older one since, which is still there.
    """
    if final.is_symlink() or final.exists():
        remove_path(final)
    partial.rename(final)
    fsync(final.parent)


def _prune(root: Path, step: int, config: CheckpointConfig) -> None:
    """Removes all but the newest checkpoints and, where asked for, the best of each task; `step` is the newest's.

    Those of later steps are removed too: they are corrupt, or the run has rolled back behind them.
    """
    folders = {}
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            folders[folder] = step_of(folder)
        except CorruptCheckpoint:
            continue  # not a checkpoint, so not ours to remove
    past = {folder: its_step for folder, its_step in folders.items() if its_step <= step}
    best = _best(past, config.keep_best) if config.keep_best else []
    kept = {*list(past)[: config.keep], *best}
    for folder in folders.keys() - kept:
        remove_path(folder)


def _best(folders: Mapping[Path, int], figure: str) -> list[Path]:
    """The checkpoints with the best `figure` of each task, out of `folders` with their steps, newest first."""
    best: dict[str, tuple[float, Path]] = {}
    for folder, step in folders.items():
        try:
            figures = read_state(folder, step)["figures"]
        except CorruptCheckpoint:
            continue  # it could not be used
        for task, of_task in figures.items():
            value = SIGNS[figure] * of_task.get(figure, math.nan)
            # Of equal values, the first is of the newer checkpoint.
            if math.isfinite(value) and (task not in best or value > best[task][0]):
                best[task] = value, folder
    return [folder for _, folder in best.values()]
