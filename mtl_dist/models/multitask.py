"""One shared encoder with a classification head for each task."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from mtl_dist.errors import UserError, root_cause
from mtl_dist.finite import find_nonfinite
from mtl_dist.models.encoder import drop_pooler, find_encoder_layout, has_remote_code, new_encoder
from mtl_dist.models.partial_forward import PartialForward
from mtl_dist.tasks.classification import classification_head
from mtl_dist.tensor_files import save_safetensors

WEIGHTS = "model.safetensors"
SETTINGS = "mtl_dist"
"""Key of this library's settings in the encoder's config.json."""
POOLINGS = ("first_token", "mean")
TaskRows = Mapping[str, Tensor]
"""Indices into a batch, int64, of the rows of each task."""


class PrefixState(NamedTuple):
    """States at one prefix depth, as `MultitaskTransformer.run_prefix` computes them."""

    depth: int
    """Depth k, from 1 on, is the input of block k; depth `num_blocks` is the sentence vectors before their dropout."""
    states: Tensor
    """Hidden states [n, tokens, hidden_size], or sentence vectors [n, hidden_size]."""


class SentenceTransformer(nn.Module):
    """An encoder that returns a vector for each text: the first token's last hidden state, or the mean over tokens."""

    def __init__(self, encoder: PreTrainedModel, pooling: str = "first_token", dropout: float = 0.1) -> None:
        """`pooling`: `first_token` or `mean`, else raises UserError. Removes the pooler of `encoder`."""
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError(f"pooling: {pooling!r} is not one of {', '.join(POOLINGS)}")
        self.encoder = drop_pooler(encoder)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Sentence vectors [n, hidden_size] of n texts. The arguments are [n, tokens], int64, as from a tokenizer.

        `first_token` needs rows that are padded on the right.
        """
        inputs = encoder_inputs(input_ids, attention_mask, token_type_ids)
        return self.dropout(self.pool(self.encoder(**inputs).last_hidden_state, attention_mask))

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Pools last hidden states [n, tokens, hidden_size] to sentence vectors [n, hidden_size], before dropout."""
        if self.pooling == "first_token":
            return hidden[:, 0]
        attended = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * attended).sum(dim=1) / attended.sum(dim=1)


class MultitaskTransformer(nn.Module):
    """A SentenceTransformer shared by classification heads: Linear, ReLU, Dropout, Linear.

    The initial weights of a head depend on `seed` and the task's name only, so that they do not change when other tasks
    are added or removed.
    """

    def __init__(
        self,
        sentence_transformer: SentenceTransformer,
        labels: Mapping[str, Sequence[str]],
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        """`labels`: the class names of each task, in order. Raises UserError for an encoder of unknown layout."""
        super().__init__()
        check_task_names(labels)
        encoder = sentence_transformer.encoder
        size, dtype = encoder.config.hidden_size, encoder.dtype
        self.sentence_transformer = sentence_transformer
        self.labels = {task: tuple(names) for task, names in labels.items()}
        self.layout = find_encoder_layout(encoder)
        self.partial_forward = PartialForward(encoder, self.layout)
        self.heads = nn.ModuleDict(
            {
                task: classification_head(size, len(names), dropout, f"{seed}/{task}", dtype)
                for task, names in self.labels.items()
            }
        )

    @overload
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        task: str,
        token_type_ids: Tensor | None = None,
        prefix: PrefixState | None = None,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        task: Sequence[str] | TaskRows,
        token_type_ids: Tensor | None = None,
        prefix: PrefixState | None = None,
    ) -> dict[str, Tensor]: ...
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        task: str | Sequence[str] | TaskRows,
        token_type_ids: Tensor | None = None,
        prefix: PrefixState | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """Logits of one task for all rows, or of each row's own task in one pass through the encoder.

        `task` is one task name for all rows, and the result is logits [n, num_labels]. Or it is a name for each row, or
        the rows of each task, possibly none; then the result is, for each of these tasks, logits [rows, num_labels] in
        the order of its rows. `input_ids`, `attention_mask` and `token_type_ids` are [n, tokens], int64. With `prefix`,
        the forward pass starts from these states. Raises KeyError for an unknown task, and ValueError if the number of
        names is not n.
        """
        if prefix is None:
            vectors = self.sentence_transformer(input_ids, attention_mask, token_type_ids)
        else:
            vectors = self._vectors_from(prefix, encoder_inputs(input_ids, attention_mask, token_type_ids))
        if isinstance(task, str):
            return self.heads[task](vectors)
        task_rows = task if isinstance(task, Mapping) else _rows_by_task(task, vectors)
        return {name: self.heads[name](vectors[rows]) for name, rows in task_rows.items()}

    def _vectors_from(self, prefix: PrefixState, inputs: dict[str, Tensor]) -> Tensor:
        depth, states = prefix
        sentences = self.sentence_transformer
        if depth < self.layout.num_blocks:
            hidden = self.partial_forward.from_depth(depth, states, inputs)
            states = sentences.pool(hidden, inputs["attention_mask"])
        return sentences.dropout(states)

    @torch.no_grad()
    def run_prefix(
        self, depths: Sequence[int], input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[int, Tensor]:
        """Computes the states at each of the prefix `depths`; see PrefixState. Does not change the training mode."""
        states = self.partial_forward.to_depths(depths, encoder_inputs(input_ids, attention_mask, token_type_ids))
        end = self.layout.num_blocks
        if end in states:
            states[end] = self.sentence_transformer.pool(states[end], attention_mask)
        return states

    def unit_modules(self) -> dict[str, list[nn.Module]]:
        """Modules of each unit in canonical order: embeddings, blocks from the input on, heads. See EncoderLayout."""
        encoder = self.sentence_transformer.encoder
        units = {unit: [encoder.get_submodule(n) for n in names] for unit, names in self.layout.units.items()}
        return units | {f"heads.{task}": [head] for task, head in self.heads.items()}

    def unit_parameters(self) -> dict[str, list[str]]:
        """Parameter names of each unit. Every parameter of the model is in exactly one unit."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        return {
            unit: [names[parameter] for module in modules for parameter in module.parameters()]
            for unit, modules in self.unit_modules().items()
        }

    def train_units(self, units: Sequence[str]) -> None:
        """Sets `units` and the dropout of sentence vectors to train mode and the rest to eval mode, without dropout.

        Without units, everything is in eval mode.
        """
        self.eval()
        self.sentence_transformer.dropout.train(bool(units))
        modules = self.unit_modules()
        for unit in units:
            for module in modules[unit]:
                module.train()

    def save_pretrained(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes config.json and model.safetensors, from which `transformers.AutoModel` can load the encoder.

        `weights`, by parameter name, replace the model's own, which may be sharded across ranks.
        """
        encoder = self.sentence_transformer.encoder
        config = copy.deepcopy(encoder.config)
        config.architectures = [type(encoder).__name__]
        config.dtype = encoder.dtype  # the encoder may have been cast after it was built
        settings = {
            "pooling": self.sentence_transformer.pooling,
            "dropout": self.sentence_transformer.dropout.p,
            "labels": self.labels,
        }
        setattr(config, SETTINGS, settings)
        config.save_pretrained(folder)
        whole = {**self.state_dict(), **(weights or {})}
        named = {self._name_in_file(name): weight.contiguous() for name, weight in whole.items()}
        save_safetensors(Path(folder) / WEIGHTS, named, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, revision: str | None = None, trust_remote_code: bool = False
    ) -> "MultitaskTransformer":
        """Loads a model that `save_pretrained` wrote, from a folder or the hub, in eval mode on the CPU.

        Raises UserError if the folder holds another kind of model, weights that are not finite, code or pickled
        weights, which are not opened, and OSError if there is no model.
        """
        source = str(name_or_folder)
        config = _load_config(source, revision, trust_remote_code)
        settings = getattr(config, SETTINGS, None)
        if settings is None:
            raise UserError(f"{source}: its config.json has no {SETTINGS!r}, so it is no MultitaskTransformer")
        encoder = new_encoder(config, cast(torch.dtype, config.dtype or torch.float32), trust_remote_code)
        sentences = SentenceTransformer(encoder, settings["pooling"], settings["dropout"])
        model = cls(sentences, settings["labels"], settings["dropout"])
        weights = _read_weights(source, revision)
        names = {name: model._name_in_file(name) for name in model.state_dict()}
        if missing := sorted(set(names.values()) - weights.keys()):
            raise UserError(f"{source}: {WEIGHTS} has no {missing[0]} ({len(missing)} missing)")
        model.load_state_dict({name: weights[in_file] for name, in_file in names.items()})
        if fault := find_nonfinite(model.named_parameters()):
            raise UserError(f"{source}: {fault}")
        return model.eval()

    def _name_in_file(self, name: str) -> str:
        """Name of a weight in model.safetensors, where the encoder's have the prefix of transformers' models."""
        prefix = self.sentence_transformer.encoder.base_model_prefix
        return name.replace("sentence_transformer.encoder.", f"{prefix}.", 1)


def _load_config(source: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """Loads the configuration of a saved model. Raises UserError if it needs code that is not trusted."""
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except ValueError as error:  # an unknown model type, or remote code
        raise UserError(f"{source}: cannot be loaded: {root_cause(error)}") from error
    if has_remote_code(config) and not trust_remote_code:
        raise UserError(f"{source}: its config.json names code of its own (auto_map); trust_remote_code=True allows it")
    return config


def _read_weights(source: str, revision: str | None) -> dict[str, Tensor]:
    """Reads the tensors of model.safetensors. Raises UserError if a folder has none, or if it is no such file."""
    if Path(source).is_dir() and not (Path(source) / WEIGHTS).is_file():
        raise UserError(f"{source} has no {WEIGHTS}; weights as pickle files are not read")
    try:
        return load_file(str(cached_file(source, WEIGHTS, revision=revision)))
    except SafetensorError as error:
        raise UserError(f"{source}: {WEIGHTS} cannot be read: {root_cause(error)}") from error


def encoder_inputs(
    input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
) -> dict[str, Tensor]:
    """Keyword arguments of an encoder's forward method."""
    types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
    return {"input_ids": input_ids, "attention_mask": attention_mask, **types}


def check_task_names(tasks: Iterable[str]) -> None:
    """Raises UserError for a task name that torch does not accept as a module name."""
    container = nn.ModuleDict()
    for task in tasks:
        if hasattr(container, task):
            raise UserError(f"tasks: {task!r} is a word that torch modules use themselves; choose another name")


def _rows_by_task(tasks: Sequence[str], vectors: Tensor) -> dict[str, Tensor]:
    """Row indices of each task, in the order in which the tasks first occur."""
    if len(tasks) != len(vectors):
        raise ValueError(f"{len(tasks)} names of tasks for {len(vectors)} rows")
    return {
        name: torch.tensor([row for row, task in enumerate(tasks) if task == name], device=vectors.device)
        for name in dict.fromkeys(tasks)
    }
