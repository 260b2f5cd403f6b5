"""Tokenised tasks on disk: one folder a task, named by what it was made from, written whole or not at all."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from transformers import PreTrainedTokenizerBase

from mtl_dist.batches import Split
from mtl_dist.errors import UserError
from mtl_dist.recipe import DataConfig, TaskConfig
from mtl_dist.sources import Examples, TaskExamples
from mtl_dist.tokenizing import ColumnTokenizer

FORMAT = 1
"""Raised whenever the same input would be written otherwise, so that older entries are not used."""
META, ROWS, LENGTHS = "meta.json", ".arrow", ".lengths.npy"
BATCH_ROWS = 1000

Shown = Callable[[range, str], Iterator[int]]
"""`tokenizing.starts_shown` with the way of showing settled."""


@dataclass(frozen=True)
class Entry:
    """One tokenised task as it was found."""

    labels: tuple[str, ...]
    splits: dict[str, Split]
    digests: dict[str, str]
    """SHA-256 of each split's tokens and labels."""
    warnings: tuple[str, ...]


def make_root(data: DataConfig) -> Path:
    """The cache folder, made where it is missing. Raises UserError when it cannot be made."""
    root = Path(data.cache_dir or os.environ.get("MTL_DIST_CACHE") or "~/.cache/mtl_dist").expanduser()
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
    return root


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"data.cache_dir: cannot write {root} ({error.strerror or error})") from error


def entry_name(
    task: TaskConfig, data: DataConfig, tokenizer: PreTrainedTokenizerBase, splits: Mapping[str, datasets.Dataset]
) -> str:
    """Digest of all that decides what an entry holds: the columns' content, the tokenizer and the settings.

    It has no paths or dates in it, so that machines with the same data have the same entries.
    """
    decisive = {
        "format": FORMAT,
        "rows": {split: [str(rows.features), _content(rows)] for split, rows in splits.items()},
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": tokenizer.special_tokens_map,
        "inputs": [tokenizer.model_input_names, tokenizer.truncation_side],
        "task": [task.text, task.label, task.labels, task.max_rows],
        "data": [data.max_length, data.empty_text],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _content(rows: datasets.Dataset) -> str:
    digest = xxhash.xxh3_128()
    for table in rows.iter(batch_size=10 * BATCH_ROWS):
        # Joined with nothing, for joining copies and so drops what slicing leaves behind: offsets, bytes of other rows.
        for batch in pa.concat_tables([table, table[:0]]).combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def open_entry(folder: Path) -> Entry | None:
    """The entry in `folder`; None if there is none or a file of it is missing, unreadable or of another size."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        if any((folder / file).stat().st_size != size for file, size in meta["files"].items()):
            return None
        splits = {split: open_split(folder / split) for split in meta["digests"]}
    except (OSError, ValueError):
        return None
    return Entry(tuple(meta["labels"]), splits, meta["digests"], tuple(meta["warnings"]))


def open_split(stem: Path) -> Split:
    """A split that `write_split` wrote, memory-mapped."""
    return Split(
        datasets.Dataset.from_file(f"{stem}{ROWS}").with_format("arrow"),
        np.load(f"{stem}{LENGTHS}", mmap_mode="r"),
    )


def write_entry(folder: Path, key: str, examples: TaskExamples, tokenize: ColumnTokenizer, shown: Shown) -> None:
    """Tokenises `examples` into `folder`, in place of a damaged entry if one is there; `key` is for messages.

    Everything is written to a folder beside it that then takes its name, so that nobody sees half an entry; where
    another machine was faster, its entry stays. Raises UserError when the cache cannot be written.
    """
    digests, hashes = {}, {}
    with _writing(folder.parent), tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as scratch:
        # A folder within, because a temporary folder is closed to the other users of a shared cache.
        new = Path(scratch) / folder.name
        new.mkdir()
        for split, rows in examples.splits.items():
            digests[split], hashes[split] = write_split(new / split, f"{key}: {split}", rows, tokenize, shown)
        meta = {
            "labels": examples.labels,
            "warnings": [*examples.warnings, *_overlaps(hashes)],
            "digests": digests,
            "files": {file.name: file.stat().st_size for file in sorted(new.iterdir())},
        }
        (new / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        _publish(new, folder)


def write_split(
    stem: Path, place: str, examples: Examples, tokenize: ColumnTokenizer, shown: Shown
) -> tuple[str, np.ndarray]:
    """Writes one split to files whose names begin with `stem`; `place` is for messages.

    Returns the SHA-256 of its content and a 64-bit hash of each row's text.
    """
    digest = hashlib.sha256()
    lengths, hashes = [], []
    with ExitStack() as files:
        sink = files.enter_context(pa.OSFile(f"{stem}{ROWS}", "wb"))
        writer = None
        for start in shown(range(0, len(examples.rows), BATCH_ROWS), f"{place}: tokenising"):
            rows = examples.rows[start : start + BATCH_ROWS]
            tokens, texts = tokenize(examples.columns[rows])
            batch = pa.record_batch(tokens | {"label": examples.labels[start : start + BATCH_ROWS], "row": rows})
            writer = writer or files.enter_context(pa.ipc.new_stream(sink, batch.schema))
            writer.write_batch(batch)
            lengths.append(batch["input_ids"].value_lengths().to_numpy())
            hashes.append(texts)
            if not lengths[-1].all():
                raise UserError(
                    f"{place} row {rows[lengths[-1].argmin()]} (from 0): the tokenizer makes no token of it"
                )
            for column in batch.columns:
                digest.update((column.flatten() if pa.types.is_list(column.type) else column).to_numpy().tobytes())
    all_lengths = np.concatenate(lengths)
    digest.update(all_lengths.tobytes())
    np.save(f"{stem}{LENGTHS}", all_lengths)
    return digest.hexdigest(), np.concatenate(hashes)


def _overlaps(hashes: Mapping[str, np.ndarray]) -> list[str]:
    """A line for each split that shares texts with the training split."""
    shared = {split: int(np.isin(of, hashes["train"]).sum()) for split, of in hashes.items() if split != "train"}
    return [
        f"{count} of {len(hashes[split])} {split} rows have a text that is also in train"
        for split, count in shared.items()
        if count
    ]


def _publish(new: Path, folder: Path) -> None:
    try:
        new.rename(folder)
    except OSError:
        if open_entry(folder) is None:
            folder.rename(new.with_name("damaged"))
            new.rename(folder)
