"""Files that would run code if they were trusted: what runs leaves a file behind."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "ran"


class Payload:
    """Unpickling one touches a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.mark,)


def pickled(mark: Path) -> bytes:
    """A pickle that touches `mark`."""
    return pickle.dumps(Payload(mark))


def code(mark: Path) -> str:
    """A module that touches `mark` when it is imported, with classes of an encoder's own."""
    return (
        "from pathlib import Path\n"
        "from transformers import BertConfig, BertModel\n"
        f"Path({str(mark)!r}).touch()\n"
        "class OwnConfig(BertConfig):\n"
        "    model_type = 'own'\n"
        "class OwnModel(BertModel):\n"
        "    config_class = OwnConfig\n"
    )


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_code(folder: Path, mark: Path, **changes: Any) -> None:
    """Gives a model's folder code of its own, for which its config.json asks."""
    (folder / "own.py").write_text(code(mark))
    change_config(folder, auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}, **changes)


def with_pickled_weights(folder: Path, mark: Path) -> None:
    """Puts a pickle in place of a model's weights."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickled(mark))
