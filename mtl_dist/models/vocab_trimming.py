"""Token embeddings trimmed to the rows that the texts of a run use.

English texts use about a tenth of the 250,000 rows of a multilingual encoder. The unused rows never have a gradient,
and yet the gradient norm, AdamW, its state and the all-reduce of gradients would process them in every step. They are
taken out of the parameter and kept in host memory. All that AdamW does to a row without gradients is weight decay
(Loshchilov & Hutter 2019, arXiv:1711.05101), which is one factor for all unused rows.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from mtl_dist.device import is_async
from mtl_dist.distributed.consistency import quick_digest
from mtl_dist.errors import UserError
from mtl_dist.models.encoder import has_remote_code
from mtl_dist.models.replace import replace_modules, share_state

PLACEHOLDER_TOKEN = 1
"""Token id of the inputs for trial forward passes. Its row is never trimmed."""
DECAY = "decay"
"""Name of the decay factor of unused rows in the optimizer state of a checkpoint: `decay/<parameter>`."""


class UnusedRows:
    """The rows of token embeddings that no text uses, in host memory, as loaded; and their decay since."""

    def __init__(self, weight: Tensor, used: Tensor) -> None:
        """`weight` is [rows, dim]; `used` are the rows that texts use, sorted, int64."""
        unused = torch.ones(len(weight), dtype=torch.bool)
        unused[used] = False
        self.shape = weight.shape
        self._used = used
        self._unused = unused.nonzero().squeeze(1)
        self.rows = weight[self._unused]
        self._decay_factor: Tensor | float = 1.0

    @property
    def decay_factor(self) -> float:
        """Ratio of the rows now to the rows as loaded."""
        return float(self._decay_factor)

    @decay_factor.setter
    def decay_factor(self, value: float) -> None:
        self._decay_factor = value

    def decay(self, factor: float, norm: Tensor) -> None:
        """Multiplies every row by `factor`, unless the gradient `norm` is not finite. Does not wait for the device."""
        if is_async(norm.device):
            if not isinstance(self._decay_factor, Tensor):
                self._decay_factor = torch.full((), self._decay_factor, dtype=torch.float64, device=norm.device)
            self._decay_factor = torch.where(norm.isfinite(), self._decay_factor * factor, self._decay_factor)
        elif torch.isfinite(norm):
            self._decay_factor = self._decay_factor * factor

    def expand(self, used_rows: Tensor) -> Tensor:
        """The whole weight [rows, dim] from its `used_rows` [used, dim]."""
        weight = self.expand_optimizer_state(used_rows)
        weight[self._unused] = self.rows * self.decay_factor
        return weight

    def expand_optimizer_state(self, used_rows: Tensor) -> Tensor:
        """AdamW's state of the whole weight, which is zero in every row that never had a gradient."""
        whole = used_rows.new_zeros(self.shape)
        whole[self._used] = used_rows
        return whole

    def select_used(self, whole: Tensor) -> Tensor:
        """The rows of `whole` [rows, dim] that texts use; the inverse of `expand` and `expand_optimizer_state`."""
        return whole[self._used]

    def matches(self, weight: Tensor, decay_factor: float) -> bool:
        """Whether the unused rows of `weight` are the ones here, multiplied by `decay_factor`."""
        return torch.equal(weight[self._unused], self.rows * decay_factor)


class TrimmedEmbedding(nn.Embedding):
    """`nn.Embedding` without its unused rows. Token ids stay the same; the id of an unused row raises IndexError."""

    def __init__(self, table: nn.Embedding, used: Tensor) -> None:
        """Takes over hooks, mode and settings of `table`. `used`: the rows to keep, sorted, int64."""
        nn.Module.__init__(self)
        share_state(table, self)
        weight = table.weight.detach()
        row_of_token = torch.full((table.num_embeddings,), -1)  # -1 is out of range, so that looking it up fails
        row_of_token[used] = torch.arange(len(used))
        self.weight = nn.Parameter(weight[used], requires_grad=table.weight.requires_grad)
        self.num_embeddings = len(used)
        if table.padding_idx is not None:
            self.padding_idx = int(row_of_token[table.padding_idx])
        self.register_buffer("_row_of_token", row_of_token, persistent=False)
        self._row_of_token: Tensor
        self.unused_rows = UnusedRows(weight, used)

    def forward(self, input: Tensor) -> Tensor:
        return embedding(self._row_of_token[input], self.weight, self.padding_idx)


def trim_vocabulary(encoder: PreTrainedModel, vocabulary: np.ndarray) -> None:
    """Replaces the token embeddings of `encoder` by a TrimmedEmbedding with the rows of `vocabulary`, token ids.

    An encoder with remote code, which may read its token embeddings directly, is left as it is; so is one whose token
    embeddings are not a plain `nn.Embedding`. Raises UserError for a token id that the encoder does not have.
    """
    table = encoder.get_input_embeddings()
    if type(table) is not nn.Embedding or has_remote_code(encoder.config):
        return
    if table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return
    rows = table.num_embeddings
    special = [PLACEHOLDER_TOKEN] if table.padding_idx is None else [PLACEHOLDER_TOKEN, table.padding_idx]
    used = torch.from_numpy(np.union1d(vocabulary, special).astype(np.int64))
    if used[-1] >= rows:
        raise UserError(f"model.encoder: its tokenizer has a token {int(used[-1])}, and the encoder has {rows} of them")
    replace_modules(encoder, lambda module: TrimmedEmbedding(table, used) if module is table else None)


def trimmed_size(encoder: PreTrainedModel) -> tuple[int, int] | None:
    """Number of token embeddings that are used, and of all; None where they are not trimmed."""
    table = encoder.get_input_embeddings()
    return (table.num_embeddings, table.unused_rows.shape[0]) if isinstance(table, TrimmedEmbedding) else None


class TrimmedEmbeddings:
    """The unused rows of every TrimmedEmbedding of a model, by the name of its parameter."""

    def __init__(self, model: nn.Module) -> None:
        self._unused_rows = {
            f"{name}.weight": module.unused_rows
            for name, module in model.named_modules()
            if isinstance(module, TrimmedEmbedding)
        }

    def meta_like(self, model: nn.Module) -> dict[str, Tensor]:
        """A meta tensor with the type and untrimmed shape of each parameter of `model`, by name."""
        shapes = {name: unused.shape for name, unused in self._unused_rows.items()}
        return {
            name: torch.empty(shapes.get(name, parameter.shape), dtype=parameter.dtype, device="meta")
            for name, parameter in model.named_parameters()
        }

    def decay(self, factor: float, norm: Tensor) -> None:
        """Applies AdamW's weight decay to all unused rows; see `UnusedRows.decay`."""
        for unused in self._unused_rows.values():
            unused.decay(factor, norm)

    def expand(self, name: str, tensor: Tensor) -> Tensor:
        """The untrimmed tensor of a parameter, or of its optimizer state `<state>/<parameter>`, on the CPU."""
        state, _, parameter = name.rpartition("/")
        unused = self._unused_rows.get(parameter)
        if unused is None or not tensor.ndim:
            return tensor
        return unused.expand_optimizer_state(tensor) if state else unused.expand(tensor)

    def digests(self) -> dict[str, str]:
        """Digests of the unused rows and of their decay, by their names in messages."""
        found = {}
        for name, unused in self._unused_rows.items():
            found[f"rows of {name} that no text uses"] = quick_digest(name, unused.rows)
            found[f"the decay of {name}"] = repr(unused.decay_factor)
        return found

    def require_same_unused_rows(self, weights: Mapping[str, Tensor], optimizer_state: Mapping[str, Tensor]) -> None:
        """Raises UserError unless the unused rows in the `weights` of a checkpoint are the ones here."""
        for name, unused in self._unused_rows.items():
            if not unused.matches(weights[name], self._decay_factor_in(optimizer_state, name)):
                raise UserError(
                    f"model.encoder: rows of {name} that no text uses are not those in the checkpoint; give back the"
                    " encoder and data of its run, or start anew with checkpoint.resume=never"
                )

    def decay_state(self) -> dict[str, Tensor]:
        """Decay factors as `decay/<parameter>`, for checkpoints; without those that are 1."""
        factors = {f"{DECAY}/{name}": unused.decay_factor for name, unused in self._unused_rows.items()}
        return {name: torch.tensor(factor, dtype=torch.float64) for name, factor in factors.items() if factor != 1.0}

    def load_decay_state(self, optimizer_state: Mapping[str, Tensor]) -> None:
        """Sets decay factors from `decay_state`; one that is missing is 1."""
        for name, unused in self._unused_rows.items():
            unused.decay_factor = self._decay_factor_in(optimizer_state, name)

    def _decay_factor_in(self, optimizer_state: Mapping[str, Tensor], name: str) -> float:
        return float(optimizer_state.get(f"{DECAY}/{name}", 1.0))

    def select_used_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Trims untrimmed `tensors`, which are named as for `expand`; the inverse of `expand`."""
        found = {name: self._unused_rows.get(name.rpartition("/")[2]) for name in tensors}
        return {
            name: tensor if (unused := found[name]) is None or not tensor.ndim else unused.select_used(tensor)
            for name, tensor in tensors.items()
        }
