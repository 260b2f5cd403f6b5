"""Which entry of the token cache a task had at its last start, so that data that has not changed is not read again.

An entry is named by what its rows hold, which only reading them all can tell. So a start leaves a memo beside the
entries with the name that it found. The memo's own name is a digest of the settings and of the state of the files: one
that changes in any way has no memo. The names of entries stay free of all this.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import datasets
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import DataConfig, TaskConfig
from mtl_dist.data.fingerprint import FileStates, timestamps_are_reliable
from mtl_dist.data.token_cache import settings_of
from mtl_dist.errors import root_cause

FOLDER = "starts"
"""In the cache folder."""


class StartupMemo:
    """The memo of one task, its settings and the present state of its files."""

    def __init__(
        self, root: Path, task: TaskConfig, data: DataConfig, tokenizer: PreTrainedTokenizerBase, state: FileStates
    ) -> None:
        # Another version of `datasets` may read the same files otherwise.
        decisive = [state, task.path, task.name, datasets.__version__, settings_of(task, data, tokenizer)]
        name = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.path = root / FOLDER / f"{name}.json"
        self.state = state
        self._settled = bool(state) and timestamps_are_reliable(state, time.time_ns())

    def recall(self, say: Callable[[str], None]) -> str | None:
        """The entry's name, or None; `say` is told of a memo that cannot be used."""
        try:
            entry = json.loads(self.path.read_text(encoding="utf-8"))["entry"]
            if not isinstance(entry, str):
                raise TypeError(f"{entry} is no name")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            say(f"{self.path} cannot be used ({root_cause(error)}); reading the data again")
            return None
        return entry

    def keep(self, entry: str, state_now: FileStates | None, say: Callable[[str], None]) -> None:
        """Notes `entry`, which was made of the files as they were when this memo was made.

        Not if they have changed since, or had only just changed before: then the next start reads them again. Nor does
        a run end because its cache takes no memo, as one that is read-only does not; `say` is told.
        """
        if not self._settled or state_now != self.state:
            return
        try:
            self.path.parent.mkdir(exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".writing-", dir=self.path.parent) as scratch:
                new = Path(scratch) / self.path.name
                new.write_text(json.dumps({"entry": entry}), encoding="utf-8")
                new.replace(self.path)
        except OSError as error:
            say(f"cannot write {self.path} ({root_cause(error)}): the next start reads all data again")
