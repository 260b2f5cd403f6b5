"""The data of a run: every task's splits, validated, tokenized once per machine and memory-mapped."""

import hashlib
import json
import logging
import sys
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import EvaluationConfig, Recipe
from mtl_dist.data.collate import Batch, collate
from mtl_dist.data.fingerprint import files_state, rows_state
from mtl_dist.data.sources import load_rows
from mtl_dist.data.startup_memo import StartupMemo
from mtl_dist.data.token_cache import Entry, entry_name, make_root, open_entry, write_entry
from mtl_dist.data.token_files import Split
from mtl_dist.data.token_limits import TokenLimits
from mtl_dist.data.tokenization import ColumnTokenizer, load_tokenizer
from mtl_dist.data.validation import check_rows
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError
from mtl_dist.progress import Progress, show_progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """One task: its class names in the order of their indices, and its tokenized splits by name."""

    name: str
    labels: tuple[str, ...]
    splits: dict[str, Split]


@dataclass(frozen=True)
class DataBundle:
    """All tasks of a run, in the order of the recipe."""

    tasks: dict[str, TaskData]
    tokenizer: PreTrainedTokenizerBase
    digest: str
    """SHA-256 of tokens and labels: the same in every process and on every machine that has the same data."""
    warnings: tuple[str, ...]
    """One line per finding about the data that is not an error."""

    @cached_property
    def vocabulary(self) -> np.ndarray:
        """Distinct token IDs that batches of any split can contain, sorted, int32."""
        of_splits = [split.vocabulary for task in self.tasks.values() for split in task.splits.values()]
        return reduce(np.union1d, of_splits, np.array([self.tokenizer.pad_token_id], dtype=np.int32))

    @cached_property
    def _splits(self) -> dict[str, dict[str, Split]]:
        """Splits of all tasks, by name of the split, then by task."""
        names = {split for task in self.tasks.values() for split in task.splits}
        return {split: {name: task.splits[split] for name, task in self.tasks.items()} for split in names}

    def batch(self, split: str, task_ids: np.ndarray, rows: np.ndarray, with_tokens: bool = True) -> Batch:
        """Builds a batch of `split`: example i is row `rows[i]` of the task with index `task_ids[i]` in the recipe."""
        return collate(self._splits[split], task_ids, rows, int(self.tokenizer.pad_token_id), with_tokens)


def prepare(recipe: Recipe, processes: ProcessGroup, limits: TokenLimits | None = None) -> DataBundle:
    """Opens the data of `recipe` in the cache; the first process of each machine tokenizes what is missing there.

    Every rank calls this. Raises UserError, the same on every rank, for data that cannot be read or is not valid (see
    `validation`), for a tokenizer that cannot be used (see `tokenization`), for a row that is beyond the `limits` of
    the encoder and for a cache that cannot be written.
    """
    limits = limits or TokenLimits()
    with processes.raise_together():
        tokenizer = load_tokenizer(recipe.model)
        pairs = any(len(task.text) == 2 for task in recipe.tasks.values())
        limits.fit_tokenizer(tokenizer, pairs, f"model.encoder: {recipe.model.encoder}")
    bar = processes.is_main and sys.stderr.isatty()
    progress = partial(show_progress, bar=bar, log=logger.info, first_line=True, last_line=False)
    with processes.raise_together():
        folders = _fill_cache(recipe, tokenizer, progress) if processes.is_local_main else {}
    # Launchers number the ranks of a machine consecutively, so this is the first rank of this machine.
    folders = processes.all_gather(folders)[processes.rank - processes.local_rank]
    with processes.raise_together():
        entries = {name: _open(folder) for name, folder in folders.items()}
        for name, entry in entries.items():
            for split, rows in entry.splits.items():
                limits.check_split(f"tasks.{name}: {split}", rows, tokenizer)
    digests = {name: [entry.labels, entry.digests] for name, entry in entries.items()}
    return DataBundle(
        tasks={name: TaskData(name, entry.labels, entry.splits) for name, entry in entries.items()},
        tokenizer=tokenizer,
        digest=hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        warnings=tuple(f"tasks.{name}: {line}" for name, entry in entries.items() for line in entry.warnings),
    )


def split_names(evaluation: EvaluationConfig) -> list[str]:
    """Names of the splits that a run reads."""
    return ["train", *(["validation"] if evaluation.split == "validation" else []), "test"]


def _fill_cache(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> dict[str, Path]:
    """Tokenizes the tasks that the cache does not have; returns the folder of each task's entry."""
    root = make_root(recipe.data)
    names = split_names(recipe.evaluation)
    folders, missing, memos = {}, {}, {}
    # All tasks are validated before the first is tokenized, which can take long.
    for name, task in recipe.tasks.items():
        key = f"tasks.{name}"
        tokenize = ColumnTokenizer(tokenizer, task.text, recipe.data.max_length)
        state, splits = files_state(task, names), None
        if state is None:
            splits = {split: load_rows(key, task, split) for split in names}
            state = rows_state(splits)
        memo = StartupMemo(root, task, recipe.data, tokenizer, state)
        known = memo.load()
        if known is not None and open_entry(root / known) is not None:
            folders[name] = root / known
            continue
        splits = splits or {split: load_rows(key, task, split) for split in names}
        folders[name] = root / entry_name(task, recipe.data, tokenizer, splits)
        memos[name] = memo, files_state(task, names) or rows_state(splits)
        if open_entry(folders[name]) is None:
            if folders[name].exists():
                logger.info(f"{key}: {folders[name]} is corrupt; tokenizing again")
            missing[name] = check_rows(key, task, splits, recipe.data.empty_text), tokenize
    for name, (labeled, tokenize) in missing.items():
        write_entry(folders[name], f"tasks.{name}", labeled, tokenize, progress)
    for name, (memo, state) in memos.items():
        memo.save(folders[name].name, state)
    return folders


def _open(folder: Path) -> Entry:
    """Opens the entry in `folder`. Raises UserError if this rank cannot read it."""
    entry = open_entry(folder)
    if entry is None:
        raise UserError(
            f"data.cache_dir: {folder} cannot be read here; name a folder that all of a machine's ranks see"
        )
    return entry
