"""Loading of a task's rows with `datasets`."""

import glob
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import datasets
from pyarrow.dataset import ParquetFragmentScanOptions

from mtl_dist.config.recipe import TaskConfig
from mtl_dist.config.sources import FILE_BUILDERS
from mtl_dist.data.diagnostics import find_faulty_line_of_split
from mtl_dist.data.fingerprint import local_files
from mtl_dist.errors import UserError, did_you_mean, root_cause

# Messages of `datasets` and its readers for files without rows.
_NO_ROWS = ("StopIteration", "corresponds to no data", "BatchSize must be greater than 0", "No columns to parse")

_READER_OPTIONS: dict[str, dict[str, Any]] = {
    # By default, pandas reads texts and labels such as "NA" and "None" as missing.
    "csv": {"keep_default_na": False, "na_values": [""]},
    # With pre-buffering, the whole file would be held in memory.
    "parquet": {"fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)},
}


def load_rows(key: str, task: TaskConfig, split: str) -> datasets.Dataset:
    """Loads the columns that `task` uses of one split, memory-mapped, in arrow format.

    `key` (`tasks.<name>`) begins error messages. Raises UserError if the split cannot be read, has no rows or lacks a
    column.
    """
    files = _files_of(key, task, split)
    options = _READER_OPTIONS.get(task.path, {})
    try:
        with _quiet_datasets():
            loaded = datasets.load_dataset(task.path, task.name, data_files=files, split=split, **options)
    except Exception as error:  # each reader has exception classes of its own
        if any(words in root_cause(error) for words in _NO_ROWS):
            raise UserError(f"{key}: the {split} split has no rows") from error
        if fault := find_faulty_line_of_split(task, split):
            raise UserError(f"{key}: {split} {fault}") from error
        raise UserError(f"{key}: cannot load the {split} split: {root_cause(error)}") from error
    rows = cast(datasets.Dataset, loaded)
    _check_columns(key, task, split, rows.column_names)
    wanted = list(dict.fromkeys([*(task.text or ()), task.label]))
    return cast(datasets.Dataset, rows.select_columns(wanted).with_format("arrow"))


def _files_of(key: str, task: TaskConfig, split: str) -> dict[str, Any] | None:
    """The argument `data_files` of `datasets.load_dataset`. Raises UserError if no local file matches."""
    if not task.data_files:
        return None
    for pattern in task.data_files[split]:
        if task.path in FILE_BUILDERS and "://" not in pattern and not glob.glob(pattern, recursive=True):  # noqa: PTH207
            raise UserError(f"{key}.data_files.{split}: there is no file {pattern}")
    return {split: local_files(task, split) or task.data_files[split]}


def _check_columns(key: str, task: TaskConfig, split: str, names: list[str]) -> None:
    """Raises UserError if a text column or the label column of `task` is not among `names`."""
    for field, columns in (("text", task.text or []), ("label", [task.label])):
        for column in columns:
            if column not in names:
                hint = did_you_mean(column, names)
                raise UserError(f"{key}.{field}: the {split} split has no column {column!r}{hint}")


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Silences `datasets`: its log of errors that it raises anyway, and its progress bars outside of a terminal."""
    verbosity = datasets.logging.get_verbosity()
    hide_bars = not (sys.stderr.isatty() or datasets.are_progress_bars_disabled())
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if hide_bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if hide_bars:
            datasets.enable_progress_bars()
