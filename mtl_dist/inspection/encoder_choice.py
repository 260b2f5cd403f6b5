"""The encoder that a new recipe starts from: one that is on this machine, if there is any."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CacheNotFound, scan_cache_dir, try_to_load_from_cache
from transformers import PreTrainedTokenizerBase

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.data.tokenization import load_tokenizer
from mtl_dist.errors import UserError
from mtl_dist.models.encoder import encoder_skeleton, find_encoder_layout, load_encoder_config, num_positions

DEFAULT = "roberta-base"
TYPES = (
    *("bert", "roberta", "xlm-roberta", "distilbert", "deberta", "deberta-v2", "mpnet", "electra", "modernbert"),
    *("camembert", "rembert"),
)
"""Model types that are taken from the cache of the hub without being asked for."""
_WEIGHTS = "model.safetensors"
_SMALL_HIDDEN = 512


@dataclass(frozen=True)
class EncoderChoice:
    """An encoder, and what the settings of a recipe depend on."""

    name: str
    """Folder or hub name, as it stands in the recipe."""
    why: str
    blocks: int = 12
    positions: int | None = 512
    """Most tokens of a text; None for no limit."""
    small: bool = False
    """Whether the encoder is a small one, which takes higher learning rates."""
    pooling: str = "first_token"
    tokenizer: PreTrainedTokenizerBase | None = None
    """The encoder's tokenizer; None for an encoder that is not on this machine."""


def choose_encoder(asked: str | None, folders: Sequence[Path]) -> EncoderChoice:
    """The encoder `asked` for, else the first of `folders` that is one, else one in the hub's cache, else DEFAULT.

    Nothing is downloaded. Raises UserError for an encoder asked for that cannot be used.
    """
    if asked is not None:
        if Path(asked).expanduser().is_dir():
            return _examined(asked, str(Path(asked).expanduser()), "given by --encoder")
        if asked.startswith((".", "/", "~")) or asked.count("/") > 1:
            raise UserError(f"--encoder: there is no folder {asked}")
        if (cached := _snapshot(asked)) is not None:
            return _examined(asked, str(cached), "given by --encoder")
        return EncoderChoice(asked, "given by --encoder; the first start downloads it")
    for folder in folders:
        if (folder / _WEIGHTS).is_file() and (folder / "config.json").is_file():
            return _examined(str(folder), str(folder), "that of the quickstart")
    for name in _cached():
        if (cached := _snapshot(name)) is not None:
            return _examined(name, str(cached), "the one last used in the cache of the Hugging Face hub")
    return EncoderChoice(
        DEFAULT,
        "none is on this machine; the first start downloads this one (`mtl-dist quickstart DIR` gets a small one)",
    )


def _cached() -> list[str]:
    """Names of encoders in the cache of the hub, the last used first."""
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repository in repositories:
        for revision in repository.revisions:
            folder = revision.snapshot_path
            usable = repository.repo_type == "model" and "main" in revision.refs and (folder / _WEIGHTS).is_file()
            if usable and _json(folder / "config.json").get("model_type") in TYPES:
                found.append((-repository.last_accessed, repository.repo_id))
    return [name for _, name in sorted(found)]


def _snapshot(name: str) -> Path | None:
    """Folder of an encoder in the cache of the hub, from which it loads without a look at the network."""
    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _examined(name: str, source: str, why: str) -> EncoderChoice:
    """The choice of an encoder on this machine. Raises UserError for one that cannot be trained."""
    model = ModelConfig(encoder=source)
    config = load_encoder_config(model)
    skeleton = encoder_skeleton(config)
    layout = find_encoder_layout(skeleton)
    return EncoderChoice(
        name,
        f"{why} ({config.model_type}, {layout.num_blocks} blocks)",
        layout.num_blocks,
        num_positions(skeleton),
        skeleton.config.hidden_size <= _SMALL_HIDDEN,
        _pooling(source),
        load_tokenizer(model),
    )


def _pooling(source: str) -> str:
    """How the encoder was trained to be pooled, by the files of sentence-transformers, or the quickstart's manifest."""
    config = Path(source) / "1_Pooling" / "config.json"
    of_quickstart = (Path(source).parent / "manifest.json").is_file()
    return "mean" if _json(config).get("pooling_mode_mean_tokens") or of_quickstart else "first_token"


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
