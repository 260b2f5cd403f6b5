"""Reading of an example set's source: every column that its tasks need, once, as strings on disk."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, cast

import datasets
import pyarrow as pa
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.json.json import Json

from mtl_dist.config.sources import FILE_BUILDERS, ExampleSetConfig
from mtl_dist.data.fingerprint import FileStates, files_state, rows_state
from mtl_dist.data.reading.files import find_files
from mtl_dist.data.reading.table import TableFile
from mtl_dist.data.reading.values import Wanted
from mtl_dist.data.string_table import StringTable, write_string_table
from mtl_dist.errors import UserError, did_you_mean, root_cause

# Messages of `datasets` and its readers for files without rows.
_NO_ROWS = ("StopIteration", "corresponds to no data", "BatchSize must be greater than 0", "No columns to parse")
_UNKNOWN_SPLIT = "Unknown split"
_ROWS_AT_A_TIME = 8192
ClassNames = dict[str, tuple[str, ...]]
"""Names of the classes of ClassLabel columns, by column."""


@dataclass(frozen=True)
class SourceTables:
    """The rows of a source, as strings."""

    tables: dict[str, StringTable]
    """By split of the source, before any rows of it are held out for others."""
    class_names: ClassNames
    """For the training rows, by column; in the order of the first file that has them."""


class Source(Protocol):
    """A source whose files or rows have been found, and have not been read."""

    def state(self) -> FileStates:
        """State of the files that hold the rows; it changes whenever one of them does."""

    def read(self, folder: Path) -> SourceTables:
        """Reads all rows into files in `folder`. Raises UserError for what cannot be read."""


def open_source(config: ExampleSetConfig, splits: Sequence[str]) -> Source:
    """Finds the rows of `splits`, as far as the source has them. Raises UserError, beginning with the recipe's key."""
    held_out = config.source.split.held_out
    needed = [split for split in splits if split not in held_out]
    if len(needed) < len(splits) and "train" not in needed:
        needed = ["train", *needed]
    if config.source.path in FILE_BUILDERS:
        return _FileSource(config, needed)
    if (files := _text_files_of_folder(config, needed)) is not None:
        return _FileSource(files, needed)
    return _DatasetSource(config, needed)


def value_columns(config: ExampleSetConfig) -> list[str]:
    """Names of the columns of an example set that are no texts: labels, and those that splits are made by."""
    split = config.source.split
    names = [*(task.label for task in config.tasks.values()), split.by, split.stratify]
    if split.held_out:
        names += config.other_text
    return list(dict.fromkeys(name for name in names if name is not None))


class _FileSource:
    """Tables in files, which this package reads by itself."""

    def __init__(self, config: ExampleSetConfig, splits: Sequence[str]) -> None:
        source = config.source
        self._config = config
        self._files = {
            split: find_files(f"{config.key}.data_files.{split}", source.data_files[split])
            for split in splits
            if split in source.data_files
        }

    def state(self) -> FileStates:
        return files_state(self._files)

    def read(self, folder: Path) -> SourceTables:
        names: ClassNames = {}
        tables = {}
        for split, paths in self._files.items():
            files = [self._table_file(path) for path in paths]
            for file in files:
                self._check_columns(file)
                if split == "train":
                    _unite(names, file.class_names())
            batches = (
                batch for file in files for batch in file.batches(self._config.text, value_columns(self._config))
            )
            tables[split] = _written(self._config.key, split, folder, batches)
        return SourceTables(tables, names)

    def _table_file(self, path: str) -> TableFile:
        source = self._config.source
        return TableFile(path, source.path, source.read, f"{self._config.key}: {path}")

    def _check_columns(self, file: TableFile) -> None:
        # A key of JSON rows can be missing in all rows at the beginning, so only its reader can tell.
        if file.format != "json":
            _check_columns(self._config, file.path, file.columns())


class _DatasetSource:
    """A data set of the hub or a folder, which `datasets` reads."""

    def __init__(self, config: ExampleSetConfig, splits: Sequence[str]) -> None:
        self._config = config
        found = ((split, self._load(split)) for split in splits)
        self._rows = {split: rows for split, rows in found if rows is not None}

    def state(self) -> FileStates:
        return rows_state(self._rows)

    def read(self, folder: Path) -> SourceTables:
        tables = {}
        for split, rows in self._rows.items():
            _check_columns(self._config, f"the {split} split", rows.column_names)
            tables[split] = _written(self._config.key, split, folder, self._batches(split, rows))
        return SourceTables(tables, _class_names(self._rows["train"]) if "train" in self._rows else {})

    def _load(self, split: str) -> datasets.Dataset | None:
        """The rows of a split in the cache of `datasets`; None for a validation split that there is not."""
        key, source = self._config.key, self._config.source
        if source.data_files and split not in source.data_files:
            return None
        files = {split: source.data_files[split]} if source.data_files else None
        try:
            with _quiet_datasets():
                builder = datasets.load_dataset_builder(source.path, source.name, data_files=files)
                options = self._options(builder)
                loaded = datasets.load_dataset(source.path, source.name, data_files=files, split=split, **options)
        except Exception as error:  # each reader has exception classes of its own
            cause = root_cause(error)
            if split == "validation" and cause.startswith(_UNKNOWN_SPLIT):
                return None
            if any(words in cause for words in _NO_ROWS):
                raise UserError(f"{key}: the {split} split has no rows") from error
            raise UserError(f"{key}: cannot load the {split} split: {cause}") from error
        return cast(datasets.Dataset, loaded)

    def _options(self, builder: datasets.DatasetBuilder) -> dict[str, Any]:
        """Options that keep the CSV reader of `datasets` from guessing the types of columns."""
        if not isinstance(builder, Csv) or builder.info.features:
            return {}
        columns = [*self._config.text, *value_columns(self._config)]
        return {"converters": dict.fromkeys(columns, str), "keep_default_na": False, "na_values": [""]}

    def _batches(self, split: str, rows: datasets.Dataset) -> Iterator[pa.RecordBatch]:
        wanted = Wanted(tuple(self._config.text), tuple(value_columns(self._config)))
        names = _class_names(rows)
        used = rows.select_columns(wanted.names).with_format("arrow")
        for start in range(0, len(used), _ROWS_AT_A_TIME):
            table = cast(pa.Table, used[start : start + _ROWS_AT_A_TIME])

            def place(row: int, start: int = start) -> str:
                return f"{self._config.key}: {split} row {start + row} (from 0)"

            yield wanted.batch(
                [
                    wanted.arrow_column(name, table.column(name).combine_chunks(), names.get(name), place)
                    for name in wanted.names
                ]
            )


def _text_files_of_folder(config: ExampleSetConfig, splits: Sequence[str]) -> ExampleSetConfig | None:
    """`config` with the CSV or JSON files of its folder; None for any other source, which `datasets` reads.

    `datasets` would guess the types of values, and take the first column for row numbers where rows have a field more
    than the header. It finds the files, by name or as the folder's card says.
    """
    source = config.source
    if source.data_files or not Path(source.path).is_dir():
        return None
    try:
        with _quiet_datasets():
            builder = datasets.load_dataset_builder(source.path, source.name)
    except Exception:  # noqa: BLE001 - reading it tells what is wrong
        return None
    kind = next((name for name, of in (("csv", Csv), ("json", Json)) if isinstance(builder, of)), None)
    found = {str(split): list(map(str, files)) for split, files in (builder.config.data_files or {}).items()}
    if kind is None or builder.info.features or not _has_default_options(builder.config):
        return None
    if any(split not in found for split in splits if split != "validation"):
        return None
    return replace(config, source=source.model_copy(update={"path": kind, "data_files": found}))


def _has_default_options(config: Any) -> bool:
    """Whether the configuration of a builder of `datasets` says no more than which files there are."""
    own = {one.name for one in fields(config)} - {one.name for one in fields(datasets.BuilderConfig)}
    defaults = type(config)()
    return all(getattr(config, name) == getattr(defaults, name) for name in own)


def _class_names(rows: datasets.Dataset) -> ClassNames:
    features = rows.features.items()
    return {name: tuple(one.names) for name, one in features if isinstance(one, datasets.ClassLabel) and one.names}


def _unite(names: ClassNames, more: ClassNames) -> None:
    """Adds the class names of another file to `names`, behind those that are there."""
    for column, found in more.items():
        names[column] = tuple(dict.fromkeys([*names.get(column, ()), *found]))


def _written(key: str, split: str, folder: Path, batches: Iterator[pa.RecordBatch]) -> StringTable:
    table = write_string_table(folder / f"{split}.arrow", batches)
    if table is None:
        raise UserError(f"{key}: the {split} split has no rows")
    return table


def _check_columns(config: ExampleSetConfig, place: str, names: Sequence[str]) -> None:
    """Raises UserError if a column that `config` names is not among `names`; `place` is where these are."""
    split = config.source.split
    wanted = [(f"{config.key}.text", name) for name in config.text]
    wanted += [(f"{config.key_of(task)}.label", one.label) for task, one in config.tasks.items()]
    wanted += [(f"{config.key}.split.by", split.by), (f"{config.key}.split.stratify", split.stratify)]
    for key, column in wanted:
        if column is not None and column not in names:
            raise UserError(f"{key}: {place} has no column {column!r}{did_you_mean(column, names)}")


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
