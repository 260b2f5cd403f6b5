"""What an encoder has vectors for: token IDs and token types. Its positions are in `encoder`."""

import inspect

from torch import nn
from transformers import PreTrainedModel

from mtl_dist.data.token_limits import TOKEN_TYPES, TokenLimits
from mtl_dist.models.vocab_trimming import trimmed_size


def limits_of(encoder: PreTrainedModel) -> TokenLimits:
    """The limits of the tables of `encoder`, which may be a skeleton; those of an encoder's own code may be unknown."""
    table, trimmed = encoder.get_input_embeddings(), trimmed_size(encoder)
    tokens = trimmed[1] if trimmed is not None else table.num_embeddings if isinstance(table, nn.Embedding) else None
    types = [module for name, module in encoder.named_modules() if name.endswith("token_type_embeddings")]
    if types and isinstance(types[0], nn.Embedding):
        return TokenLimits(tokens, types[0].num_embeddings)
    taken = inspect.signature(encoder.forward).parameters.values()
    ignored = any(one.name == TOKEN_TYPES or one.kind is inspect.Parameter.VAR_KEYWORD for one in taken)
    return TokenLimits(tokens, None if ignored else 0)
