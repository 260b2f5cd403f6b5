"""Campaign `damage`: corrupt checkpoints, whose files are read back different from how they were written."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from mtl_dist.checkpoint.format import FILES, MANIFEST, folder_name, manifest_text
from mtl_dist.checkpoint.storage import Checkpoint, load, newest_valid, save
from mtl_dist.config.recipe import CheckpointConfig
from mtl_dist.errors import UserError
from tests.faults.campaign import Campaign, Outcome
from tests.utils.checkpoints import bits, state_at

STEPS = (3, 5, 7)
"""Steps of three checkpoints.

The second is corrupted, some faults copy files from one of the others, and the first must then be found instead.
"""
PAGE = 4096
Fault = Callable[[random.Random, Path, Path], str]
"""Corrupts the first folder, which holds a checkpoint like the second folder, and returns where."""


def tensors(step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns weights and optimizer state of a few pages each, different at each step."""
    torch.manual_seed(step)
    weights = {"unfrozen": torch.randn(64, 64), "frozen": torch.randn(32, 32)}
    optimizer_state = {f"{key}/unfrozen": torch.randn(64, 64) for key in ("exp_avg", "exp_avg_sq")}
    return weights, optimizer_state | {"step/unfrozen": torch.tensor(float(step))}


def rewritten(rng: random.Random, folder: Path, do: Callable[[bytes], tuple[str, bytes]]) -> str:
    """Replaces the content of one of a checkpoint's files by what `do` returns; returns the place for the outcome."""
    path = folder / rng.choice((*FILES, MANIFEST))
    where, content = do(path.read_bytes())
    path.write_bytes(content)
    return f"{path.name}: {where}"


def truncated(rng: random.Random, folder: Path, other: Path) -> str:
    def truncate(content: bytes) -> tuple[str, bytes]:
        size = rng.randrange(len(content))
        return f"to {size} bytes", content[:size]

    return rewritten(rng, folder, truncate)


def flipped(rng: random.Random, folder: Path, other: Path) -> str:
    def flip(content: bytes) -> tuple[str, bytes]:
        position, bit = rng.randrange(len(content)), rng.randrange(8)
        return (
            f"byte {position}, bit {bit}",
            content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :],
        )

    return rewritten(rng, folder, flip)


def zeroed(rng: random.Random, folder: Path, other: Path) -> str:
    def zero(content: bytes) -> tuple[str, bytes]:
        start = rng.randrange(0, len(content), PAGE)
        gone = min(PAGE, len(content) - start)
        return f"page at {start}", content[:start] + bytes(gone) + content[start + gone :]

    return rewritten(rng, folder, zero)


def missing(rng: random.Random, folder: Path, other: Path) -> str:
    name = rng.choice((*FILES, MANIFEST))
    (folder / name).unlink()
    return name


def swapped(rng: random.Random, folder: Path, other: Path) -> str:
    """Replaces some of the files, but not all, by those of the other checkpoint."""
    names = rng.sample((*FILES, MANIFEST), rng.randint(1, len(FILES)))
    for name in names:
        shutil.copy(other / name, folder / name)
    return ", ".join(names)


def renamed(rng: random.Random, folder: Path, other: Path) -> str:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    return other.name


def edited(rng: random.Random, folder: Path, other: Path) -> str:
    """Changes an entry of the manifest, and in half of the cases its own digest to match."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    name = rng.choice(FILES)
    key = rng.choice(("step", "bytes", "sha256", "name", "gone"))
    if key == "step":
        manifest["step"] += rng.randint(1, 9)
    elif key == "bytes":
        manifest["files"][name]["bytes"] += rng.choice((-1, 1))
    elif key == "sha256":
        manifest["files"][name]["sha256"] = rng.randbytes(32).hex()
    elif key == "name":
        manifest["files"][f"{name}.bak"] = manifest["files"].pop(name)
    else:
        del manifest["files"][name]
    digest_matches = rng.random() < 0.5
    path.write_text(
        manifest_text(manifest["step"], manifest["files"]) if digest_matches else json.dumps(manifest), encoding="utf-8"
    )
    return f"{key} of {name}, {'digest matches' if digest_matches else 'digest does not match'}"


FAULTS: tuple[Fault, ...] = (truncated, flipped, zeroed, missing, swapped, renamed, edited)


def run(rng: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Each fault passes if the corrupt checkpoint is refused and the older one restores exactly the older state."""
    intact = folder / "intact"
    for step in STEPS:
        save(intact, step, *tensors(step), state_at(step), CheckpointConfig(keep=len(STEPS)))
    for number in range(count):
        fault = FAULTS[number % len(FAULTS)]
        root = folder / str(number)
        for step in STEPS[:2]:
            shutil.copytree(intact / folder_name(step), root / folder_name(step))
        other = intact / folder_name(rng.choice((STEPS[0], STEPS[2])))
        point = fault(rng, root / folder_name(STEPS[1]), other)
        outcome, passed = check_recovery(root)
        yield Outcome(fault.__name__, point, outcome, passed)
        shutil.rmtree(root)


def check_recovery(root: Path) -> tuple[str, bool]:
    """Returns why the newer of two checkpoints was refused, and whether only it was and the older one loads exactly."""
    older, newer = STEPS[:2]
    like = tensors(older)[0]
    found, skipped = newest_valid(root)
    if found is None or found.step != older or len(skipped) != 1:
        return f"found {found and found.folder.name}, skipped {skipped}", False
    try:
        load(Checkpoint(root / folder_name(newer), state_at(newer)), like)
    except UserError as error:
        refused = len(str(error).splitlines()) == 1
    else:
        refused = False
    same = [bits(part) for part in load(found, like)] == [bits(part) for part in tensors(older)]
    return skipped[0], refused and same and found.state == state_at(older)


CORRUPTION = Campaign(1000, run)
