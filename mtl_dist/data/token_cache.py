"""Cache of tokenized example sets: folders named by a digest of their content, written completely or not at all."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import DataConfig
from mtl_dist.config.sources import ExampleSetConfig
from mtl_dist.data.sources import SourceTables
from mtl_dist.data.temporary_folder import temporary_folder
from mtl_dist.data.token_files import Split, open_split, write_split
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.data.validation import LabeledSet
from mtl_dist.environment import CACHE_VARIABLE, cache_root
from mtl_dist.errors import UserError
from mtl_dist.io import apply_umask
from mtl_dist.progress import Progress, no_progress

FORMAT = 4
"""Version of the file format; increased with every change of what is written, so that older entries are not used."""
META = "meta.json"


@dataclass(frozen=True)
class Entry:
    """One tokenized example set in the cache."""

    name: str
    """Name of its folder, which identifies its content."""
    labels: dict[str, tuple[str, ...]]
    """Class names in the order of their indices, by task."""
    kinds: dict[str, str]
    """What the label column of each task holds; see `LabelClasses.kind`."""
    class_counts: dict[str, dict[str, np.ndarray]]
    """Number of rows of each class, [classes] int64, by task and split."""
    missing: dict[str, dict[str, int]]
    """Number of rows without a label, by task and split."""
    splits: dict[str, Split]
    digests: dict[str, str]
    """SHA-256 of each split's tokens and labels."""
    warnings: tuple[str, ...]


def make_root(data: DataConfig) -> Path:
    """Creates the cache folder if it does not exist, and returns it. Raises UserError if it cannot be created."""
    root = cache_root(data.cache_dir)
    with _reporting_write_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def _reporting_write_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"data.cache_dir: cannot write {root} ({reason}); name a folder there, or by {CACHE_VARIABLE}"
        ) from error


def entry_name(
    config: ExampleSetConfig,
    splits: Sequence[str],
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    source: SourceTables,
) -> str:
    """Digest of everything that determines the content of an entry: rows, tokenizer and settings.

    Independent of paths and dates, so that machines with the same data have the same entry names.
    """
    rows = {split: table.digest() for split, table in source.tables.items()}
    inputs = settings_of(config, splits, data, tokenizer) | {"rows": rows, "class names": source.class_names}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:32]


def settings_of(
    config: ExampleSetConfig, splits: Sequence[str], data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """Everything but the rows that determines the content of an entry; `splits` are those that a run wants."""
    tasks = [
        [name, task.label, None if task.labels is None else [*task.labels.items()], task.missing]
        for name, task in config.tasks.items()
    ]
    return {
        "format": FORMAT,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": tokenizer.special_tokens_map,
        "inputs": [tokenizer.model_input_names, tokenizer.truncation_side],
        "tasks": tasks,
        # The key is in the entry's warnings.
        "source": [config.key, list(config.text), config.source.max_rows, config.source.split.model_dump()],
        "other_text": list(config.other_text),
        "splits": list(splits),
        "data": [data.max_length, data.empty_text],
    }


def open_entry(folder: Path) -> Entry | None:
    """Opens the entry in `folder`; returns None if it, or a file of it, is missing, unreadable or of a wrong size."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if any((folder / file).stat().st_size != size for file, size in meta["files"].items()):
            return None
        splits = {split: open_split(folder / split, list(meta["labels"])) for split in meta["digests"]}
    except (OSError, ValueError):
        return None
    return Entry(
        folder.name,
        {task: tuple(names) for task, names in meta["labels"].items()},
        meta["kinds"],
        {
            task: {split: np.array(counts, dtype=np.int64) for split, counts in of_task.items()}
            for task, of_task in meta["class_counts"].items()
        },
        meta["missing"],
        splits,
        meta["digests"],
        tuple(meta["warnings"]),
    )


def write_entry(
    folder: Path, key: str, examples: LabeledSet, tokenize: ColumnTokenizer, progress: Progress = no_progress
) -> None:
    """Tokenizes `examples` into `folder`, replacing a corrupt entry; `key` of the recipe begins messages.

    Writes to a temporary folder next to it, which is then renamed, so that no other process sees an incomplete entry.
    If another process has published the entry in the meantime, that one is kept. Raises UserError if the cache cannot
    be written.
    """
    root = folder.parent
    with scratch_folder(root) as scratch:
        # A subfolder, because the temporary folder itself is closed to the other users of a shared cache.
        new = scratch / folder.name
        new.mkdir()
        digests = {
            split: write_split(new / split, key, rows, tokenize, progress) for split, rows in examples.splits.items()
        }
        meta = {
            "labels": {task: classes.names for task, classes in examples.classes.items()},
            "kinds": {task: classes.kind for task, classes in examples.classes.items()},
            "class_counts": {
                task: {split: counts.tolist() for split, counts in of_task.items()}
                for task, of_task in examples.class_counts.items()
            },
            "missing": examples.missing,
            "warnings": examples.warnings,
            "digests": digests,
            "files": {file.name: file.stat().st_size for file in sorted(new.iterdir())},
        }
        (new / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        apply_umask(new)
        publish(new, folder, lambda other: open_entry(other) is not None)


@contextmanager
def scratch_folder(root: Path) -> Iterator[Path]:
    """A temporary folder in the cache folder. Raises UserError if the cache cannot be written."""
    with _reporting_write_errors(root), temporary_folder(root) as scratch:
        yield scratch


def publish(new: Path, folder: Path, is_intact: Callable[[Path], bool]) -> None:
    """Renames `new` to `folder`, unless another process has put an intact one there already."""
    try:
        new.rename(folder)
    except OSError:
        if not is_intact(folder):
            folder.rename(new.with_name("damaged"))
            new.rename(folder)
