"""Texts of validation and test rows that are training texts too, within an example set and across those of a run.

All tasks share the encoder, so a text that any of them trains on is no longer new to the others. What is found is kept
in the cache, because it takes a pass over the text hashes of all rows.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtl_dist.config.sources import ExampleSetConfig
from mtl_dist.data.chunked import chunk_slices, concatenate_on_disk
from mtl_dist.data.token_cache import FORMAT, Entry, publish, scratch_folder

FOLDER = "leaks"
"""Folder in the cache folder."""
COUNTS = "counts.json"


@dataclass(frozen=True)
class Leak:
    """Rows of an evaluated split whose texts are also training texts of an example set."""

    examples: int
    """Position of the example set with the evaluated split."""
    split: str
    train: int
    """Position of the example set with the training rows."""
    shared: int
    """Number of rows of the split whose texts are also training texts."""
    rows: int
    """Number of rows of the split."""

    def line(self, sets: Sequence[ExampleSetConfig]) -> str:
        """What was found, for people to read."""
        where = "" if self.train == self.examples else f" of {sets[self.train].name}"
        key = sets[self.examples].key
        return f"{key}: {self.shared} of {self.rows} {self.split} rows have a text that is also in train{where}"


@dataclass(frozen=True)
class Leaks:
    """Leaks among the example sets of a run."""

    found: tuple[Leak, ...]
    rows: tuple[np.ndarray, ...]
    """For each example set, the training rows whose texts some set evaluates on, ascending, [n] int64."""


def find_leaks(root: Path, entries: Sequence[Entry]) -> Path:
    """Compares the texts of `entries`, unless the cache has the result; returns the folder of the result."""
    names = json.dumps([FORMAT, *(entry.name for entry in entries)])
    folder = root / FOLDER / hashlib.sha256(names.encode()).hexdigest()[:32]
    if open_leaks(folder) is not None:
        return folder
    with scratch_folder(root) as scratch:
        new = scratch / "new"
        new.mkdir()
        for index, rows in enumerate(_training_rows(entries)):
            np.save(new / f"{index}.npy", rows)
        found = [leak.__dict__ for leak in _leaks(entries)]
        (new / COUNTS).write_text(json.dumps({"sets": len(entries), "found": found}), encoding="utf-8")
        folder.parent.mkdir(exist_ok=True)
        publish(new, folder, lambda other: open_leaks(other) is not None)
    return folder


def open_leaks(folder: Path) -> Leaks | None:
    """Opens what `find_leaks` has written, memory-mapped; None if it is missing or unreadable."""
    try:
        content = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        rows = tuple(np.load(folder / f"{index}.npy", mmap_mode="r") for index in range(content["sets"]))
        return Leaks(tuple(Leak(**one) for one in content["found"]), rows)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _leaks(entries: Sequence[Entry]) -> Iterator[Leak]:
    for index, entry in enumerate(entries):
        for split, part in entry.splits.items():
            if split == "train":
                continue
            texts, rows = np.unique(part.text_hashes, return_counts=True)
            for other, with_train in enumerate(entries):
                shared = np.zeros(len(texts), dtype=bool)
                hashes = with_train.splits["train"].text_hashes
                for chunk in chunk_slices(len(hashes)):
                    at = _positions(texts, hashes[chunk])
                    shared[at[texts[at] == hashes[chunk]]] = True
                if shared.any():
                    yield Leak(index, split, other, int(rows[shared].sum()), int(rows.sum()))


def _training_rows(entries: Sequence[Entry]) -> Iterator[np.ndarray]:
    """For each entry, the training rows whose texts some entry evaluates on, ascending, [n] int64."""
    parts = [np.unique(part.text_hashes) for entry in entries for name, part in entry.splits.items() if name != "train"]
    texts = np.unique(np.concatenate(parts))
    for entry in entries:
        hashes = entry.splits["train"].text_hashes
        yield concatenate_on_disk(
            chunk.start + np.flatnonzero(texts[_positions(texts, hashes[chunk])] == hashes[chunk])
            for chunk in chunk_slices(len(hashes))
        )


def _positions(texts: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Where in the sorted `texts` each hash is, if it is there."""
    return np.searchsorted(texts, hashes).clip(max=len(texts) - 1)
