"""Memo of the cache entry that an example set used at its last start, so that unchanged data is not read again.

The name of a cache entry is a digest of its rows, so computing it takes reading them all. A memo next to the entries
stores that name. The memo's own name is a digest of the settings and of the state of the source files: after any
change of a file, no memo is found.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import DataConfig
from mtl_dist.config.sources import ExampleSetConfig
from mtl_dist.data.fingerprint import FileStates, timestamps_are_reliable
from mtl_dist.data.temporary_folder import temporary_folder
from mtl_dist.data.token_cache import settings_of
from mtl_dist.errors import root_cause

logger = logging.getLogger(__name__)

FOLDER = "starts"
"""Folder of the memos in the cache folder."""


class StartupMemo:
    """Memo of one example set for its settings and the current state of its source files."""

    def __init__(
        self,
        root: Path,
        config: ExampleSetConfig,
        splits: Sequence[str],
        data: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        state: FileStates,
    ) -> None:
        source = config.source
        # Another version of `datasets` may read the same files differently.
        reading = [source.path, source.name, source.read.model_dump(), datasets.__version__]
        inputs = [state, reading, settings_of(config, splits, data, tokenizer)]
        name = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.path = root / FOLDER / f"{name}.json"
        self.state = state
        self._state_is_reliable = bool(state) and timestamps_are_reliable(state, time.time_ns())

    def load(self) -> str | None:
        """Name of the cache entry; None, with a log line, if the memo cannot be used, and None if there is none."""
        try:
            entry = json.loads(self.path.read_text(encoding="utf-8"))["entry"]
            if not isinstance(entry, str):
                raise TypeError(f"{entry} is no name")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.info(f"{self.path} cannot be used ({root_cause(error)}); reading the data again")
            return None
        return entry

    def save(self, entry: str, state_now: FileStates | None) -> None:
        """Stores the name `entry` of the cache entry that was made from the files in the state of this memo.

        Stores nothing if the files have changed since, or had changed too recently for their timestamps to be
        reliable; the next start then reads them again. A cache that cannot be written is logged and is no error.
        """
        if not self._state_is_reliable or state_now != self.state:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            with temporary_folder(self.path.parent) as scratch:
                new = scratch / self.path.name
                new.write_text(json.dumps({"entry": entry}), encoding="utf-8")
                new.replace(self.path)
        except OSError as error:
            logger.info(f"cannot write {self.path} ({root_cause(error)}): the next start reads all data again")
