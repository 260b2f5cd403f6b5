"""Campaign `kill_in_save`: the run is killed while it writes, renames or prunes checkpoints."""

import functools
import json
import os
import random
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialized
from torch import Tensor

from mtl_dist import tensor_files
from mtl_dist.checkpoint import storage as checkpoint
from tests.faults.campaign import Campaign, Outcome
from tests.faults.fork_server import ForkServer, Hook
from tests.faults.killing import finish_and_compare, outcome_of
from tests.faults.points import kill_job
from tests.faults.runs import LAUNCH_CONFIGS, LaunchConfig, Runs

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}
"""Audit events of file operations, which Python raises before the operation."""


@dataclass
class Save:
    """File operations of one call of `checkpoint.save` on rank 0."""

    operations: list[str] = field(default_factory=list)
    """Names of OPERATIONS in the order in which they took place."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Size in bytes of each file of the finished checkpoint."""


BeforeOperation = Callable[[int, Save, str], None]
"""Callback before an operation.

Gets the number of the save, from 0, its operations including this one, and the name of the file that this operation
opens for writing, or "".
"""


def watch_saves(before: BeforeOperation, done: Callable[[list[Save]], None] = lambda saves: None) -> None:
    """Calls `before` before each file operation of a save, and `done` with all saves so far after each save."""
    saves: list[Save] = []
    inside = False
    save = checkpoint.save

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if inside and event in OPERATIONS:
            saves[-1].operations.append(event)
            before(len(saves) - 1, saves[-1], _name_to_write(event, arguments))

    @functools.wraps(save)
    def watched_save(*arguments: Any, **named: Any) -> Any:
        nonlocal inside
        saves.append(Save())
        inside = True
        folder = save(*arguments, **named)
        inside = False
        saves[-1].sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
        done(saves)
        return folder

    checkpoint.save = watched_save
    sys.addaudithook(audit)


def _name_to_write(event: str, arguments: tuple[Any, ...]) -> str:
    if event != "open" or not isinstance(arguments[0], str | Path):
        return ""
    path, mode, flags = arguments
    writes = bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
    return Path(path).name if writes else ""


def list_saves(file: Path) -> None:
    """Hook: writes to `file`, as JSON, the operations of each save of the run."""

    def done(saves: list[Save]) -> None:
        file.write_text(json.dumps([vars(save) for save in saves]), encoding="utf-8")

    watch_saves(lambda number, save, name: None, done)


def kill_before_operation(number: int, operation: int) -> None:
    """Hook: kills the job before operation `operation`, counted from 1, of save `number`, counted from 0."""

    def before(at: int, save: Save, name: str) -> None:
        if (at, len(save.operations)) == (number, operation):
            kill_job()

    watch_saves(before)


def die_at_byte(number: int, file: str, byte: int) -> None:
    """Hook: the kernel kills the process in the write that would make `file` larger than `byte` bytes.

    `save_file` of safetensors sets the full file size before it writes, so it would be killed with nothing written; it
    is replaced by a function that writes from the start to the end.
    """

    def save_in_order(
        tensors: dict[str, Tensor], filename: str | os.PathLike[str], metadata: dict[str, str] | None = None
    ) -> None:
        Path(filename).write_bytes(serialized(tensors, metadata))

    def before(at: int, save: Save, name: str) -> None:
        if (at, name) == (number, file):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))
            tensor_files.save_file = save_in_order

    watch_saves(before)


def draw_kill_in_save(rng: random.Random, saves: list[Save]) -> tuple[str, Hook]:
    """Draws a kill in any save, at any byte of any file in half of the cases, else before any operation."""
    number = rng.randrange(len(saves))
    save = saves[number]
    if rng.random() < 0.5:
        # Every file is equally likely, because the small ones matter as much as the large ones.
        file = rng.choice(sorted(save.sizes))
        byte = rng.randrange(save.sizes[file])
        return f"save {number}, byte {byte} of {file}", partial(die_at_byte, number, file, byte)
    operation = rng.randint(1, len(save.operations))
    description = f"save {number}, before operation {operation}: {save.operations[operation - 1]}"
    return description, partial(kill_before_operation, number, operation)


def start_and_die(runs: Runs, config: LaunchConfig, name: str, hook: Hook) -> bool:
    """Starts a run that `hook` kills; returns whether it was killed."""
    job = runs.start(config, name, hook)
    end = job.first_end()
    job.kill()
    job.wait()
    return end is None or end[1] in (-signal.SIGXFSZ, -signal.SIGKILL)


def saves_of(runs: Runs, config: LaunchConfig) -> list[Save]:
    """Returns the saves of an uninterrupted run."""
    file = runs.folder / f"saves {config}.json"
    if not file.exists():
        runs.finish(config, f"saves {config}", partial(list_saves, file))
    return [Save(**save) for save in json.loads(file.read_text(encoding="utf-8"))]


def kill_in_save(rng: random.Random, folder: Path, count: int, without: Hook | None = None) -> Iterator[Outcome]:
    """After each kill the run must resume without help and end with the same state."""
    with ForkServer(folder / "logs") as fork_server:
        runs = Runs(fork_server, folder, without=without)
        for number in range(count):
            config, name = LAUNCH_CONFIGS[number % len(LAUNCH_CONFIGS)], f"run {number}"
            description, hook = draw_kill_in_save(rng, saves_of(runs, config))
            problem = "" if start_and_die(runs, config, name, hook) else "it was not killed"
            problem = problem or finish_and_compare(runs, config, name)
            yield outcome_of(runs, f"kill in a save, {config}", description, name, problem)


KILL_IN_SAVE = Campaign(100, kill_in_save)
