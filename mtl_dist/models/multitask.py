"""One shared encoder with a head for each task."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast, overload

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from mtl_dist.errors import UserError, root_cause
from mtl_dist.models.encoder import drop_pooler, find_encoder_layout, has_remote_code, new_encoder
from mtl_dist.models.partial_forward import PartialForward
from mtl_dist.tasks.classification import classification_head

WEIGHTS = "model.safetensors"
SETTINGS = "mtl_dist"
"""Key of our settings in the encoder's own config.json."""
POOLINGS = ("first_token", "mean")
TaskRows = Mapping[str, Tensor]
"""For each task, the rows of a batch that are its own, int64."""


class PrefixState(NamedTuple):
    """States that `MultitaskTransformer.run_prefix` has computed at one depth, from which a forward pass continues."""

    depth: int
    states: Tensor


class SentenceTransformer(nn.Module):
    """An encoder that gives one vector for each text: the first token's last hidden state, or the mean over tokens."""

    def __init__(self, encoder: PreTrainedModel, pooling: str = "first_token", dropout: float = 0.1) -> None:
        """`pooling`: `first_token` or `mean`. Takes a pooler out of `encoder`; raises UserError for another pooling."""
        super().__init__()
        if pooling not in POOLINGS:
            raise UserError(f"pooling: {pooling!r} is not one of {', '.join(POOLINGS)}")
        self.encoder = drop_pooler(encoder)
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Sentence vectors [n, hidden_size] of n texts; the arguments are [n, tokens], int64, as tokenizers make them.

        Rows are padded on the right for `first_token`.
        """
        inputs = encoder_inputs(input_ids, attention_mask, token_type_ids)
        return self.dropout(self.pool(self.encoder(**inputs).last_hidden_state, attention_mask))

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Sentence vectors [n, hidden_size] of the last hidden states [n, tokens, hidden_size], before dropout."""
        if self.pooling == "first_token":
            return hidden[:, 0]
        attended = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * attended).sum(dim=1) / attended.sum(dim=1)


class MultitaskTransformer(nn.Module):
    """A SentenceTransformer shared by classification heads: Linear, ReLU, Dropout, Linear.

    Each head's first weights depend on `seed` and the task's name alone, so that another task more or less leaves
    them as they are.
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
        """Logits of one task, or of each row's own task in one pass through the encoder.

        `task` is a task's name for all rows, which gives logits [n, num_labels]; or a name for each row; or the rows
        of each task, maybe none. The latter two give, for each task named, logits [its rows, num_labels], its rows in
        their order. `input_ids`, `attention_mask` and `token_type_ids` are [n, tokens], int64. What the encoder's
        lower part gives, as from `run_prefix`, is not computed again where it comes as `prefix`. Raises KeyError for an
        unknown task, and ValueError for names that are not as many as rows.
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
        """What the encoder's part below each of `depths` gives, in the mode that its modules are in.

        Level k, at least 1, is the hidden states [n, tokens, hidden_size] that enter block k; depth `num_blocks` is
        the sentence vectors [n, hidden_size] before their dropout.
        """
        states = self.partial_forward.to_depths(depths, encoder_inputs(input_ids, attention_mask, token_type_ids))
        top = self.layout.num_blocks
        if top in states:
            states[top] = self.sentence_transformer.pool(states[top], attention_mask)
        return states

    def unit_modules(self) -> dict[str, list[nn.Module]]:
        """The modules of each unit in canonical order: embeddings, blocks upwards, heads; see `phases`."""
        encoder = self.sentence_transformer.encoder
        units = {unit: [encoder.get_submodule(n) for n in names] for unit, names in self.layout.units.items()}
        return units | {f"heads.{task}": [head] for task, head in self.heads.items()}

    def unit_parameters(self) -> dict[str, list[str]]:
        """Names of the parameters of each unit. Every parameter of the model is in exactly one."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        return {
            unit: [names[parameter] for module in modules for parameter in module.parameters()]
            for unit, modules in self.unit_modules().items()
        }

    def train_units(self, units: Sequence[str]) -> None:
        """Train mode for `units` and the sentence vector's dropout, eval mode for all else: frozen means no dropout."""
        self.eval()
        self.sentence_transformer.dropout.train(bool(units))
        modules = self.unit_modules()
        for unit in units:
            for module in modules[unit]:
                module.train()

    def save_pretrained(self, folder: str | Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes config.json and model.safetensors, from which `transformers.AutoModel` reads the encoder as well.

        `weights`, by parameter name, are written in place of the model's own, of which a rank may hold only parts.
        """
        encoder = self.sentence_transformer.encoder
        config = copy.deepcopy(encoder.config)
        config.architectures = [type(encoder).__name__]
        config.dtype = encoder.dtype  # the encoder may have been cast since it was made
        settings = {
            "pooling": self.sentence_transformer.pooling,
            "dropout": self.sentence_transformer.dropout.p,
            "labels": self.labels,
        }
        setattr(config, SETTINGS, settings)
        config.save_pretrained(folder)
        whole = {**self.state_dict(), **(weights or {})}
        named = {self._name_in_file(name): weight.contiguous() for name, weight in whole.items()}
        save_file(named, Path(folder) / WEIGHTS, metadata={"format": "pt"})

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, revision: str | None = None, trust_remote_code: bool = False
    ) -> "MultitaskTransformer":
        """The model that `save_pretrained` wrote into a folder or that was uploaded to the hub; in eval mode, on CPU.

        Raises UserError where the folder holds another kind of model, or code or pickled weights, neither of which is
        opened, and OSError where there is none.
        """
        source = str(name_or_folder)
        config = _config_of(source, revision, trust_remote_code)
        settings = getattr(config, SETTINGS, None)
        if settings is None:
            raise UserError(f"{source}: its config.json has no {SETTINGS!r}, so it is no MultitaskTransformer")
        encoder = new_encoder(config, cast(torch.dtype, config.dtype or torch.float32), trust_remote_code)
        sentences = SentenceTransformer(encoder, settings["pooling"], settings["dropout"])
        model = cls(sentences, settings["labels"], settings["dropout"])
        weights = _weights_of(source, revision)
        names = {name: model._name_in_file(name) for name in model.state_dict()}
        if missing := sorted(set(names.values()) - weights.keys()):
            raise UserError(f"{source}: {WEIGHTS} has no {missing[0]} ({len(missing)} missing)")
        model.load_state_dict({name: weights[in_file] for name, in_file in names.items()})
        return model.eval()

    def _name_in_file(self, name: str) -> str:
        """The encoder's weights carry the prefix by which transformers knows them in a model with heads."""
        prefix = self.sentence_transformer.encoder.base_model_prefix
        return name.replace("sentence_transformer.encoder.", f"{prefix}.", 1)


def _config_of(source: str, revision: str | None, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration of a saved model. Raises UserError where it needs code that is not trusted."""
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
    except ValueError as error:  # of an unknown type, or with code
        raise UserError(f"{source}: cannot be loaded: {root_cause(error)}") from error
    if has_remote_code(config) and not trust_remote_code:
        raise UserError(f"{source}: its config.json names code of its own (auto_map); trust_remote_code=True allows it")
    return config


def _weights_of(source: str, revision: str | None) -> dict[str, Tensor]:
    """The tensors of model.safetensors. Raises UserError where a folder lacks it, or it is no such file."""
    if Path(source).is_dir() and not (Path(source) / WEIGHTS).is_file():
        raise UserError(f"{source} has no {WEIGHTS}; weights as pickle files are not read")
    try:
        return load_file(str(cached_file(source, WEIGHTS, revision=revision)))
    except SafetensorError as error:
        raise UserError(f"{source}: {WEIGHTS} cannot be read: {root_cause(error)}") from error


def encoder_inputs(
    input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
) -> dict[str, Tensor]:
    """An encoder's arguments by name."""
    types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
    return {"input_ids": input_ids, "attention_mask": attention_mask, **types}


def check_task_names(tasks: Iterable[str]) -> None:
    """Raises UserError for a name that torch cannot give to a module."""
    container = nn.ModuleDict()
    for task in tasks:
        if hasattr(container, task):
            raise UserError(f"tasks: {task!r} is a word that torch modules use themselves; choose another name")


def _rows_by_task(tasks: Sequence[str], vectors: Tensor) -> dict[str, Tensor]:
    """The rows of each task, tasks in the order in which they first occur."""
    if len(tasks) != len(vectors):
        raise ValueError(f"{len(tasks)} names of tasks for {len(vectors)} rows")
    return {
        name: torch.tensor([row for row, task in enumerate(tasks) if task == name], device=vectors.device)
        for name in dict.fromkeys(tasks)
    }
