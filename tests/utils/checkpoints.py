"""Small checkpoints, made on the spot, and comparisons of what is in them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl_dist.checkpoint.format import FILES, sha256_of, step_of, write_manifest
from mtl_dist.checkpoint.storage import Checkpoint, newest_valid, save
from mtl_dist.config.recipe import CheckpointConfig
from mtl_dist.train_state import TrainState

IDENTITY: dict[str, Any] = {"seed": 1, "optimizer": {"lr": 2e-5}}
Figures = dict[str, dict[str, float]]


def tensors(dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights of two parameters, and optimizer state of one of them: the other has never had a gradient."""
    torch.manual_seed(seed)
    weights = {"unfrozen": torch.randn(2, 3, dtype=dtype), "frozen": torch.randn(2, 2, dtype=dtype)}
    optimizer_state = {f"{key}/unfrozen": torch.randn(2, 3, dtype=dtype) for key in ("exp_avg", "exp_avg_sq")}
    return weights, optimizer_state | {"step/unfrozen": torch.tensor(3.0)}


def like(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The parameters of the model that `tensors` are of."""
    return {"unfrozen": torch.zeros(2, 3, dtype=dtype), "frozen": torch.zeros(2, 2, dtype=dtype)}


def state_at(step: int, figures: Figures | None = None, identity: Mapping[str, Any] = IDENTITY) -> dict[str, Any]:
    """The state of a run that has done `step` steps."""
    return {
        "identity": identity,
        "train_state": asdict(TrainState(step, nonfinite_total=3, phase_seconds={"heads": 0.5})),
        "figures": figures or {},
    }


def saved(root: Path, step: int, figures: Figures | None = None, seed: int | None = None, **config: Any) -> Path:
    """Saves the tensors of `seed`, at first the step's own, with `config` as the recipe's checkpoint section."""
    parts = tensors(seed=step if seed is None else seed)
    return save(root, step, *parts, state_at(step, figures), CheckpointConfig(**config))


def renew_manifest(folder: Path) -> None:
    """Gives a changed checkpoint a manifest that agrees with it."""
    write_manifest(folder, step_of(folder), {name: sha256_of(folder / name) for name in FILES})


def found(root: Path) -> Checkpoint:
    """The newest checkpoint, where none is damaged."""
    checkpoint, skipped = newest_valid(root)
    assert skipped == []
    assert checkpoint is not None
    return checkpoint


def steps_in(root: Path) -> list[int]:
    """Steps of the checkpoints in `root`, which has nothing else."""
    return sorted(int(path.name.removeprefix("step-")) for path in root.iterdir())


def bits(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    """Type, shape and bytes: -0.0 is not 0.0 here."""
    return {
        name: (value.dtype, value.shape, value.detach().contiguous().reshape(-1).view(torch.uint8).tolist())
        for name, value in tensors.items()
    }


def flip_a_bit(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
