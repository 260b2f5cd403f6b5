"""The data of a run: every task's splits, validated, tokenized once per machine and memory-mapped."""

import hashlib
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import example_sets
from mtl_dist.data.chunked import rows_where
from mtl_dist.data.collate import Batch, collate
from mtl_dist.data.preparation import fill_cache
from mtl_dist.data.token_cache import Entry, open_entry
from mtl_dist.data.token_files import NO_LABEL, Split
from mtl_dist.data.tokenization import load_tokenizer
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError
from mtl_dist.progress import show_progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExampleSet:
    """The tokenized rows of one source with one choice of text columns, with labels for every task that uses them."""

    name: str
    """Unique among the example sets of a run."""
    tasks: tuple[str, ...]
    """In the order of the recipe."""
    splits: dict[str, Split]
    """By name of the split; rows without a label for any task are not among them."""


@dataclass(frozen=True)
class TaskData:
    """One task: its class names in the order of their indices, and the numbers of its rows."""

    name: str
    labels: tuple[str, ...]
    examples: ExampleSet
    class_counts: dict[str, np.ndarray]
    """Number of rows of each class, [classes] int64, by split."""
    missing: dict[str, int]
    """Number of rows of the source without a label for this task, by split."""
    kind: str = ""
    """What its label column holds, for people to read, e.g. `whole numbers`."""

    def rows(self, split: str) -> int:
        """Number of rows of a split that have a label for this task; 0 where the split is absent."""
        return int(self.class_counts[split].sum()) if split in self.class_counts else 0


@dataclass(frozen=True)
class RowPool:
    """Training rows of an example set that are drawn together, and the tasks that a drawn row counts for.

    With `sampling.rows: shared` there is one pool for each example set, with `per_task` one for each task.
    """

    name: str
    """Name of the example set, or of the task where it is the only one of the pool."""
    examples: ExampleSet
    tasks: tuple[str, ...]
    rows: np.ndarray | None
    """Numbers of its rows in the training split, ascending, [n] int64; None for all of them."""

    @property
    def size(self) -> int:
        """Number of training rows."""
        return len(self.examples.splits["train"].lengths if self.rows is None else self.rows)


@dataclass(frozen=True)
class DataBundle:
    """The data of a run."""

    sets: tuple[ExampleSet, ...]
    """In the order of their first tasks in the recipe."""
    tasks: dict[str, TaskData]
    """In the order of the recipe."""
    pools: tuple[RowPool, ...]
    """In the order of their first tasks in the recipe."""
    tokenizer: PreTrainedTokenizerBase
    digest: str
    """SHA-256 of tokens and labels: the same in every process and on every machine that has the same data."""
    warnings: tuple[str, ...]
    """One line per finding about the data that is not an error."""

    @cached_property
    def vocabulary(self) -> np.ndarray:
        """Distinct token IDs that batches of any split can contain, sorted, int32."""
        of_splits = [split.vocabulary for one in self.sets for split in one.splits.values()]
        return reduce(np.union1d, of_splits, np.array([self.tokenizer.pad_token_id], dtype=np.int32))

    def training_batch(self, pool_ids: np.ndarray, rows: np.ndarray, with_tokens: bool = True) -> Batch:
        """Builds a batch of training rows: example i is row `rows[i]` of the example set of pool `pool_ids[i]`.

        It counts for the tasks of that pool whose label it has.
        """
        parts = [(pool.examples.splits["train"], pool.tasks) for pool in self.pools]
        return collate(parts, pool_ids, rows, list(self.tasks), int(self.tokenizer.pad_token_id), with_tokens)

    def evaluation_batch(self, examples: ExampleSet, split: str, rows: np.ndarray) -> Batch:
        """Builds a batch of `rows` of one split of an example set, for all its tasks."""
        ids = np.zeros(len(rows), dtype=np.int64)
        parts = [(examples.splits[split], examples.tasks)]
        return collate(parts, ids, rows, list(self.tasks), int(self.tokenizer.pad_token_id))


def prepare(recipe: Recipe, processes: ProcessGroup) -> DataBundle:
    """Opens the data of `recipe` in the cache; the first process of each machine tokenizes what is missing there.

    Every rank calls this. Raises UserError, the same on every rank, for data that cannot be read or is not valid (see
    `validation`), for a tokenizer that cannot be used (see `tokenization`) and for a cache that cannot be written.
    """
    with processes.raise_together():
        tokenizer = load_tokenizer(recipe.model)
    bar = processes.is_main and sys.stderr.isatty()
    progress = partial(show_progress, bar=bar, log=logger.info, first_line=True, last_line=False)
    with processes.raise_together():
        folders = fill_cache(recipe, tokenizer, progress) if processes.is_local_main else {}
    # Launchers number the ranks of a machine consecutively, so this is the first rank of this machine.
    folders = processes.all_gather(folders)[processes.rank - processes.local_rank]
    with processes.raise_together():
        entries = {name: _open(folder) for name, folder in folders.items()}
    return _bundle(recipe, tokenizer, entries)


def _bundle(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, entries: Mapping[str, Entry]) -> DataBundle:
    """The data of a run from the entries of its example sets."""
    configs = example_sets(recipe)
    sets = tuple(ExampleSet(one.name, tuple(one.tasks), entries[one.name].splits) for one in configs)
    tasks = {task: _task_data(task, one, entries[one.name]) for one in sets for task in one.tasks}
    return DataBundle(
        sets,
        {task: tasks[task] for task in recipe.tasks},
        row_pools(sets, recipe.sampling.rows),
        tokenizer=tokenizer,
        digest=_digest(entries),
        warnings=tuple(line for entry in entries.values() for line in entry.warnings),
    )


def _task_data(task: str, examples: ExampleSet, entry: Entry) -> TaskData:
    return TaskData(
        task, entry.labels[task], examples, entry.class_counts[task], entry.missing[task], entry.kinds[task]
    )


def _digest(entries: Mapping[str, Entry]) -> str:
    """SHA-256 of the tokens and labels of all entries."""
    digests = {
        name: [next(iter(entry.labels.values())) if len(entry.labels) == 1 else entry.labels, entry.digests]
        for name, entry in entries.items()
    }
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def row_pools(sets: Sequence[ExampleSet], sampling_rows: Literal["shared", "per_task"]) -> tuple[RowPool, ...]:
    """The pools that a run draws its training rows from."""
    pools = []
    for one in sets:
        if sampling_rows == "shared" or len(one.tasks) == 1:
            pools.append(RowPool(one.name if len(one.tasks) > 1 else one.tasks[0], one, one.tasks, None))
            continue
        for task in one.tasks:
            labelled = rows_where(one.splits["train"].labels[task] != NO_LABEL)
            pools.append(RowPool(task, one, (task,), labelled))
    return tuple(pools)


def _open(folder: Path) -> Entry:
    """Opens the entry in `folder`. Raises UserError if this rank cannot read it."""
    entry = open_entry(folder)
    if entry is None:
        raise UserError(
            f"data.cache_dir: {folder} cannot be read here; name a folder that all of a machine's ranks see"
        )
    return entry
