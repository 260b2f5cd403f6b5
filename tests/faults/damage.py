"""Checkpoints that come back from the disk other than they were written."""

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
"""Of three checkpoints. The second is damaged, with help of one of the others, and the first must be found then."""
PAGE = 4096
Fault = Callable[[random.Random, Path, Path], str]
"""Damages the first folder, which is a checkpoint like the second; returns where."""


def tensors(step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Some pages of weights and moments, others at each step."""
    torch.manual_seed(step)
    weights = {"unfrozen": torch.randn(64, 64), "frozen": torch.randn(32, 32)}
    moments = {f"{key}/unfrozen": torch.randn(64, 64) for key in ("exp_avg", "exp_avg_sq")}
    return weights, moments | {"step/unfrozen": torch.tensor(float(step))}


def rewritten(source: random.Random, folder: Path, do: Callable[[bytes], tuple[str, bytes]]) -> str:
    """Changes one of a checkpoint's files."""
    path = folder / source.choice((*FILES, MANIFEST))
    where, content = do(path.read_bytes())
    path.write_bytes(content)
    return f"{path.name}: {where}"


def truncated(source: random.Random, folder: Path, other: Path) -> str:
    def cut(content: bytes) -> tuple[str, bytes]:
        size = source.randrange(len(content))
        return f"to {size} bytes", content[:size]

    return rewritten(source, folder, cut)


def flipped(source: random.Random, folder: Path, other: Path) -> str:
    def flip(content: bytes) -> tuple[str, bytes]:
        position, bit = source.randrange(len(content)), source.randrange(8)
        return (
            f"byte {position}, bit {bit}",
            content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :],
        )

    return rewritten(source, folder, flip)


def zeroed(source: random.Random, folder: Path, other: Path) -> str:
    def zero(content: bytes) -> tuple[str, bytes]:
        start = source.randrange(0, len(content), PAGE)
        gone = min(PAGE, len(content) - start)
        return f"page at {start}", content[:start] + bytes(gone) + content[start + gone :]

    return rewritten(source, folder, zero)


def missing(source: random.Random, folder: Path, other: Path) -> str:
    name = source.choice((*FILES, MANIFEST))
    (folder / name).unlink()
    return name


def swapped(source: random.Random, folder: Path, other: Path) -> str:
    """Some of the files are those of the other checkpoint, but not all."""
    names = source.sample((*FILES, MANIFEST), source.randint(1, len(FILES)))
    for name in names:
        shutil.copy(other / name, folder / name)
    return ", ".join(names)


def renamed(source: random.Random, folder: Path, other: Path) -> str:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    return other.name


def edited(source: random.Random, folder: Path, other: Path) -> str:
    """A manifest says something else, and half of the time its own digest agrees."""
    path = folder / MANIFEST
    said = json.loads(path.read_text(encoding="utf-8"))
    name = source.choice(FILES)
    key = source.choice(("step", "bytes", "sha256", "name", "gone"))
    if key == "step":
        said["step"] += source.randint(1, 9)
    elif key == "bytes":
        said["files"][name]["bytes"] += source.choice((-1, 1))
    elif key == "sha256":
        said["files"][name]["sha256"] = source.randbytes(32).hex()
    elif key == "name":
        said["files"][f"{name}.bak"] = said["files"].pop(name)
    else:
        del said["files"][name]
    sealed = source.random() < 0.5
    path.write_text(manifest_text(said["step"], said["files"]) if sealed else json.dumps(said), encoding="utf-8")
    return f"{key} of {name}, {'sealed' if sealed else 'not sealed'}"


FAULTS: tuple[Fault, ...] = (truncated, flipped, zeroed, missing, swapped, renamed, edited)


def run(source: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Each fault passes if the damaged checkpoint is refused and the older one gives exactly the older state."""
    intact = folder / "intact"
    for step in STEPS:
        save(intact, step, *tensors(step), state_at(step), CheckpointConfig(keep=len(STEPS)))
    for number in range(count):
        fault = FAULTS[number % len(FAULTS)]
        root = folder / str(number)
        for step in STEPS[:2]:
            shutil.copytree(intact / folder_name(step), root / folder_name(step))
        other = intact / folder_name(source.choice((STEPS[0], STEPS[2])))
        point = fault(source, root / folder_name(STEPS[1]), other)
        outcome, passed = judged(root)
        yield Outcome(fault.__name__, point, outcome, passed)
        shutil.rmtree(root)


def judged(root: Path) -> tuple[str, bool]:
    """Why the newer of two checkpoints was refused, and whether all is as it should be."""
    older, newer = STEPS[:2]
    like = tensors(older)[0]
    found, skipped = newest_valid(root)
    if found is None or found.step != older or len(skipped) != 1:
        return f"found {found and found.folder.name}, said {skipped}", False
    try:
        load(Checkpoint(root / folder_name(newer), state_at(newer)), like)
    except UserError as error:
        refused = len(str(error).splitlines()) == 1
    else:
        refused = False
    same = [bits(part) for part in load(found, like)] == [bits(part) for part in tensors(older)]
    return skipped[0], refused and same and found.state == state_at(older)


DAMAGE = Campaign(1000, run)
