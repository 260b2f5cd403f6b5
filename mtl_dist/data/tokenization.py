"""The encoder's tokenizer, and how a task's text columns go through it."""

import copy
import time
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import pyarrow as pa
import xxhash
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.errors import UserError, root_cause
from mtl_dist.progress import LOG_LINE_SECONDS


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that comes with the encoder.

    Raises UserError when there is none, when it has no fast version, no vocabulary or no pad token.
    """
    try:
        loaded = AutoTokenizer.from_pretrained(model.encoder, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # hub, file formats and the tokenizers library have their own classes of errors
        raise UserError(f"model.encoder: cannot load the tokenizer of {model.encoder}: {root_cause(error)}") from error
    tokenizer = cast(PreTrainedTokenizerBase, loaded)
    complaint = None
    if not tokenizer.is_fast:
        complaint = "is not a fast one; add its tokenizer.json"
    elif len(tokenizer) <= len(tokenizer.all_special_tokens):
        # What transformers makes of a folder that has a config.json only: every word becomes the unknown token.
        complaint = "has no vocabulary; its files are missing, e.g. tokenizer.json"
    elif tokenizer.pad_token_id is None:
        complaint = "has no pad token; set pad_token in its tokenizer_config.json"
    if complaint:
        raise UserError(f"model.encoder: the tokenizer of {model.encoder} {complaint}")
    return tokenizer


class ColumnTokenizer:
    """Turns the text columns of a task, one or a pair, into columns of tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: list[str], max_length: int) -> None:
        special = tokenizer.num_special_tokens_to_add(pair=len(text) == 2)
        if max_length <= special:
            raise UserError(f"data.max_length: {max_length} leaves no room for text; {special} tokens are special ones")
        # A copy, because truncation settings stay in the tokenizer, and it is saved with the model.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._text = text
        self._max_length = max_length
        self._token_types = len(text) == 2 and "token_type_ids" in tokenizer.model_input_names

    def __call__(self, columns: pa.Table) -> tuple[dict[str, pa.Array], np.ndarray]:
        """`input_ids` (and `token_type_ids`) as lists of int32, and a 64-bit hash of each row's text."""
        texts = [columns[name].to_pylist() for name in self._text]
        tokens = self._tokenizer(
            *texts,
            truncation=True,
            max_length=self._max_length,
            return_attention_mask=False,
            return_token_type_ids=self._token_types,
        )
        hashes = [xxhash.xxh3_64_intdigest("\0".join(row).encode()) for row in zip(*texts, strict=True)]
        lists = {name: pa.array(rows, pa.list_(pa.int32())) for name, rows in tokens.items()}
        return lists, np.array(hashes, dtype=np.uint64)


def with_progress(starts: range, label: str, *, bar: bool, say: Callable[[str], None]) -> Iterator[int]:
    """Yields `starts`, the first row of each batch, and shows how far they are: a bar, or a line now and then."""
    total, last = starts.stop, time.monotonic()
    with tqdm(total=total, desc=label, unit="row", disable=not bar) as shown:
        if not bar:
            say(f"{label} {total} rows")
        for start in starts:
            yield start
            done = min(start + starts.step, total)
            shown.update(done - start)
            if not bar and time.monotonic() - last >= LOG_LINE_SECONDS:
                last = time.monotonic()
                say(f"{label} {done}/{total} rows")
