"""Loading of Hugging Face encoders, and their layout: which modules belong to the embeddings and to each block.

The layout is found by structure rather than by name: the blocks are the `ModuleList` of modules of one class that holds
the most parameters. Every other parameter must belong to a part whose unit is known; otherwise the encoder is refused,
because a parameter in the wrong unit would be trained, or stay frozen, unnoticed.
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
from mtl_dist.finite import find_nonfinite

_DROPOUTS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "dropout",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
)
"""Names of the dropout rates inside an encoder in configurations of transformers, without those of pretrained heads."""

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
"""For each model type, parts outside embeddings, blocks and pooler, and the unit that they are frozen with."""


@dataclass(frozen=True)
class EncoderLayout:
    """The units of an encoder.

    A *unit* is the smallest part of a model that can be frozen or unfrozen, and that has a learning rate of its own:
    the embeddings, one block, or the head of one task.
    """

    units: dict[str, tuple[str, ...]]
    """Module names, relative to the encoder, of each unit: `embeddings`, `blocks.0`, `blocks.1` and so on, in order."""

    @property
    def num_blocks(self) -> int:
        return len(self.units) - 1


def load_encoder_config(model: ModelConfig) -> PretrainedConfig:
    """Loads the encoder's configuration and sets `model.encoder_dropout` in it. Reads no weights.

    Raises UserError if there is none, if it needs code that `model.trust_remote_code` does not allow, and if a local
    folder has weights only as pickle files, which can run code when they are opened.
    """
    try:
        config = AutoConfig.from_pretrained(model.encoder, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # hub, file formats and remote code raise errors of many classes
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
    """Raises UserError if `folder` exists and any of its weights are not in safetensors files."""
    if not folder.is_dir():
        return  # on the hub: `use_safetensors` has the same effect there
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
    """Whether a model has code in its own repository. transformers ignores that code for model types that it knows."""
    return bool(getattr(config, "auto_map", None))


def encoder_skeleton(config: PretrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
    """Builds the encoder on the meta device, for parameter names and shapes; takes milliseconds.

    Raises UserError if transformers cannot build one from `config`.
    """
    try:
        with torch.device("meta"), quiet_transformers():
            encoder = AutoModel.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # the model's own code may raise anything
        raise UserError(f"model.encoder: cannot build a {config.model_type!r} encoder: {root_cause(error)}") from error
    return drop_pooler(encoder)


def new_encoder(config: PretrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """Builds the encoder with random weights, into which weights are loaded later."""
    with quiet_transformers():
        encoder: Any = AutoModel.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    encoder.to(dtype)  # DeBERTa creates some parameters as float32
    return drop_pooler(encoder)


def load_encoder(model: ModelConfig, config: PretrainedConfig) -> PreTrainedModel:
    """Loads the pretrained encoder to the CPU, without its pooler, which sentence vectors do not use.

    Raises UserError if the weights cannot be read, are incomplete or are not finite.
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
                ignore_mismatched_sizes=True,  # refused below, by name
                output_loading_info=True,
            )
    except Exception as error:  # hub and file formats raise errors of many classes
        raise UserError(f"model.encoder: cannot load the weights of {model.encoder}: {root_cause(error)}") from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise UserError(f"model.encoder: {model.encoder} has no weights for {missing[0]} ({len(missing)} missing)")
    misshapen = sorted(name for name, *_ in info["mismatched_keys"])
    if misshapen:
        raise UserError(f"model.encoder: {model.encoder}: the shape of {misshapen[0]} is not that of its config.json")
    encoder.to(dtype)  # DeBERTa creates some parameters as float32
    drop_pooler(encoder)
    if fault := find_nonfinite(encoder.named_parameters()):
        raise UserError(f"model.encoder: {model.encoder}: {fault}")
    return encoder


def drop_pooler(encoder: PreTrainedModel) -> PreTrainedModel:
    """Removes the pooler of `encoder`, if it has one, and returns `encoder`."""
    module: Any = encoder
    if getattr(module, "pooler", None) is not None:
        module.pooler = None
    return encoder


def find_encoder_layout(encoder: PreTrainedModel) -> EncoderLayout:
    """Assigns every parameter of `encoder` to exactly one unit. Raises UserError for a layout that is not known."""
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
    """Raises UserError if the encoder has fewer positions than `max_length` tokens."""
    positions = num_positions(encoder)
    if positions is not None and max_length > positions:
        raise UserError(f"data.max_length: {max_length} is more than the {positions} positions of the encoder")


def num_positions(encoder: PreTrainedModel) -> int | None:
    """Largest number of tokens in a text; None where no table limits it, as with relative and rotary positions."""
    table = next((module for name, module in encoder.named_modules() if name.endswith("position_embeddings")), None)
    if not isinstance(table, nn.Embedding):
        return None
    # RoBERTa and models derived from it number positions from padding_idx + 1.
    return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)


def _is_stack(module: nn.Module) -> TypeGuard[nn.ModuleList]:
    return isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1


def _unknown_layout(config: PretrainedConfig, why: str) -> UserError:
    return UserError(f"model.encoder: the layout of {config.model_type!r} is not understood: {why}")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers' report and progress bar while it loads weights; this module checks what was loaded."""
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
