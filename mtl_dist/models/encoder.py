"""Hugging Face encoders: loading one, and its layout, which says where embeddings end and which blocks follow.

Found by structure rather than by name: the blocks are the `ModuleList` of modules of one class that holds the most
parameters. What is left must be a part whose place is known; everything else is refused, because a parameter in the
wrong unit would train, or stay frozen, in silence.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.errors import UserError, root_cause

_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)
"""What configurations call the dropout rates inside an encoder; those of heads that come with it are left alone."""

_Place = Literal["embeddings", "first block", "last block"]
_SPECIAL_PARTS: dict[str, dict[str, _Place]] = {
    "deberta": {"encoder.rel_embeddings": "embeddings"},
    "deberta-v2": {
        "encoder.rel_embeddings": "embeddings",
        "encoder.LayerNorm": "embeddings",
        "encoder.conv": "first block",
    },
    "electra": {"embeddings_project": "embeddings"},
    "modernbert": {"final_norm": "last block"},
    "mpnet": {"encoder.relative_attention_bias": "embeddings"},
}
"""Parts beside embeddings, blocks and pooler by model type, and the unit with which they freeze and thaw."""


@dataclass(frozen=True)
class EncoderLayout:
    """The units of an encoder from the input up: `embeddings`, `blocks.0`, `blocks.1` and so on."""

    units: dict[str, tuple[str, ...]]
    """Names of the modules of each unit, relative to the encoder."""

    @property
    def num_blocks(self) -> int:
        return len(self.units) - 1


def load_encoder_config(model: ModelConfig) -> PretrainedConfig:
    """The encoder's configuration with `model.encoder_dropout` in it; reads no weights.

    Raises UserError where there is none, where it needs code that `model.trust_remote_code` does not allow, and where
    a local folder has weights only as pickle files, which can run code when they are opened.
    """
    try:
        config = AutoConfig.from_pretrained(model.encoder, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # hub, file formats and remote code have their own classes of errors
        found = "" if Path(model.encoder).is_dir() else "no folder here, and "
        hint = "; model.trust_remote_code=true allows it" if "trust_remote_code" in str(error) else ""
        raise UserError(
            f"model.encoder: {model.encoder}: {found}cannot be loaded: {root_cause(error)}{hint}"
        ) from error
    if has_remote_code(config) and not model.trust_remote_code:
        raise UserError(
            f"model.encoder: {model.encoder}: its config.json names code of its own (auto_map);"
            " model.trust_remote_code=true allows it"
        )
    _check_weights(Path(model.encoder))
    if model.encoder_dropout is not None:
        names = [name for name in _DROPOUTS if hasattr(config, name)]
        if not names:
            raise UserError(f"model.encoder_dropout: {config.model_type} has no dropout rate that is known here")
        for name in names:
            setattr(config, name, model.encoder_dropout)
    return config


def _check_weights(folder: Path) -> None:
    """Raises UserError where `folder` is one and its weights, or some of them, are not safetensors."""
    if not folder.is_dir():
        return  # on the hub, where `use_safetensors` sees to it
    if not any(folder.glob("model*.safetensors")):
        raise UserError(f"model.encoder: {folder} has no model.safetensors; weights as pickle files are not read")
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.exists() else ()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"model.encoder: {index} is no index of weights ({type(error).__name__})") from error
    for shard in shards:
        if not str(shard).endswith(".safetensors"):
            raise UserError(f"model.encoder: {index} names {shard}; weights as pickle files are not read")


def has_remote_code(config: PretrainedConfig) -> bool:
    """Whether a model asks for code from its folder; transformers passes over that where it knows the type."""
    return bool(getattr(config, "auto_map", None))


def encoder_skeleton(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """The encoder without weights, on the meta device: for shapes and names, in milliseconds.

    Raises UserError where transformers cannot build one from `config`.
    """
    try:
        with torch.device("meta"), quiet_transformers():
            encoder = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # whatever a model's own code makes of its settings
        raise UserError(f"model.encoder: cannot build a {config.model_type!r} encoder: {root_cause(error)}") from error
    return drop_pooler(encoder)


def new_encoder(config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """The encoder with random weights, for weights that are loaded into it."""
    with quiet_transformers():
        encoder: Any = AutoModel.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    encoder.to(dtype)  # DeBERTa makes some of its own as float32
    return drop_pooler(encoder)


def load_encoder(model: ModelConfig, config: PretrainedConfig) -> PreTrainedModel:
    """The pretrained encoder on the CPU, without its pooler, which the sentence vector does not use.

    Raises UserError where the weights cannot be read or are incomplete.
    """
    dtype = getattr(torch, model.dtype)
    try:
        with quiet_transformers():
            encoder, info = AutoModel.from_pretrained(
                model.encoder,
                config=config,
                dtype=dtype,
                trust_remote_code=model.trust_remote_code,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # refused below, with a name
                output_loading_info=True,
            )
    except Exception as error:  # hub and file formats have their own classes of errors
        raise UserError(f"model.encoder: cannot load the weights of {model.encoder}: {root_cause(error)}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(f"model.encoder: {model.encoder} has no weights for {missing[0]} ({len(missing)} missing)")
    misshapen = sorted(name for name, *_ in info["mismatched_keys"])
    if misshapen:
        raise UserError(f"model.encoder: {model.encoder}: the shape of {misshapen[0]} is not that of its config.json")
    encoder.to(dtype)  # DeBERTa makes some of its own as float32
    return drop_pooler(encoder)


def drop_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """`encoder` itself, with its pooler taken out if it has one."""
    module: Any = encoder
    if getattr(module, "pooler", None) is not None:
        module.pooler = None
    return encoder


def find_encoder_layout(encoder: PreTrainedModel) -> EncoderLayout:
    """The units of `encoder`, which holds every parameter in exactly one. Raises UserError where that is not known."""
    config = encoder.config
    if config.is_encoder_decoder:
        raise _unknown_layout(config, "it has a decoder")
    lists = {name: module for name, module in encoder.named_modules() if _is_stack(module)}
    if not lists:
        raise _unknown_layout(config, "it has no list of equal blocks")
    stack = max(lists, key=lambda name: sum(parameter.numel() for parameter in lists[name].parameters()))
    num_blocks = len(lists[stack])
    num_layers = getattr(config, "num_hidden_layers", None)
    if num_layers is None:
        raise _unknown_layout(config, "its configuration has no num_hidden_layers")
    if num_blocks != num_layers:
        raise _unknown_layout(config, f"it has {num_layers} layers but {num_blocks} blocks; layers that share are one")
    units = {"embeddings": ["embeddings"]} | {f"blocks.{i}": [f"{stack}.{i}"] for i in range(num_blocks)}
    known = list(units)
    places = {"embeddings": known[0], "first block": known[1], "last block": known[-1]}
    for part, place in _SPECIAL_PARTS.get(config.model_type, {}).items():
        if any(name.startswith(f"{part}.") for name, _ in encoder.named_parameters()):
            units[places[place]].append(part)
    prefixes = tuple(f"{module}." for modules in units.values() for module in modules)
    unknown = [name for name, _ in encoder.named_parameters() if not name.startswith(prefixes)]
    if unknown:
        raise _unknown_layout(config, f"the place of {unknown[0]} is not known")
    if not hasattr(encoder, "embeddings"):
        raise _unknown_layout(config, "it has no embeddings")
    return EncoderLayout({unit: tuple(modules) for unit, modules in units.items()})


def check_max_length(encoder: PreTrainedModel, max_length: int) -> None:
    """Raises UserError where the encoder has fewer positions than `max_length` tokens."""
    table = next((module for name, module in encoder.named_modules() if name.endswith("position_embeddings")), None)
    if not isinstance(table, nn.Embedding):
        return  # relative or rotary positions have no table that could end
    # RoBERTa and its kin count positions from behind the padding index.
    positions = table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
    if max_length > positions:
        raise UserError(f"data.max_length: {max_length} is more than the {positions} positions of the encoder")


def _is_stack(module: nn.Module) -> TypeGuard[nn.ModuleList]:
    return isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1


def _unknown_layout(config: PretrainedConfig, why: str) -> UserError:
    return UserError(f"model.encoder: the layout of {config.model_type!r} is not understood: {why}")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' report of what it loaded off the screen; what matters of it is checked here."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()
