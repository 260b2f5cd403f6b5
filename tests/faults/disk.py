"""Campaigns `disk` and `quota`: writes of a run fail at any byte of a checkpoint, a metrics line or the final files.

A real disk is full or read-only, or the run's folder is over a real btrfs quota.
"""

import io
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from mtl_dist.checkpoint import storage as checkpoint
from mtl_dist.checkpoint.storage import newest_valid
from mtl_dist.config.recipe import Recipe
from mtl_dist.errors import TrainingError
from mtl_dist.models.multitask import MultitaskTransformer
from mtl_dist.tracking.tracker import Tracker
from mtl_dist.training import finish
from mtl_dist.training.run_folder import CHECKPOINTS
from tests.faults.campaign import Campaign, Outcome
from tests.utils.disks import (
    disk_for_quotas,
    disks_unavailable,
    nearly_full,
    quota,
    quotas_unavailable,
    read_only,
    small_disk,
)
from tests.utils.in_process import metrics_of, run_here, summary_of
from tests.utils.tiny import tiny_recipe

SIZE = 8 << 20
SAVES = 6
"""Checkpoints of a run, one every two steps."""
LINES = 15
RUN = "run"
"""Name of the run folder on its disk."""


@dataclass
class InjectedFault:
    """Fault that starts at the n-th call of a function and lasts for a number of calls."""

    place: tuple[Any, str]
    """Owner and name of the function."""
    at: int
    calls: int
    fault: Callable[[], AbstractContextManager[object]]
    before: dict[str, bytes] = field(default_factory=dict)
    """Files of the checkpoints that the run had when the fault started."""

    def arrange(self, patch: pytest.MonkeyPatch, checkpoints: Path, until: ExitStack) -> None:
        """Patches the function so that its calls start and end the fault; closing `until` ends it in any case."""
        owner, name = self.place
        action, count = getattr(owner, name), 0

        def with_fault(*arguments: Any) -> Any:
            nonlocal count
            count += 1
            if count == self.at:
                self.before = contents(checkpoints)
                until.enter_context(self.fault())
            try:
                return action(*arguments)
            finally:
                if count == self.at + self.calls - 1:
                    until.close()

        patch.setattr(owner, name, with_fault)


def contents(checkpoints: Path) -> dict[str, bytes]:
    """Returns the content of every file of all finished checkpoints."""
    return {str(path.relative_to(checkpoints)): path.read_bytes() for path in sorted(checkpoints.glob("step-*/*"))}


def size_of(folder: Path) -> int:
    """Returns the size in bytes of a folder's files, each rounded up to whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.iterdir())


def draw_fault(rng: random.Random, kind: str, disk: Path, whole: Path) -> InjectedFault:
    """Draws a fault for a run on `disk`; `whole` is the folder of the same run without faults."""
    saving, at = (checkpoint, "save"), rng.randint(2, SAVES)
    if kind == "read-only at a checkpoint":
        return InjectedFault(saving, at, 1, lambda: read_only(disk / RUN / CHECKPOINTS))
    shortage, _, where = kind.partition(" at ")
    short_of = {"full": nearly_full, "over quota": quota}[shortage]
    if where == "a checkpoint":
        # The save is one at a phase end, which is larger than those before, or as large as they are.
        left = rng.randrange(size_of(whole / CHECKPOINTS / f"step-{2 * SAVES:010d}") // 3)
        return InjectedFault(saving, at, 1, lambda: short_of(disk, left))
    if where == "a line":
        # Up to the last line but one: the lines must first fill the rest of the file's last page.
        at = rng.randint(1, 4)
        return InjectedFault((Tracker, "log"), at, LINES - at, lambda: short_of(disk, 0))
    if where == "the model":
        left = rng.randrange(size_of(whole / "model"))
        # Until the end of the run, because the tokenizer is saved after the model.
        return InjectedFault((MultitaskTransformer, "save_pretrained"), 1, 2, lambda: short_of(disk, left))
    return InjectedFault((finish, "write_summary"), 1, 1, lambda: short_of(disk, 0))


ON_ERROR: tuple[Literal["stop", "continue"], ...] = ("stop", "continue")
MAY_CONTINUE = ("a checkpoint", "a line")
"""Places at which a run continues if checkpoint.on_error=continue."""
DISK_KINDS = (
    *("full at a checkpoint", "read-only at a checkpoint"),
    *("full at a line", "full at the model", "full at the summary"),
)
QUOTA_KINDS = tuple(f"over quota at {where}" for where in ("a checkpoint", "a line", "the model", "the summary"))


def disks(rng: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Campaign `disk`: full and read-only disks."""
    if reason := disks_unavailable():
        raise SystemExit(reason)
    return inject_faults(rng, folder, count, DISK_KINDS, lambda place: small_disk(place, SIZE))


def quotas(rng: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Campaign `quota`: folders over their quota."""
    if reason := quotas_unavailable():
        raise SystemExit(reason)
    return inject_faults(rng, folder, count, QUOTA_KINDS, disk_for_quotas)


def inject_faults(
    rng: random.Random,
    folder: Path,
    count: int,
    kinds: Sequence[str],
    mounted: Callable[[Path], AbstractContextManager[Path]],
) -> Iterator[Outcome]:
    """Each fault passes if checkpoints stay intact, the run stops or continues as configured, and ends the same."""
    recipe = tiny_recipe(folder, "checkpoint.every_steps=2", f"output_dir={folder / 'whole'}")
    with redirect_stdout(io.StringIO()):
        run_here(recipe)
    whole = folder / "whole"
    for number in range(count):
        kind = kinds[number % len(kinds)]
        at_a_line = kind.endswith("a line")
        with mounted(folder / f"disk {number}") as disk:
            # For faults at a metrics line there are no checkpoints, because they would be the first to find no room.
            config = recipe.checkpoint.model_copy(
                update={
                    "every_steps": None if at_a_line else 2,
                    "every_minutes": None if at_a_line else recipe.checkpoint.every_minutes,
                    "on_error": rng.choice(ON_ERROR),
                }
            )
            affected = recipe.model_copy(update={"output_dir": str(disk / RUN), "checkpoint": config})
            fault = draw_fault(rng, kind, disk, whole)
            point = f"call {fault.at} of {fault.place[1]}, {config.on_error}"
            continues = kind.endswith(MAY_CONTINUE) and config.on_error == "continue"
            outcome, passed = check_recovery(affected, fault, continues)
            same = passed and same_end(disk / RUN, whole)
            yield Outcome(kind, point, outcome, same, summary_of(disk / RUN)["state_sha256"] if same else "")


def check_recovery(recipe: Recipe, fault: InjectedFault, continues: bool) -> tuple[str, bool]:
    """Runs with the fault, then without it to the end; returns the message, and whether the run behaved correctly."""
    folder = Path(recipe.output_dir)
    stdout, error = io.StringIO(), None
    kept: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch, ExitStack() as until, redirect_stdout(stdout):
        fault.arrange(patch, folder / CHECKPOINTS, until)
        try:
            run_here(recipe)
        except TrainingError as caught:
            error = str(caught)
            kept = contents(folder / CHECKPOINTS)
    lines = [line for line in stdout.getvalue().splitlines() if "cannot write" in line]
    if continues:
        return f"continued: {lines}", error is None and len(lines) == 1 and "training continues" in lines[0]
    if error is None:
        return "continued, and should not have", False
    found, skipped = newest_valid(folder / CHECKPOINTS)
    intact = fault.before.items() <= kept.items() and not skipped and (found is not None or not kept)
    with redirect_stdout(io.StringIO()):
        run_here(recipe)
    return error, intact and str(folder) in error and len(error.splitlines()) == 1


def same_end(one: Path, other: Path) -> bool:
    """Whether two runs have the same metrics and the same final state."""
    return metrics_of(one) == metrics_of(other) and summary_of(one)["state_sha256"] == summary_of(other)["state_sha256"]


DISK = Campaign(30, disks)
QUOTA = Campaign(30, quotas)
