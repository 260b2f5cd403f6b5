"""A table of token vectors that trains with only the rows that the texts of a run use.

English texts use a tenth of a multilingual encoder's 250,000 rows. The others have no gradient, and yet gradients,
their norm, AdamW, its moments and the exchange among ranks go over all of them in every step. Here they are set aside:
what AdamW does to a row without a gradient is to let it decay, and that is one number for all of them.
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

PLACEHOLDER_TOKEN = 1
"""The token id on which models are tried out; it is always among those in use."""
DECAY = "decay"
"""Among an optimizer's moments, what the rows that are set aside are a multiple of: `decay/<parameter>`."""


class UnusedRows:
    """The rows that no text uses, in the host's memory, as they came; and how far they have decayed since."""

    def __init__(self, table: Tensor, used: Tensor) -> None:
        """`table` is [rows, dim]; `used` are the rows that texts use, sorted, int64."""
        unused = torch.ones(len(table), dtype=torch.bool)
        unused[used] = False
        self.shape = table.shape
        self._used = used
        self._unused = unused.nonzero().squeeze(1)
        self.rows = table[self._unused]
        self._left: Tensor | float = 1.0

    @property
    def left(self) -> float:
        """What is left of each row, as a multiple."""
        return float(self._left)

    @left.setter
    def left(self, left: float) -> None:
        self._left = left

    def decay(self, factor: float, norm: Tensor) -> None:
        """Every row times `factor`, unless `norm`, a gradient's, is not finite. Waits for no device."""
        if is_async(norm.device):
            if not isinstance(self._left, Tensor):
                self._left = torch.full((), self._left, dtype=torch.float64, device=norm.device)
            self._left = torch.where(norm.isfinite(), self._left * factor, self._left)
        elif torch.isfinite(norm):
            self._left = self._left * factor

    def expand(self, used: Tensor) -> Tensor:
        """The table [rows, dim], of which `used` are the rows in use."""
        table = self.expand_optimizer_state(used)
        table[self._unused] = self.rows * self.left
        return table

    def expand_optimizer_state(self, used: Tensor) -> Tensor:
        """A moment of the whole table: zero in every row that never had a gradient."""
        table = used.new_zeros(self.shape)
        table[self._used] = used
        return table

    def select(self, table: Tensor) -> Tensor:
        """The inverse of `expand` and `expand_optimizer_state`."""
        return table[self._used]

    def fits(self, table: Tensor, left: float) -> bool:
        """Whether the rows that no text uses are in `table` as they are here once they have decayed to `left`."""
        return torch.equal(table[self._unused], self.rows * left)


class TrimmedEmbedding(nn.Embedding):
    """`nn.Embedding` that holds some of its rows. It takes the ids that it took before; of others it raises."""

    unused_rows: UnusedRows
    _slots: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return embedding(self._slots[input], self.weight, self.padding_idx)


def trim_vocabulary(encoder: PreTrainedModel, vocabulary: np.ndarray) -> None:
    """Leaves `encoder` with the rows of its table of tokens that `vocabulary`, ids, names.

    An encoder with code of its own, which may look into its table, is left as it is, and so is one whose table is not
    torch's plain one. Raises UserError for an id that the table does not have.
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
    weight = table.weight.detach()
    places = torch.full((rows,), -1)  # which no table has
    places[used] = torch.arange(len(used))
    unused_rows = UnusedRows(weight, used)
    table.weight = nn.Parameter(weight[used], requires_grad=table.weight.requires_grad)
    table.num_embeddings = len(used)
    if table.padding_idx is not None:
        table.padding_idx = int(places[table.padding_idx])
    table.register_buffer("_slots", places, persistent=False)
    table.__class__ = TrimmedEmbedding  # in place, for others may hold it
    table.__dict__["unused_rows"] = unused_rows


def trimmed_size(encoder: PreTrainedModel) -> tuple[int, int] | None:
    """How many rows of its table of tokens `encoder` has in use, of how many; None where none is set aside."""
    table = encoder.get_input_embeddings()
    return (table.num_embeddings, table.unused_rows.shape[0]) if isinstance(table, TrimmedEmbedding) else None


class TrimmedEmbeddings:
    """The tables of a model of which rows are set aside, by the names of their parameters."""

    def __init__(self, model: nn.Module) -> None:
        self._unused_rows = {
            f"{name}.weight": module.unused_rows
            for name, module in model.named_modules()
            if isinstance(module, TrimmedEmbedding)
        }

    def meta_like(self, model: nn.Module) -> dict[str, Tensor]:
        """A tensor without content like each whole parameter of `model`, by name."""
        shapes = {name: one.shape for name, one in self._unused_rows.items()}
        return {
            name: torch.empty(shapes.get(name, parameter.shape), dtype=parameter.dtype, device="meta")
            for name, parameter in model.named_parameters()
        }

    def decay(self, factor: float, norm: Tensor) -> None:
        """Does to every row that is set aside what AdamW does to one without a gradient; see `UnusedRows.decay`."""
        for one in self._unused_rows.values():
            one.decay(factor, norm)

    def expand(self, name: str, tensor: Tensor) -> Tensor:
        """A parameter, or a moment `<moment>/<parameter>`, with the rows that are set aside; on the CPU."""
        moment, _, parameter = name.rpartition("/")
        one = self._unused_rows.get(parameter)
        if one is None or not tensor.ndim:
            return tensor
        return one.expand_optimizer_state(tensor) if moment else one.expand(tensor)

    def digests(self) -> dict[str, str]:
        """Of what is set aside and of how far it has decayed, by what they are called in a message."""
        found = {}
        for name, one in self._unused_rows.items():
            found[f"rows of {name} that no text uses"] = quick_digest(name, one.rows)
            found[f"the decay of {name}"] = repr(one.left)
        return found

    def require_same_unused_rows(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Raises UserError where the rows that no text uses are other ones in a checkpoint's `weights`."""
        for name, one in self._unused_rows.items():
            if not one.fits(weights[name], self._left_in(moments, name)):
                raise UserError(
                    f"model.encoder: rows of {name} that no text uses are not those in the checkpoint; give back the"
                    " encoder and data of its run, or start anew with checkpoint.resume=never"
                )

    def decay_state(self) -> dict[str, Tensor]:
        """What the rows that are set aside are a multiple of, as `decay/<parameter>`; nothing of those as they came."""
        left = {f"{DECAY}/{name}": one.left for name, one in self._unused_rows.items()}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in left.items() if value != 1.0}

    def load_decay_state(self, moments: Mapping[str, Tensor]) -> None:
        """The inverse of `decay_state`; where there is none, nothing has decayed."""
        for name, one in self._unused_rows.items():
            one.left = self._left_in(moments, name)

    def _left_in(self, moments: Mapping[str, Tensor], name: str) -> float:
        return float(moments.get(f"{DECAY}/{name}", 1.0))

    def select_used_rows(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `expand`, of all `tensors` by name."""
        tables = {name: self._unused_rows.get(name.rpartition("/")[2]) for name in tensors}
        return {
            name: tensor if (one := tables[name]) is None or not tensor.ndim else one.select(tensor)
            for name, tensor in tensors.items()
        }
