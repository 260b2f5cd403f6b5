"""Tokenised tasks on disk: one folder a task, named by what it was made from, written whole or not at all."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import DataConfig, TaskConfig
from mtl_dist.data.collate import Split
from mtl_dist.data.sources import LabeledSplit, LabeledTask
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.errors import UserError

FORMAT = 3
"""Raised whenever the same input would be written otherwise, so that older entries are not used."""
META, ROWS, LENGTHS, LABELS = "meta.json", ".arrow", ".lengths.npy", ".labels.npy"
HASHES, VOCABULARY = ".hashes.npy", ".vocabulary.npy"
BATCH_ROWS = 1000
"""Rows that are tokenised at a time; the digests depend on it."""
RECORD_BYTES = 1 << 25
"""Least size of a record batch but the last: opening a file costs time and memory for each that it has."""
READ_CHUNK = 1 << 18
"""Numbers of a file that are read at a time."""

ProgressDisplay = Callable[[range, str], Iterator[int]]
"""`tokenization.with_progress` with the way of showing settled."""


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
    """Digest of all that decides what an entry holds: the columns' content, the tokenizer and the settings.

    It has no paths or dates in it, so that machines with the same data have the same entries.
    """
    rows = {split: [str(rows.features), _content(rows)] for split, rows in splits.items()}
    decisive = settings_of(task, data, tokenizer) | {"rows": rows}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:32]


def settings_of(task: TaskConfig, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """All that decides what is written of given rows."""
    return {
        "format": FORMAT,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special_tokens": tokenizer.special_tokens_map,
        "inputs": [tokenizer.model_input_names, tokenizer.truncation_side],
        "task": [task.text, task.label, task.labels, task.max_rows],
        "data": [data.max_length, data.empty_text],
    }


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
        *(np.load(f"{stem}{kind}", mmap_mode="r") for kind in (LENGTHS, LABELS, HASHES, VOCABULARY)),
    )


def write_entry(
    folder: Path, key: str, examples: LabeledTask, tokenize: ColumnTokenizer, shown: ProgressDisplay
) -> None:
    """Tokenises `examples` into `folder`, in place of a damaged entry if one is there; `key` is for messages.

    Everything is written to a folder beside it that then takes its name, so that nobody sees half an entry; where
    another machine was faster, its entry stays. Raises UserError when the cache cannot be written.
    """
    digests, hashes = {}, {}
    with (
        _reporting_write_errors(folder.parent),
        tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as scratch,
    ):
        # A folder within, because a temporary folder is closed to the other users of a shared cache.
        new = Path(scratch) / folder.name
        new.mkdir()
        for split, rows in examples.splits.items():
            hashes[split] = Path(scratch) / f"{split}.hashes.npy"
            digests[split] = write_split(new / split, f"{key}: {split}", rows, tokenize, shown, hashes[split])
        meta = {
            "labels": examples.labels,
            "warnings": [*examples.warnings, *_overlaps(hashes)],
            "digests": digests,
            "files": {file.name: file.stat().st_size for file in sorted(new.iterdir())},
        }
        (new / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")
        _publish(new, folder)


def write_split(
    stem: Path, place: str, examples: LabeledSplit, tokenize: ColumnTokenizer, shown: ProgressDisplay, hashes: Path
) -> str:
    """Writes one split to files whose names begin with `stem`; `place` is for messages.

    Returns the SHA-256 of the split's content. A 64-bit hash of each row's text goes to the file `hashes`. However
    many rows there are, only some are in memory at a time.
    """
    digest = hashlib.sha256()
    vocabulary = _TokenIdSet()
    lengths, count = Path(f"{stem}{LENGTHS}"), len(examples.rows)
    with (
        _RecordBatchWriter(Path(f"{stem}{ROWS}")) as tokens_written,
        _npy_writer(lengths, np.int32, (count,)) as add_lengths,
        _npy_writer(Path(f"{stem}{LABELS}"), np.int64, (count,)) as add_labels,
        _npy_writer(Path(f"{stem}{HASHES}"), np.uint64, (count, 2)) as add_token_hashes,
        _npy_writer(hashes, np.uint64, (count,)) as add_hashes,
    ):
        for start in shown(range(0, len(examples.rows), BATCH_ROWS), f"{place}: tokenising"):
            rows = examples.rows[start : start + BATCH_ROWS]
            tokens, texts = tokenize(examples.columns[rows])
            batch = pa.record_batch(tokens | {"label": examples.labels[start : start + BATCH_ROWS], "row": rows})
            tokens_written.add(batch)
            vocabulary.add(batch["input_ids"].values.to_numpy())
            of_rows = batch["input_ids"].value_lengths().to_numpy()
            add_lengths(of_rows)
            add_labels(batch["label"].to_numpy())
            add_token_hashes(_token_hashes(batch))
            add_hashes(texts)
            if not of_rows.all():
                raise UserError(f"{place} row {rows[of_rows.argmin()]} (from 0): the tokenizer makes no token of it")
            for column in batch.columns:
                digest.update((column.flatten() if pa.types.is_list(column.type) else column).to_numpy().tobytes())
    ids = vocabulary.ids
    with _npy_writer(Path(f"{stem}{VOCABULARY}"), np.int32, ids.shape) as add_ids:
        add_ids(ids)
    for part in _npy_chunks(lengths):
        digest.update(part.tobytes())
    return digest.hexdigest()


def _token_hashes(batch: pa.RecordBatch) -> np.ndarray:
    """[rows, 2] uint64: 128 bits of each row's tokens and types, so that no two unlike texts ever share them."""
    names = [name for name in ("input_ids", "token_type_ids") if name in batch.schema.names]
    columns = [(batch[name].offsets.to_numpy(), batch[name].values.to_numpy()) for name in names]
    digests = []
    for row in range(len(batch)):
        parts = [values[offsets[row] : offsets[row + 1]].tobytes() for offsets, values in columns]
        digests.append(xxhash.xxh3_128_digest(b"".join(parts)))
    return np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)


class _TokenIdSet:
    """The token ids that have been met."""

    def __init__(self) -> None:
        self._met = np.zeros(1 << 15, dtype=bool)

    def add(self, ids: np.ndarray) -> None:
        size = int(ids.max(initial=0)) + 1
        if size > len(self._met):
            self._met = np.pad(self._met, (0, size - len(self._met)))
        self._met[ids] = True

    @property
    def ids(self) -> np.ndarray:
        """Sorted, int32."""
        return np.flatnonzero(self._met).astype(np.int32)


class _RecordBatchWriter:
    """An arrow stream that grows by rows and has them in record batches of RECORD_BYTES or more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = ExitStack()
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._waiting: list[pa.RecordBatch] = []
        self._bytes = 0

    def __enter__(self) -> Self:
        self._sink = self._files.enter_context(pa.OSFile(str(self._path), "wb"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        with self._files:
            if kind is None:
                self._write()

    def add(self, batch: pa.RecordBatch) -> None:
        self._waiting.append(batch)
        self._bytes += batch.nbytes
        if self._bytes >= RECORD_BYTES:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            batch = pa.concat_batches(self._waiting)
            self._writer = self._writer or self._files.enter_context(pa.ipc.new_stream(self._sink, batch.schema))
            self._writer.write_batch(batch)
            self._waiting, self._bytes = [], 0


@contextmanager
def _npy_writer(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
    """A .npy file of an array of this shape, and what adds the next rows to it.

    Not a mapped file: on a full disk, writing to one kills the process.
    """
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)

        def add(numbers: np.ndarray) -> None:
            file.write(numbers.astype(dtype, copy=False).tobytes())

        yield add


def _npy_chunks(path: Path) -> Iterator[np.ndarray]:
    """The numbers in a .npy file, some at a time."""
    numbers = np.load(path, mmap_mode="r")
    return (numbers[start : start + READ_CHUNK] for start in range(0, len(numbers), READ_CHUNK))


def _overlaps(hashes: Mapping[str, Path]) -> list[str]:
    """A line for each split that shares texts with the training split; `hashes` are files of the rows' hashes."""
    lines = []
    for split, path in hashes.items():
        if split == "train":
            continue
        texts, rows = np.unique(np.load(path, mmap_mode="r"), return_counts=True)
        shared = np.zeros(len(texts), dtype=bool)
        for part in _npy_chunks(hashes["train"]):
            at = np.searchsorted(texts, part).clip(max=len(texts) - 1)
            shared[at[texts[at] == part]] = True
        if shared.any():
            lines.append(f"{rows[shared].sum()} of {rows.sum()} {split} rows have a text that is also in train")
    return lines


def _publish(new: Path, folder: Path) -> None:
    try:
        new.rename(folder)
    except OSError:
        if open_entry(folder) is None:
            folder.rename(new.with_name("damaged"))
            new.rename(folder)
