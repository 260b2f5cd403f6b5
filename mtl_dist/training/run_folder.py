"""Opening a run folder: resuming the run that is there, or moving its files aside."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl_dist.checkpoint.storage import Checkpoint, changed_keys, newest_valid
from mtl_dist.errors import UserError
from mtl_dist.io import reporting_write_errors
from mtl_dist.run_files import resolved
from mtl_dist.run_layout import CHECKPOINTS, METRICS, OWN_NAMES, RECIPE, STACKS, SUMMARY

logger = logging.getLogger(__name__)

PREVIOUS = "previous"
"""Subfolder with a numbered folder for each earlier run whose files were moved aside."""


def open_run_folder(
    folder: Path, identity: dict[str, Any], resume: str, recipe_files: Sequence[str] = ()
) -> Checkpoint | None:
    """Prepares `folder` and returns the checkpoint to resume from, or None for a new run. Called by one rank.

    An unfinished run with a checkpoint is resumed if `resume` is "auto"; any other earlier run is moved aside. Its
    recipe stays in place as well if it is one of `recipe_files`, which the same command needs to start again.
    Raises UserError where `identity` differs from the checkpoint's in a key that could change the run, where the
    folder cannot be written, and where what would be moved aside is not a run's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = [name for name in OWN_NAMES if os.path.lexists(folder / name)]
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"output_dir: cannot write to {folder}: {error.strerror}") from error
    if not entries:
        return None
    if resume == "auto" and SUMMARY not in entries:
        checkpoint, skipped = newest_valid(folder / CHECKPOINTS)
        for line in skipped:
            logger.info("%s", line)
        if checkpoint is not None:
            changed = changed_keys(checkpoint.state["identity"], identity)
            if changed:
                raise UserError(
                    f"{folder}: its checkpoint belongs to a run that differs in {', '.join(changed)};"
                    " change back, or start anew with checkpoint.resume=never"
                )
            trim_metrics(folder / METRICS, checkpoint.step)
            return checkpoint
    _check_movable(folder, entries)
    stays = any(resolved(Path(file)) == resolved(folder / RECIPE) for file in recipe_files)
    with reporting_write_errors(folder / PREVIOUS):
        target = move_aside(folder, entries, [RECIPE] if stays else [])
    logger.info("an earlier run's files moved to %s", target)
    return None


def _check_movable(folder: Path, entries: Sequence[str]) -> None:
    """Raises UserError where `entries` of `folder` are not what a run has written, or are on another disk."""
    if RECIPE not in entries and set(entries) != {STACKS}:  # a run's first file; stacks may be written before it
        raise UserError(
            f"output_dir: {folder} holds {', '.join(entries)} and no {RECIPE}, so no run has written that;"
            " name another folder, or move it away"
        )
    device = folder.stat().st_dev
    for name in (*entries, PREVIOUS):
        path = folder / name
        if path.is_symlink() or os.path.ismount(path) or (path.exists() and path.stat().st_dev != device):
            kind = "a symbolic link" if path.is_symlink() else "a mount point"
            raise UserError(
                f"output_dir: {path} is {kind}, and the earlier run in {folder} cannot be moved aside with it;"
                " name another folder, or move it away"
            )


def move_aside(folder: Path, entries: Sequence[str], copied: Sequence[str] = ()) -> Path:
    """Moves `entries` of `folder` into its next numbered subfolder of `previous`; files in `copied` stay as well."""
    root = folder / PREVIOUS
    root.mkdir(exist_ok=True)
    number = 1 + max((int(path.name) for path in root.iterdir() if path.name.isdigit()), default=0)
    target = root / str(number)
    target.mkdir()
    for name in entries:
        if name in copied:
            shutil.copy2(folder / name, target / name)
        else:
            (folder / name).rename(target / name)
    return target


def trim_metrics(path: Path, step: int) -> None:
    """Drops the lines that the resumed run writes again: those after `step`, the final one, and an incomplete one."""
    if not path.exists():
        return
    length = 0
    with reporting_write_errors(path):
        for line in path.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n") or _is_written_again(line, step):
                break
            length += len(line)
        os.truncate(path, length)  # in place: the disk may be full


def _is_written_again(line: bytes, step: int) -> bool:
    try:
        values = json.loads(line)
    except ValueError:
        return True  # zeros after a power loss
    return values["step"] > step or any(key.startswith("test/") for key in values)
