"""Campaigns `disk` and `quota`: a disk refuses what a run writes, at any byte of a checkpoint, a line, or what is left.

It is full, or read-only, or the run's folder is over its quota; all of them real, the quota one of btrfs.
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
from tests.utils.disks import disk_for_quotas, nearly_full, quota, read_only, small_disk, why_no_quota, why_not
from tests.utils.in_process import metrics_of, run_here, summary_of
from tests.utils.tiny import tiny_recipe

SIZE = 8 << 20
SAVES = 6
"""Checkpoints of a run, one every two steps."""
LINES = 15
RUN = "run"
"""Folder of a run on its disk."""


@dataclass
class Blow:
    """Strikes when something has been called a number of times, and for a number of calls."""

    place: tuple[Any, str]
    """Owner and name of what is called."""
    at: int
    calls: int
    fault: Callable[[], AbstractContextManager[object]]
    before: dict[str, bytes] = field(default_factory=dict)
    """The checkpoints that the run had then."""

    def arrange(self, patch: pytest.MonkeyPatch, checkpoints: Path, until: ExitStack) -> None:
        """`until` ends the fault where nothing else has."""
        owner, name = self.place
        action, count = getattr(owner, name), 0

        def struck(*arguments: Any) -> Any:
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

        patch.setattr(owner, name, struck)


def contents(checkpoints: Path) -> dict[str, bytes]:
    """All files of all finished checkpoints."""
    return {str(path.relative_to(checkpoints)): path.read_bytes() for path in sorted(checkpoints.glob("step-*/*"))}


def size_of(folder: Path) -> int:
    """Bytes of its files, in whole pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.iterdir())


def blow_of(source: random.Random, kind: str, disk: Path, whole: Path) -> Blow:
    """A run in a folder of `disk` is to be struck; `whole` is the folder of one that nothing has struck."""
    saving, at = (checkpoint, "save"), source.randint(2, SAVES)
    if kind == "read-only at a checkpoint":
        return Blow(saving, at, 1, lambda: read_only(disk / RUN / CHECKPOINTS))
    shortage, _, where = kind.partition(" at ")
    short_of = {"full": nearly_full, "over quota": quota}[shortage]
    if where == "a checkpoint":
        # One of a phase's end, which is larger than those before, or like them.
        left = source.randrange(size_of(whole / CHECKPOINTS / f"step-{2 * SAVES:010d}") // 3)
        return Blow(saving, at, 1, lambda: short_of(disk, left))
    if where == "a line":
        # Until the last but one, for the lines must first fill what is left of the file's last page.
        at = source.randint(1, 4)
        return Blow((Tracker, "log"), at, LINES - at, lambda: short_of(disk, 0))
    if where == "the model":
        left = source.randrange(size_of(whole / "model"))
        # To the run's end, for the tokenizer comes after that.
        return Blow((MultitaskTransformer, "save_pretrained"), 1, 2, lambda: short_of(disk, left))
    return Blow((finish, "write_summary"), 1, 1, lambda: short_of(disk, 0))


ON_ERROR: tuple[Literal["stop", "continue"], ...] = ("stop", "continue")
MAY_GO_ON = ("a checkpoint", "a line")
"""Where a run goes on with checkpoint.on_error=continue."""
DISK_KINDS = (
    *("full at a checkpoint", "read-only at a checkpoint"),
    *("full at a line", "full at the model", "full at the summary"),
)
QUOTA_KINDS = tuple(f"over quota at {where}" for where in ("a checkpoint", "a line", "the model", "the summary"))


def disks(source: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Full ones and read-only ones."""
    if reason := why_not():
        raise SystemExit(reason)
    return refused(source, folder, count, DISK_KINDS, lambda place: small_disk(place, SIZE))


def quotas(source: random.Random, folder: Path, count: int) -> Iterator[Outcome]:
    """Folders over their quota."""
    if reason := why_no_quota():
        raise SystemExit(reason)
    return refused(source, folder, count, QUOTA_KINDS, disk_for_quotas)


def refused(
    source: random.Random,
    folder: Path,
    count: int,
    kinds: Sequence[str],
    mounted: Callable[[Path], AbstractContextManager[Path]],
) -> Iterator[Outcome]:
    """Each passes if checkpoints stay as they were, the run ends or goes on as asked, and comes to the same end."""
    recipe = tiny_recipe(folder, "checkpoint.every_steps=2", f"output_dir={folder / 'whole'}")
    with redirect_stdout(io.StringIO()):
        run_here(recipe)
    whole = folder / "whole"
    for number in range(count):
        kind = kinds[number % len(kinds)]
        at_a_line = kind.endswith("a line")
        with mounted(folder / f"disk {number}") as disk:
            # Without checkpoints, which would be the first to find no room, where a line is to.
            config = recipe.checkpoint.model_copy(
                update={
                    "every_steps": None if at_a_line else 2,
                    "every_minutes": None if at_a_line else recipe.checkpoint.every_minutes,
                    "on_error": source.choice(ON_ERROR),
                }
            )
            struck = recipe.model_copy(update={"output_dir": str(disk / RUN), "checkpoint": config})
            blow = blow_of(source, kind, disk, whole)
            point = f"call {blow.at} of {blow.place[1]}, {config.on_error}"
            goes_on = kind.endswith(MAY_GO_ON) and config.on_error == "continue"
            outcome, passed = judged(struck, blow, goes_on)
            same = passed and same_end(disk / RUN, whole)
            yield Outcome(kind, point, outcome, same, summary_of(disk / RUN)["state_sha256"] if same else "")


def judged(recipe: Recipe, blow: Blow, goes_on: bool) -> tuple[str, bool]:
    """What a run said of its disk, and whether it did as it should; afterwards it is finished."""
    folder = Path(recipe.output_dir)
    said, error = io.StringIO(), None
    kept: dict[str, bytes] = {}
    with pytest.MonkeyPatch.context() as patch, ExitStack() as until, redirect_stdout(said):
        blow.arrange(patch, folder / CHECKPOINTS, until)
        try:
            run_here(recipe)
        except TrainingError as caught:
            error = str(caught)
            kept = contents(folder / CHECKPOINTS)
    lines = [line for line in said.getvalue().splitlines() if "cannot write" in line]
    if goes_on:
        return f"went on: {lines}", error is None and len(lines) == 1 and "training continues" in lines[0]
    if error is None:
        return "went on, and should not", False
    found, skipped = newest_valid(folder / CHECKPOINTS)
    intact = blow.before.items() <= kept.items() and not skipped and (found is not None or not kept)
    with redirect_stdout(io.StringIO()):
        run_here(recipe)
    return error, intact and str(folder) in error and len(error.splitlines()) == 1


def same_end(one: Path, other: Path) -> bool:
    """Whether two runs have become the same, and have written the same down."""
    return metrics_of(one) == metrics_of(other) and summary_of(one)["state_sha256"] == summary_of(other)["state_sha256"]


DISK = Campaign(30, disks)
QUOTA = Campaign(30, quotas)
