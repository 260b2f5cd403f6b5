"""The local files that a task is read from, and their state: what tells that none of them has changed since."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
from datasets.data_files import DataFilesList, resolve_pattern

from mtl_dist.config.recipe import TaskConfig
from mtl_dist.config.validation import FILE_BUILDERS

FileStates = list[str]
"""A line for each file, with its path and what moves whenever it changes."""

TIMESTAMP_SETTLING_NS = 2_000_000_000
"""Nanoseconds that a file must have been left alone before it is read, if its state is to be believed later: the dates
of file systems move in jumps, some of two seconds, and a second change within one leaves no trace."""


def local_files(task: TaskConfig, split: str) -> DataFilesList | None:
    """The files of one split; None where it is read from elsewhere or the files are not there.

    `datasets` keeps a copy of what it has read and knows a file by its path and date only. In this list it finds the
    whole state, and so reads again what has kept its date.
    """
    pattern = task.data_files.get(split, "")
    if task.path not in FILE_BUILDERS or not pattern or "://" in pattern:
        return None
    try:
        paths = resolve_pattern(pattern, str(Path.cwd()))
        return DataFilesList(paths, [(_state_of_file(path),) for path in paths])
    except OSError:
        return None  # whoever reads them says what is wrong


def files_state(task: TaskConfig, splits: Iterable[str]) -> FileStates | None:
    """The state of the files of all `splits`, or None as in `local_files`."""
    lines = []
    for split in splits:
        files = local_files(task, split)
        if files is None:
            return None
        states = (" ".join(state) for state in files.origin_metadata)
        lines += [f"{split} {state} {path}" for path, state in zip(files, states, strict=True)]
    return lines


def rows_state(splits: Mapping[str, datasets.Dataset]) -> FileStates:
    """The state of what `datasets` has of rows from elsewhere, e.g. the hub: the arrow files and how it reads them."""
    return [
        f"{split} {_state_of_file(file['filename'])} {rows._fingerprint} {rows.features} {file['filename']}"
        for split, rows in splits.items()
        for file in rows.cache_files
    ]


def _state_of_file(path: str) -> str:
    """Size, dates of the last change and of the inode's in nanoseconds, and inode.

    Who puts an old date back changes the inode, and that date cannot be put back.
    """
    found = Path(path).stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def timestamps_are_reliable(state: FileStates, now: int) -> bool:
    """Whether the files had been left alone for a while at `now`, in nanoseconds since 1970."""
    return all(max(int(date) for date in line.split(" ")[2:4]) <= now - TIMESTAMP_SETTLING_NS for line in state)
