from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedModel

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.data.token_limits import TokenLimits
from mtl_dist.models.encoder import encoder_skeleton, load_encoder, load_encoder_config
from mtl_dist.models.limits import limits_of
from mtl_dist.models.vocab_trimming import trim_vocabulary
from tests.utils.tiny import KINDS, SPECIAL, UNUSED, WORDS, tiny_encoder

TOKENS = len(SPECIAL) + len(WORDS) + UNUSED
WITH_TYPES = {"bert", "roberta", "xlm-roberta", "electra"}


def loaded(folder: Path) -> PreTrainedModel:
    model = ModelConfig(encoder=str(folder))
    return load_encoder(model, load_encoder_config(model))


@pytest.mark.parametrize("kind", KINDS)
def test_the_limits_are_the_sizes_of_the_tables(tmp_path: Path, kind: str) -> None:
    encoder = loaded(tiny_encoder(tmp_path, kind))
    expected = TokenLimits(TOKENS, 2 if kind in WITH_TYPES else None)
    assert limits_of(encoder) == expected
    assert limits_of(encoder_skeleton(load_encoder_config(ModelConfig(encoder=str(tmp_path))))) == expected
    trim_vocabulary(encoder, np.array([1, 5, 6]))
    assert limits_of(encoder) == expected


class Typeless(BertModel):
    """An encoder whose forward method takes neither token types nor what it does not know."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:  # type: ignore[override]
        return super().forward(input_ids, attention_mask)


def test_an_encoder_that_cannot_be_given_token_types_has_none() -> None:
    encoder = Typeless(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    del encoder.embeddings.token_type_embeddings
    assert limits_of(encoder).token_types == 0
