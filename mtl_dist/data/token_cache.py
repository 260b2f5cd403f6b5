"""Cache of tokenized tasks: one folder per task, named by a digest of its content, written completely or not at all."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import DataConfig, TaskConfig
from mtl_dist.data.token_files import BATCH_ROWS, Split, npy_chunks, open_split, write_split
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.data.validation import LabeledTask
from mtl_dist.environment import cache_root
from mtl_dist.errors import UserError
from mtl_dist.io import apply_umask
from mtl_dist.progress import Progress, no_progress

FORMAT = 3
"""Version of the file format; increased with every change of what is written, so that older entries are not used."""
META = "meta.json"


@dataclass(frozen=True)
class Entry:
    """One tokenized task in the cache."""

    labels: tuple[str, ...]
    """Class names in the order of their indices."""
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
        raise UserError(f"data.cache_dir: cannot write {root} ({error.strerror or error})") from error


def entry_name(
    task: TaskConfig, data: DataConfig, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, datasets.Dataset]
) -> str:
    """Digest of everything that determines the content of an entry: rows, tokenizer and settings.

    Independent of paths and dates, so that machines with the same data have the same entry names.
    """
    rows = {split: [str(rows.features), _digest_of_rows(rows)] for split, rows in splits.items()}
    inputs = settings_of(task, data, tokenizer) | {"rows": rows}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:32]


def settings_of(task: TaskConfig, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Everything but the rows that determines the content of an entry."""
    return {
        "format": FORMAT,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": tokenizer.special_tokens_map,
        "inputs": [tokenizer.model_input_names, tokenizer.truncation_side],
        "task": [task.text, task.label, task.labels, task.max_rows],
        "data": [data.max_length, data.empty_text],
    }


def _digest_of_rows(rows: datasets.Dataset) -> str:
    """Hash of the content of all columns, independent of how arrow divides them into chunks."""
    digest = xxhash.xxh3_128()
    for table in rows.iter(batch_size=10 * BATCH_ROWS):
        # Concatenated with an empty table, because that copies, which drops the offsets and foreign bytes of a slice.
        for batch in pa.concat_tables([table, table[:0]]).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def open_entry(folder: Path) -> Entry | None:
    """Opens the entry in `folder`; returns None if it, or a file of it, is missing, unreadable or of a wrong size."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if any((folder / file).stat().st_size != size for file, size in meta["files"].items()):
            return None
        splits = {split: open_split(folder / split) for split in meta["digests"]}
    except (OSError, ValueError):
        return None
    return Entry(tuple(meta["labels"]), splits, meta["digests"], tuple(meta["warnings"]))


def write_entry(
    folder: Path, key: str, task: LabeledTask, tokenize: ColumnTokenizer, progress: Progress = no_progress
) -> None:
    """Tokenizes `task` into `folder`, replacing a corrupt entry; `key` (`tasks.<name>`) begins messages.

    Writes to a temporary folder next to it, which is then renamed, so that no other process sees an incomplete entry.
    If another process has published the entry in the meantime, that one is kept. Raises UserError if the cache cannot
    be written.
    """
    digests, text_hashes = {}, {}
    root = folder.parent
    with _reporting_write_errors(root), tempfile.TemporaryDirectory(prefix=".writing-", dir=root) as scratch:
        # A subfolder, because the temporary folder itself is closed to the other users of a shared cache.
        new = Path(scratch) / folder.name
        new.mkdir()
        for split, rows in task.splits.items():
            text_hashes[split] = Path(scratch) / f"{split}.hashes.npy"
            digests[split] = write_split(new / split, f"{key}: {split}", rows, tokenize, text_hashes[split], progress)
        meta = {
            "labels": task.labels,
            "warnings": [*task.warnings, *_overlaps(text_hashes)],
            "digests": digests,
            "files": {file.name: file.stat().st_size for file in sorted(new.iterdir())},
        }
        (new / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        apply_umask(new)
        _publish(new, folder)


def _overlaps(text_hashes: Mapping[str, Path]) -> list[str]:
    """One warning per split that shares texts with the training split, from the .npy files of the rows' text hashes."""
    lines = []
    for split, path in text_hashes.items():
        if split == "train":
            continue
        texts, rows = np.unique(np.load(path, mmap_mode="r"), return_counts=True)
        shared = np.zeros(len(texts), dtype=bool)
        for chunk in npy_chunks(text_hashes["train"]):
            indices = np.searchsorted(texts, chunk).clip(max=len(texts) - 1)
            shared[indices[texts[indices] == chunk]] = True
        if shared.any():
            lines.append(f"{rows[shared].sum()} of {rows.sum()} {split} rows have a text that is also in train")
    return lines


def _publish(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`, unless that is an intact entry already."""
    try:
        new.rename(folder)
    except OSError:
        if open_entry(folder) is None:
            folder.rename(new.with_name("damaged"))
            new.rename(folder)
