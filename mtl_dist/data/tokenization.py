"""The encoder's tokenizer, and tokenization of a task's text columns."""

import copy
from typing import cast

import numpy as np
import pyarrow as pa
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.data.columns import text_hashes
from mtl_dist.errors import UserError, root_cause


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of the encoder.

    Raises UserError if it does not exist, has no fast version, no vocabulary or no pad token.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(model.encoder, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # the hub, the file formats and tokenizers have exception classes of their own
        raise UserError(f"model.encoder: cannot load the tokenizer of {model.encoder}: {root_cause(error)}") from error
    tokenizer = cast(PreTrainedTokenizerBase, loaded)
    complaint = None
    if not tokenizer.is_fast:
        complaint = "is not a fast one; add its tokenizer.json"
    elif len(tokenizer) <= len(tokenizer.all_special_tokens):
        # From a folder with nothing but config.json, transformers builds a tokenizer that maps every word to [UNK].
        complaint = "has no vocabulary; its files are missing, e.g. tokenizer.json"
    elif tokenizer.pad_token_id is None:
        complaint = "has no pad token; set pad_token in its tokenizer_config.json"
    if complaint:
        raise UserError(f"model.encoder: the tokenizer of {model.encoder} {complaint}")
    return tokenizer


class ColumnTokenizer:
    """Tokenizes the text columns of a task: one column, or two as sentence pairs."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: list[str], max_length: int) -> None:
        """`text` names the columns. Raises UserError if `max_length`, in tokens, leaves no room for text."""
        special = tokenizer.num_special_tokens_to_add(pair=len(text) == 2)
        if max_length <= special:
            raise UserError(f"data.max_length: {max_length} leaves no room for text; {special} tokens are special ones")
        # A copy, because a call stores its truncation settings in the tokenizer, which is saved with the model.
        self._tokenizer = copy.deepcopy(tokenizer)
        self.columns = text
        """Names of the text columns."""
        self._max_length = max_length
        self._token_types = len(text) == 2 and "token_type_ids" in tokenizer.model_input_names

    def __call__(self, columns: pa.Table) -> tuple[dict[str, pa.Array], np.ndarray]:
        """Returns `input_ids` (and `token_type_ids`), lists of int32, and a hash of each row's text, [rows] uint64."""
        texts = [columns[name].to_pylist() for name in self.columns]
        tokens = self._tokenizer(
            *texts,
            truncation=True,
            max_length=self._max_length,
            return_attention_mask=False,
            return_token_type_ids=self._token_types,
        )
        lists = {name: pa.array(rows, pa.list_(pa.int32())) for name, rows in tokens.items()}
        return lists, text_hashes(texts)
