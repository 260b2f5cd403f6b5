"""State of the files that an example set is read from, by which a change of any of them is noticed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets

FileStates = list[str]
"""One line per file, with its path and metadata that change whenever the file is changed."""

TIMESTAMP_SETTLING_NS = 2_000_000_000
"""Nanoseconds that must pass after the last change of a file before its timestamps identify its content.

The resolution of file system timestamps is up to two seconds; a second change within it leaves no trace.
"""


def files_state(files: Mapping[str, Sequence[str]]) -> FileStates:
    """State of the files of all splits; a file that is gone has none."""
    return [f"{split} {_state_of_file(path)} {path}" for split, paths in files.items() for path in paths]


def rows_state(splits: Mapping[str, datasets.Dataset]) -> FileStates:
    """State of rows that `datasets` has read, e.g. from the hub: of the arrow files in its cache.

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
    try:
        found = Path(path).stat()
    except OSError:
        return "0 0 0 0"  # the reader of the file reports the error
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def timestamps_are_reliable(state: FileStates, now: int) -> bool:
    """Whether every file's last change is TIMESTAMP_SETTLING_NS or more before `now`, in nanoseconds since 1970."""
    return all(max(int(date) for date in line.split(" ")[2:4]) <= now - TIMESTAMP_SETTLING_NS for line in state)
