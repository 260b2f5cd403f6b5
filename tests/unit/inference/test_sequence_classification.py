"""Classifiers in classes of transformers against the model that they come from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl_dist.config.recipe import ModelConfig
from mtl_dist.errors import UserError
from mtl_dist.inference.sequence_classification import sequence_classifier
from mtl_dist.models.encoder import load_encoder, load_encoder_config
from mtl_dist.models.multitask import MultitaskTransformer, SentenceTransformer
from tests.utils.tiny import KINDS, tiny_encoder

LABELS = {"topic": ("art", "cat", "law", "sea"), "mood": ("bad", "so", "good")}
FITTING = [
    (kind, pooling)
    for kind in (*KINDS, "camembert")
    for pooling in ("first_token", "mean")
    if (kind, pooling) != ("mpnet", "mean")
]


def model_of(folder: Path, kind: str, pooling: str, dtype: str = "float32", **changes: Any) -> MultitaskTransformer:
    """A model with a tiny encoder, whose heads have weights large enough for logits well apart."""
    config = ModelConfig(encoder=str(tiny_encoder(folder, kind)), pooling=pooling, dtype=dtype)  # type: ignore[arg-type]
    settings = load_encoder_config(config)
    for name, value in changes.items():
        setattr(settings, name, value)
    model = MultitaskTransformer(SentenceTransformer(load_encoder(config, settings), pooling), LABELS).eval()
    with torch.no_grad():
        for parameter in model.heads.parameters():
            parameter.mul_(3)
    return model


def batch() -> tuple[Tensor, Tensor]:
    """Ids and mask of 12 texts of 3 to 25 tokens, with padding."""
    ids = torch.randint(5, 60, (12, 25), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(25) < torch.arange(3, 27, 2).unsqueeze(1)).long()
    return ids * mask + (1 - mask), mask


@torch.no_grad()
def furthest(model: MultitaskTransformer, task: str) -> float:
    """The largest difference of logits, as a part of the largest of them."""
    ids, mask = batch()
    stock: Any = sequence_classifier(model, task)
    assert type(stock).__module__.startswith("transformers.models.")
    ours = model(ids, mask, task)
    assert ours.std(dim=0).min() > 0.05  # texts differ, or a wrong pooling would not be seen
    return float((stock(input_ids=ids, attention_mask=mask).logits - ours).abs().max() / ours.abs().max())


@pytest.mark.parametrize(("kind", "pooling"), FITTING)
def test_logits_equal_those_of_the_model(tmp_path: Path, kind: str, pooling: str) -> None:
    model = model_of(tmp_path, kind, pooling)
    assert furthest(model, "mood") < 1e-6
    assert furthest(model, "topic") < 1e-6


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("electra", "mean"), ("modernbert", "first_token")])
def test_in_float64_the_difference_is_the_neglected_terms_only(tmp_path: Path, kind: str, pooling: str) -> None:
    assert furthest(model_of(tmp_path, kind, pooling, "float64"), "mood") < 3e-8


@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_blocks_with_another_activation_hold_the_head_as_well(tmp_path: Path, activation: str) -> None:
    assert furthest(model_of(tmp_path, "bert", "mean", hidden_act=activation), "mood") < 1e-6


def test_the_model_is_not_changed(tmp_path: Path) -> None:
    model = model_of(tmp_path, "bert", "mean")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = model.sentence_transformer.encoder.config.to_dict()
    sequence_classifier(model, "mood")
    assert model.sentence_transformer.encoder.config.to_dict() == config
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_class_names_are_in_the_configuration(tmp_path: Path) -> None:
    stock = sequence_classifier(model_of(tmp_path, "bert", "mean"), "mood")
    assert stock.config.id2label == {0: "bad", 1: "so", 2: "good"}
    assert stock.config.label2id == {"bad": 0, "so": 1, "good": 2}


def test_a_head_that_the_class_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stock classifier of 'mpnet' cannot hold the mean over tokens; --with-code"):
        sequence_classifier(model_of(tmp_path / "mpnet", "mpnet", "mean"), "mood")
    model = model_of(tmp_path / "act", "bert", "mean", hidden_act="tanh")
    with pytest.raises(UserError, match=r"the activation 'tanh', which cannot stand for ReLU; --with-code"):
        sequence_classifier(model, "mood")
    model.sentence_transformer.encoder.config.hidden_act = "gelu"
    many = MultitaskTransformer(model.sentence_transformer, {"many": [str(number) for number in range(16)]})
    with pytest.raises(UserError, match=r"16 classes are more than the 15 that fit into its vectors of 16"):
        sequence_classifier(many, "many")
