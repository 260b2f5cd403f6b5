"""The data of a run: every task's splits, validated, tokenized once per machine and memory-mapped."""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import ExampleSetConfig, example_sets
from mtl_dist.data.chunked import class_counts
from mtl_dist.data.collate import Batch, collate
from mtl_dist.data.labels import NO_LABEL
from mtl_dist.data.leaks import Leaks, find_leaks, open_leaks
from mtl_dist.data.preparation import fill_cache
from mtl_dist.data.token_cache import Entry, open_entry
from mtl_dist.data.token_files import Split
from mtl_dist.data.token_limits import TokenLimits
from mtl_dist.data.tokenization import load_tokenizer
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError, list_some
from mtl_dist.progress import Progress, show_progress

logger = logging.getLogger(__name__)

T = TypeVar("T")


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
    """Kind of the label column as log lines show it, e.g. `whole numbers`."""

    def rows(self, split: str) -> int:
        """Number of rows of a split that have a label for this task; 0 where the split is absent."""
        return int(self.class_counts[split].sum()) if split in self.class_counts else 0

    def summary(self) -> str:
        """Kind and number of classes, their rows in each split, and the rows without a label, in a line."""
        splits, none = list(self.missing), np.zeros(len(self.labels), dtype=np.int64)
        rows = np.stack([self.class_counts.get(split, none) for split in splits], axis=1).tolist()
        classes = [f"{name}: {'/'.join(map(str, counts))}" for name, counts in zip(self.labels, rows, strict=True)]
        line = (
            f"tasks.{self.name}: {len(classes)} classes, {self.kind}; rows in {'/'.join(splits)}: {list_some(classes)}"
        )
        missing = [str(self.missing[split]) for split in splits]
        return f"{line}; without a label: {'/'.join(missing)}" if any(self.missing.values()) else line

    def warnings(self) -> list[str]:
        """One line per finding about the classes' training rows."""
        train = self.class_counts["train"]
        absent = [name for name, count in zip(self.labels, train, strict=True) if not count]
        return [f"tasks.{self.name}: no training row has the label {list_some(absent)}"] if absent else []


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
    """Numbers of its rows in the training split, ascending, [n] of integers; None for all of them."""

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

    @cached_property
    def pool_of(self) -> dict[str, RowPool]:
        """The pool that each task's training rows are drawn from, by task."""
        return {task: pool for pool in self.pools for task in pool.tasks}

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


def prepare(recipe: Recipe, processes: ProcessGroup, limits: TokenLimits | None = None) -> DataBundle:
    """Opens the data of `recipe` in the cache; the first process of each machine tokenizes what is missing there.

    Every rank calls this. Raises UserError, the same on every rank, for data that cannot be read or is not valid (see
    `validation`), for a tokenizer that cannot be used (see `tokenization`), for a row that is beyond the `limits` of
    the encoder and for a cache that cannot be written.
    """
    limits = limits or TokenLimits()
    with processes.raise_together():
        tokenizer = load_tokenizer(recipe.model)
        pairs = any(len(one.text) == 2 for one in example_sets(recipe))
        limits.fit_tokenizer(tokenizer, pairs, f"model.encoder: {recipe.model.encoder}")
    bar = processes.is_main and sys.stderr.isatty()
    progress = partial(show_progress, bar=bar, log=logger.info, first_line=True, last_line=False)
    configs = example_sets(recipe)
    with processes.raise_together():
        folders = _fill_cache(recipe, tokenizer, progress) if processes.is_local_main else []
    # Launchers number the ranks of a machine consecutively, so this is the first rank of this machine.
    *folders, leaks_folder = processes.all_gather(folders)[processes.rank - processes.local_rank]
    with processes.raise_together():
        entries = [_open(folder, open_entry) for folder in folders]
        for one, entry in zip(configs, entries, strict=True):
            for split, rows in entry.splits.items():
                limits.check_split(f"{one.key}: {one.origin_of(split)}", rows, tokenizer)
        leaks = _open(leaks_folder, open_leaks)
        data = _bundle(recipe, tokenizer, configs, entries, leaks)
    if processes.is_main:
        for task in data.tasks.values():
            logger.info("%s", task.summary())
    return data


def _fill_cache(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> list[Path]:
    """Makes what the cache does not have; returns the folder of each example set, and that of the leaks among them."""
    folders = fill_cache(recipe, tokenizer, progress)
    return [*folders, find_leaks(folders[0].parent, [_open(folder, open_entry) for folder in folders])]


def _bundle(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    configs: Sequence[ExampleSetConfig],
    entries: Sequence[Entry],
    leaks: Leaks,
) -> DataBundle:
    """The data of a run from the entries of its example sets. Raises UserError for leaks that the recipe excludes."""
    handling = recipe.data.leaks
    lines = [leak.line(configs) for leak in leaks.found]
    if handling == "error" and lines:
        raise UserError(f"{lines[0]}; data.leaks: drop leaves out such training rows, and warn only counts them")
    sets = tuple(
        ExampleSet(one.name, tuple(one.tasks), entry.splits) for one, entry in zip(configs, entries, strict=True)
    )
    left_out = {one.name: rows for one, rows in zip(sets, leaks.rows, strict=True) if handling == "drop" and len(rows)}
    tasks = {
        task: _task_data(task, one, entry, left_out.get(one.name))
        for one, entry in zip(sets, entries, strict=True)
        for task in one.tasks
    }
    if handling == "drop":
        lines = [
            f"{one.key}: {len(left_out[one.name])} train rows are left out, whose texts are also in other splits"
            for one in configs
            if one.name in left_out
        ]
    warnings = [line for entry in entries for line in entry.warnings]
    warnings += [line for task in recipe.tasks for line in tasks[task].warnings()]
    return DataBundle(
        sets,
        {task: tasks[task] for task in recipe.tasks},
        row_pools(sets, recipe.sampling.rows, left_out),
        tokenizer=tokenizer,
        digest=_digest(sets, entries, left_out),
        warnings=(*warnings, *lines),
    )


def _task_data(task: str, examples: ExampleSet, entry: Entry, left_out: np.ndarray | None) -> TaskData:
    """A task of an example set of whose training rows `left_out` are not used. Raises UserError if none is used."""
    labels, counts, missing = entry.labels[task], entry.class_counts[task], entry.missing[task]
    if left_out is not None:
        found = examples.splits["train"].labels[task][left_out]
        counts = counts | {"train": counts["train"] - class_counts(found, len(labels))}
        missing = missing | {"train": missing["train"] - int(np.count_nonzero(found == NO_LABEL))}
        if not counts["train"].any():
            raise UserError(f"tasks.{task}: data.leaks: drop leaves no training row; all texts are in other splits too")
    return TaskData(task, labels, examples, counts, missing, entry.kinds[task])


def _digest(sets: Sequence[ExampleSet], entries: Sequence[Entry], left_out: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of the tokens and labels of all entries, and of the numbers of the rows that are left out."""
    digests: dict[str, list[Any]] = {}
    for one, entry in zip(sets, entries, strict=True):
        labels = entry.labels[one.tasks[0]] if len(one.tasks) == 1 else entry.labels
        digests[one.name] = [labels, entry.digests]
        if one.name in left_out:
            digests[one.name].append(hashlib.sha256(left_out[one.name].tobytes()).hexdigest())
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def row_pools(
    sets: Sequence[ExampleSet],
    sampling_rows: Literal["shared", "per_task"],
    left_out: Mapping[str, np.ndarray] | None = None,
) -> tuple[RowPool, ...]:
    """The pools that a run draws its training rows from; `left_out` are rows of example sets that are in none."""
    pools = []
    for one in sets:
        used = np.ones(len(one.splits["train"].lengths), dtype=bool)
        used[(left_out or {}).get(one.name, [])] = False
        if sampling_rows == "shared" or len(one.tasks) == 1:
            pools.append(RowPool(one.name if len(one.tasks) > 1 else one.tasks[0], one, one.tasks, _numbers(used)))
            continue
        for task in one.tasks:
            labelled = one.splits["train"].labels[task] != NO_LABEL
            pools.append(RowPool(task, one, (task,), _numbers(used & labelled)))
    return tuple(pools)


def _numbers(mask: np.ndarray) -> np.ndarray | None:
    """Numbers of the rows of a mask, of a type just large enough: there can be 10^7 of them. None for all rows."""
    return None if mask.all() else np.flatnonzero(mask).astype(np.min_scalar_type(len(mask)))


def _open(folder: Path, opened: Callable[[Path], T | None]) -> T:
    """Opens what is in `folder` of the cache. Raises UserError if this rank cannot read it."""
    content = opened(folder)
    if content is None:
        raise UserError(
            f"data.cache_dir: {folder} cannot be read here; name a folder that all of a machine's ranks see"
        )
    return content
