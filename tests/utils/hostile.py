"""Files that run code if they are trusted; the code creates a marker file."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "ran"


class Payload:
    """Object that creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Path]]:
        return Path.touch, (self.mark,)


def pickled(mark: Path) -> bytes:
    """A pickle that creates the file `mark` when it is loaded."""
    return pickle.dumps(Payload(mark))


def code(mark: Path) -> str:
    """Source of a module with custom encoder classes that creates the file `mark` when it is imported."""
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
    """Updates keys of a model's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def with_code(folder: Path, mark: Path, **changes: Any) -> None:
    """Adds custom code to a model's folder, to which its config.json refers."""
    (folder / "own.py").write_text(code(mark))
    change_config(folder, auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}, **changes)


def with_pickled_weights(folder: Path, mark: Path) -> None:
    """Replaces a model's weights by a pickle."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickled(mark))
