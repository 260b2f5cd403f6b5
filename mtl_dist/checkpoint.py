"""Checkpoints: weights, moments and a step number; written whole or not at all, verified before use, free of pickle.

A checkpoint is written to a temporary folder, flushed, listed in a manifest with SHA-256, and renamed; older ones go
only after that. Everything random is a function of (seed, step), so there is no generator or loader state to keep.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mtl_dist.errors import UserError

FORMAT = 1
KEEP = 2
"""Checkpoints kept: the newest, and one more in case the newest is damaged."""
# Keys that may change between stop and resume, because they cannot change the run's samples or weights.
FREE_KEYS = ("output_dir", "micro_batch_size", "data.cache_dir", "evaluation.", "checkpoint.", "safety.", "tracking.")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on disk."""

    folder: Path
    state: dict[str, Any]
    """What was given to `save`: step, counters, identity."""


def save(
    root: Path, step: int, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Writes the checkpoint of `step` (steps done) under `root` and prunes older ones. Called by one rank.

    `weights` and `moments` are as `Engine.weights` and `Engine.moments` give them.
    """
    final = root / f"step-{step:010d}"
    partial = root / f".partial-{step:010d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(dict(weights), partial / "model.safetensors")
    save_file(dict(moments), partial / "optimizer.safetensors")
    (partial / "state.json").write_text(json.dumps({**state, "step": step}), encoding="utf-8")
    files = {path.name: _sha256(path) for path in sorted(partial.iterdir())}
    (partial / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": files}), encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        _flush(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _flush(root)
    for old in _folders(root)[KEEP:]:
        shutil.rmtree(old)
    return final


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    skipped = []
    for folder in _folders(root):
        reason = _damage(folder)
        if reason is None:
            return Checkpoint(folder, json.loads((folder / "state.json").read_text(encoding="utf-8"))), skipped
        skipped.append(f"checkpoint {folder.name} skipped: {reason}")
    return None, skipped


def load(checkpoint: Checkpoint, shapes: Mapping[str, Sequence[int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and moments of a checkpoint, as `save` got them; `shapes` are those of the model's parameters by name.

    Raises UserError where names or shapes differ.
    """
    weights = load_file(checkpoint.folder / "model.safetensors")
    held = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    different = sorted(name for name in held | wanted if held.get(name) != wanted.get(name))
    if different:
        raise UserError(
            f"{checkpoint.folder}: holds other parameters than this model, first {different[0]};"
            " give back the encoder and data of its run, or start anew with checkpoint.resume=never"
        )
    return weights, load_file(checkpoint.folder / "optimizer.safetensors")


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Dotted keys that differ between two runs' recipes, or other identities, and could change the run."""
    old, new = _flat(before), _flat(now)
    return sorted(key for key in old | new if old.get(key) != new.get(key) and not key.startswith(FREE_KEYS))


def _folders(root: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted(root.glob("step-*"), reverse=True)


def _damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
        expected = {"model.safetensors", "optimizer.safetensors", "state.json"}
        if manifest["files"].keys() != expected:
            return "its manifest lists other files than a checkpoint has"
        bad = next((name for name, digest in manifest["files"].items() if _sha256(folder / name) != digest), None)
        return f"{bad} does not match its SHA-256" if bad else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"unreadable manifest or file ({type(error).__name__}: {error})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
