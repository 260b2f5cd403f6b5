"""Limits of an encoder's tables, and the checks that hold a tokenizer and its tokens within them."""

from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from mtl_dist.data.token_files import Split
from mtl_dist.errors import UserError

TOKEN_TYPES = "token_type_ids"


@dataclass(frozen=True)
class TokenLimits:
    """Number of token IDs and token types that an encoder has vectors for; None where it has no such limit."""

    tokens: int | None = None
    token_types: int | None = None
    """0 for an encoder whose forward method does not take them."""

    def fit_tokenizer(self, tokenizer: PreTrainedTokenizerBase, pairs: bool, source: str) -> None:
        """Makes `tokenizer` leave out token types where the encoder has one type at most and the tokenizer has more.

        Encoders with one type, such as RoBERTa, were pretrained with type 0 for both texts of a pair: the tokenizers
        that transformers has for them return no types, and an encoder that is given none takes type 0 for all tokens.

        Raises UserError, which begins with `source`, where the pad token has no vector, and with `pairs` where an
        encoder with several types lacks one that the tokenizer returns.
        """
        pad = int(cast(int, tokenizer.pad_token_id))
        if self.tokens is not None and pad >= self.tokens:
            raise UserError(f"{source}: its tokenizer's pad token {self._without_vector(tokenizer, pad)}")
        if self.token_types is None or TOKEN_TYPES not in tokenizer.model_input_names:
            return
        # By the backend, because a call of the tokenizer itself changes its settings.
        highest = max(tokenizer.backend_tokenizer.encode("a", "b").type_ids, default=0)
        if self.token_types == 0 or (self.token_types == 1 and highest):
            tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != TOKEN_TYPES]
        elif pairs and highest >= self.token_types:
            raise UserError(
                f"{source}: its tokenizer gives pairs of texts the token type {highest}, and the encoder has"
                f" {self.token_types} types, 0 to {self.token_types - 1}"
            )

    def exceeded_by(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether `tokenizer` has a token that the encoder has no vector for, or may make no token of a text."""
        if not tokenizer.num_special_tokens_to_add(pair=False):
            return True
        return self.tokens is not None and max(tokenizer.get_vocab().values()) >= self.tokens

    def check_split(self, location: str, split: Split, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises UserError for the first row of a tokenized split that the encoder cannot compute.

        `location` begins the message, which has the number of the row in its source.
        """
        if self.tokens is None or split.vocabulary[-1] < self.tokens:
            return
        first = 0
        for ids in split.rows.data.column("input_ids").chunks:
            if fault := self.first_fault(ids, tokenizer):
                row = split.rows.data.column("row")[first + fault[0]].as_py()
                raise UserError(f"{location} row {row} (from 0): {fault[1]}")
            first += len(ids)

    def first_fault(self, ids: pa.ListArray, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str] | None:
        """Index and fault of the first of the rows with token IDs `ids` that the encoder cannot compute, or None."""
        lengths = ids.value_lengths().to_numpy()
        faults = []
        if not lengths.all():
            faults.append((int(lengths.argmin()), "the tokenizer makes no token of it"))
        values = ids.flatten().to_numpy()
        if self.tokens is not None and values.max(initial=0) >= self.tokens:
            at = int(np.argmax(values >= self.tokens))
            row = int(np.searchsorted(np.cumsum(lengths), at, side="right"))
            faults.append((row, f"its token {self._without_vector(tokenizer, int(values[at]))}"))
        return min(faults, default=None)

    def _without_vector(self, tokenizer: PreTrainedTokenizerBase, token: int) -> str:
        return f"{tokenizer.convert_ids_to_tokens(token)!r} has ID {token}, and the encoder has {self.tokens} of them"
