"""Reading, validation and tokenization of the example sets of a recipe that the cache does not have yet."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from mtl_dist.config.data_recipe import SPLITS
from mtl_dist.config.recipe import EvaluationConfig, Recipe
from mtl_dist.config.sources import ExampleSetConfig, example_sets
from mtl_dist.data.sources import open_source
from mtl_dist.data.startup_memo import StartupMemo
from mtl_dist.data.token_cache import entry_name, make_root, open_entry, scratch_folder, write_entry
from mtl_dist.data.tokenization import ColumnTokenizer
from mtl_dist.data.validation import LabeledSet, check_rows
from mtl_dist.progress import Progress

logger = logging.getLogger(__name__)


def split_names(evaluation: EvaluationConfig) -> tuple[str, ...]:
    """Names of the splits that a run reads, as far as its sources have them."""
    return ("train", "test") if evaluation.split == "test" else SPLITS


def fill_cache(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> list[Path]:
    """Tokenizes the example sets that the cache does not have; returns the folder of each set's entry.

    Raises UserError for data that cannot be read or is not valid, and for a cache that cannot be written.
    """
    root = make_root(recipe.data)
    with ExitStack() as scratch:
        # All sets are validated before the first is tokenized, which can take long.
        sets = [_Preparation(one, recipe, tokenizer, root) for one in example_sets(recipe)]
        for one in sets:
            one.validate(scratch)
        for one in sets:
            one.tokenize(progress)
    return [one.folder for one in sets]


class _Preparation:
    """Preparation of one example set, from its source to its entry in the cache."""

    folder: Path
    """Folder of the entry; known after `validate`."""

    def __init__(
        self, config: ExampleSetConfig, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, root: Path
    ) -> None:
        """Raises UserError if the source has no such files."""
        self.config = config
        self._data = recipe.data
        self._tokenizer = tokenizer
        self._root = root
        self._splits: Sequence[str] = split_names(recipe.evaluation)
        self._tokenize = ColumnTokenizer(tokenizer, list(config.text), recipe.data.max_length)
        self._source = open_source(config, self._splits)
        self._memo = StartupMemo(root, config, self._splits, recipe.data, tokenizer, self._source.state())
        self._is_known = False
        self._rows_on_disk = ExitStack()
        self._examples: LabeledSet | None = None

    def validate(self, scratch: ExitStack) -> None:
        """Finds the entry, or reads and validates what it is to be made from into a folder that `scratch` removes."""
        known = self._memo.load()
        self._is_known = known is not None and open_entry(self._root / known) is not None
        if known is not None and self._is_known:
            self.folder = self._root / known
            return
        scratch.enter_context(self._rows_on_disk)
        source = self._source.read(self._rows_on_disk.enter_context(scratch_folder(self._root)))
        self.folder = self._root / entry_name(self.config, self._splits, self._data, self._tokenizer, source)
        if open_entry(self.folder) is None:
            if self.folder.exists():
                logger.info(f"{self.config.key}: {self.folder} is corrupt; tokenizing again")
            self._examples = check_rows(self.config, source, self._splits, self._data.empty_text)

    def tokenize(self, progress: Progress) -> None:
        """Writes the entry if the cache does not have it, and the memo of it."""
        if self._examples is not None:
            write_entry(self.folder, self.config.key, self._examples, self._tokenize, progress)
        self._examples = None  # its rows are memory-mapped: NFS removes no file that is in use
        self._rows_on_disk.close()
        if not self._is_known:
            self._memo.save(self.folder.name, self._source.state())
