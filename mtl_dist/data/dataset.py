"""The data of a run: every task's splits, checked, tokenised once per machine and memory-mapped."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import EvaluationConfig, Recipe
from mtl_dist.data.collate import Batch, Split, collate
from mtl_dist.data.fingerprint import files_state, rows_state
from mtl_dist.data.sources import check_rows, load_rows
from mtl_dist.data.startup_memo import StartupMemo
from mtl_dist.data.token_cache import Entry, entry_name, make_root, open_entry, write_entry
from mtl_dist.data.tokenization import ColumnTokenizer, load_tokenizer, with_progress
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.errors import UserError


@dataclass(frozen=True)
class TaskData:
    """One task: its classes in order and its tokenised splits by name."""

    name: str
    labels: tuple[str, ...]
    splits: dict[str, Split]


@dataclass(frozen=True)
class DataBundle:
    """All tasks of a run, in the recipe's order."""

    tasks: dict[str, TaskData]
    tokenizer: PreTrainedTokenizerBase
    digest: str
    """SHA-256 of tokens and labels: the same on every process and machine that has the same data."""
    warnings: tuple[str, ...]
    """Lines about the data, one finding each."""

    @cached_property
    def vocabulary(self) -> np.ndarray:
        """The token ids that a batch of any split can have, sorted, int32."""
        of_rows = [split.vocabulary for task in self.tasks.values() for split in task.splits.values()]
        return reduce(np.union1d, of_rows, np.array([self.tokenizer.pad_token_id], dtype=np.int32))

    @cached_property
    def _splits(self) -> dict[str, dict[str, Split]]:
        """The tasks' splits by split, then task."""
        names = {split for task in self.tasks.values() for split in task.splits}
        return {split: {name: task.splits[split] for name, task in self.tasks.items()} for split in names}

    def batch(self, split: str, task_ids: np.ndarray, rows: np.ndarray, with_tokens: bool = True) -> Batch:
        """Examples of `split` in the given order: row `rows[i]` of the task with index `task_ids[i]` in the recipe."""
        return collate(self._splits[split], task_ids, rows, int(self.tokenizer.pad_token_id), with_tokens)


def prepare(recipe: Recipe, processes: ProcessGroup, say: Callable[[str], None]) -> DataBundle:
    """The data of `recipe`, from the cache or tokenised now by the first process of each machine.

    Every rank calls this; `say` takes lines for the person who watches. Raises UserError, the same on every rank, for
    data that cannot be read or breaks a rule (see `sources`), for a tokenizer that cannot be used (see `tokenizing`)
    and for a cache folder that cannot be written.
    """
    tokenizer = processes.together(lambda: load_tokenizer(recipe.model))
    bar = processes.is_main and sys.stderr.isatty()
    folders = processes.together(lambda: _fill_cache(recipe, tokenizer, bar, say) if processes.is_local_main else {})
    # Launchers number the ranks of a machine in a row, so this is the first of its own machine.
    folders = processes.all_gather(folders)[processes.rank - processes.local_rank]
    entries = processes.together(lambda: {name: _open(folder) for name, folder in folders.items()})
    digests = {name: [entry.labels, entry.digests] for name, entry in entries.items()}
    return DataBundle(
        tasks={name: TaskData(name, entry.labels, entry.splits) for name, entry in entries.items()},
        tokenizer=tokenizer,
        digest=hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest(),
        warnings=tuple(f"tasks.{name}: {line}" for name, entry in entries.items() for line in entry.warnings),
    )


def split_names(evaluation: EvaluationConfig) -> list[str]:
    """The splits that a run reads."""
    return ["train", *(["validation"] if evaluation.split == "validation" else []), "test"]


def _fill_cache(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, bar: bool, say: Callable[[str], None]
) -> dict[str, Path]:
    """Sees to it that the cache has every task; returns their folders."""
    root = make_root(recipe.data)
    names = split_names(recipe.evaluation)
    folders, missing, memos = {}, {}, {}
    # All tasks are checked before the first is tokenised, which can take long.
    for name, task in recipe.tasks.items():
        key = f"tasks.{name}"
        tokenize = ColumnTokenizer(tokenizer, task.text, recipe.data.max_length)
        state, splits = files_state(task, names), None
        if state is None:
            splits = {split: load_rows(key, task, split) for split in names}
            state = rows_state(splits)
        memo = StartupMemo(root, task, recipe.data, tokenizer, state)
        known = memo.recall(say)
        if known is not None and open_entry(root / known) is not None:
            folders[name] = root / known
            continue
        splits = splits or {split: load_rows(key, task, split) for split in names}
        folders[name] = root / entry_name(task, recipe.data, tokenizer, splits)
        memos[name] = memo, files_state(task, names) or rows_state(splits)
        if open_entry(folders[name]) is None:
            if folders[name].exists():
                say(f"{key}: {folders[name]} is damaged; tokenising again")
            missing[name] = check_rows(key, task, splits, recipe.data.empty_text), tokenize
    for name, (examples, tokenize) in missing.items():
        write_entry(folders[name], f"tasks.{name}", examples, tokenize, partial(with_progress, bar=bar, say=say))
    for name, (memo, state) in memos.items():
        memo.keep(folders[name].name, state, say)
    return folders


def _open(folder: Path) -> Entry:
    entry = open_entry(folder)
    if entry is None:
        raise UserError(
            f"data.cache_dir: {folder} cannot be read here; name a folder that all of a machine's ranks see"
        )
    return entry
