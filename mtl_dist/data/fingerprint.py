"""State of the local files that a task is read from, by which a change of any of them is noticed."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
from datasets.data_files import DataFilesList, resolve_pattern

from mtl_dist.config.recipe import TaskConfig
from mtl_dist.config.sources import FILE_BUILDERS

FileStates = list[str]
"""One line per file, with its path and metadata that change whenever the file is changed."""

TIMESTAMP_SETTLING_NS = 2_000_000_000
"""Nanoseconds that must pass after the last change of a file before its timestamps identify its content.

The resolution of file system timestamps is up to two seconds; a second change within it leaves no trace.
"""


def local_files(task: TaskConfig, split: str) -> DataFilesList | None:
    """Files of one split with their state; None if the split is not read from local files or they do not exist.

    `datasets` caches what it has read by path and modification time. Given this list, it uses the whole state instead,
    and thus notices a change that kept the modification time.
    """
    patterns = task.data_files.get(split, [])
    if task.path not in FILE_BUILDERS or not patterns or any("://" in pattern for pattern in patterns):
        return None
    try:
        paths = [path for pattern in patterns for path in resolve_pattern(pattern, str(Path.cwd()))]
        return DataFilesList(paths, [(_state_of_file(path),) for path in paths])
    except OSError:
        return None  # the reader of the files reports the error


def files_state(task: TaskConfig, splits: Iterable[str]) -> FileStates | None:
    """State of the files of all `splits`; None if `local_files` returns None for one of them."""
    lines = []
    for split in splits:
        files = local_files(task, split)
        if files is None:
            return None
        states = (" ".join(state) for state in files.origin_metadata)
        lines += [f"{split} {state} {path}" for path, state in zip(files, states, strict=True)]
    return lines


def rows_state(splits: Mapping[str, datasets.Dataset]) -> FileStates:
    """State of rows that are not read from local files, e.g. from the hub: of the arrow files in the `datasets` cache.

    The fingerprint and features by which `datasets` reads these files are part of the state.
    """
    return [
        f"{split} {_state_of_file(file['filename'])} {rows._fingerprint} {rows.features} {file['filename']}"
        for split, rows in splits.items()
        for file in rows.cache_files
    ]


def _state_of_file(path: str) -> str:
    """Size, modification time (mtime) and metadata change time (ctime) in nanoseconds, and inode number.

    Setting mtime back to an earlier value changes ctime, which cannot be set.
    """
    found = Path(path).stat()
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def timestamps_are_reliable(state: FileStates, now: int) -> bool:
    """Whether every file's last change is TIMESTAMP_SETTLING_NS or more before `now`, in nanoseconds since 1970."""
    return all(max(int(date) for date in line.split(" ")[2:4]) <= now - TIMESTAMP_SETTLING_NS for line in state)
