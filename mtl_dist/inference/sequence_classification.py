"""Writes a task's classifier into the sequence classification class of transformers for its encoder's type.

The result loads anywhere without code of this package. The classifier here is a head of Linear, ReLU, Linear over the
vector of the first token or the mean over tokens; the classes of transformers pool the first token and have other
heads. Their weights can be chosen such that they compute the same function, up to the rounding of float32:

- GELU equals ReLU where its argument is huge: gelu(S x) / S differs from relu(x) by less than 0.2 / S, and scaling by a
  power of two S is exact. This covers the heads of DistilBERT (which has ReLU), ELECTRA and DeBERTa (`_write_head`).
- LayerNorm is linear where its input is far below the root of its epsilon: it subtracts the mean over features and
  multiplies. With attention that weights all tokens equally, one additional block of the encoder's own kind computes
  the mean over tokens, and its feed-forward part a head with as many outputs (`_append_block`).
- tanh is the identity where its argument is tiny.

The weights span many powers of two: float32 and bfloat16 hold them, float16 does not. The caller compares the outputs
with those of the model itself.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from mtl_dist.errors import UserError
from mtl_dist.models.encoder import quiet_transformers
from mtl_dist.models.multitask import MultitaskTransformer

_SHARP = 2.0**30
"""Factor of a GELU's argument, and of a value over one that is to vanish when both are added."""
_TINY = 2.0**-13
"""A value whose square is lost when it is added to 1 in float32."""
_RELU_LIKE = ("relu", "gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class _Names:
    """Names of the modules of a sequence classification class that a head is written into."""

    dense: str
    """First layer of its head."""
    out: str
    """Second layer of its head."""
    activation: Literal["relu", "gelu", "tanh"]
    """Activation between the two."""
    value: str
    """Value projection of a block; the fields up to `after_feed_forward` name modules of a block."""
    attention_output: str
    after_attention: str
    """LayerNorm after attention."""
    up: str
    down: str
    after_feed_forward: str
    """LayerNorm after the feed-forward part."""
    uniform_attention: bool = True
    """Whether a block attends to all tokens equally where its queries and keys are zero."""


_BERT_BLOCK = (
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_MPNET_BLOCK = ("attention.attn.v", "attention.attn.o", "attention.LayerNorm", *_BERT_BLOCK[3:])
_DISTILBERT_BLOCK = (
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
_ROBERTA = _Names("classifier.dense", "classifier.out_proj", "tanh", *_BERT_BLOCK)
_NAMES = {
    "bert": _Names("bert.pooler.dense", "classifier", "tanh", *_BERT_BLOCK),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    # Its position bias is shared by all blocks, so that no block attends to all tokens equally.
    "mpnet": _Names("classifier.dense", "classifier.out_proj", "tanh", *_MPNET_BLOCK, uniform_attention=False),
    "electra": _Names("classifier.dense", "classifier.out_proj", "gelu", *_BERT_BLOCK),
    "distilbert": _Names("pre_classifier", "classifier", "relu", *_DISTILBERT_BLOCK),
    "deberta": _Names("pooler.dense", "classifier", "relu", "attention.self.in_proj", *_BERT_BLOCK[1:]),
    "deberta-v2": _Names("pooler.dense", "classifier", "relu", "attention.self.value_proj", *_BERT_BLOCK[1:]),
}
"""Module names by model type."""
_SETTINGS: dict[str, dict[str, Any]] = {
    "deberta": {"pooler_hidden_act": "relu"},
    "deberta-v2": {"pooler_hidden_act": "relu"},
    "modernbert": {"classifier_activation": "relu", "classifier_bias": True},
}
"""Settings with which the head of a model type can hold ours, by model type."""


@dataclass(frozen=True)
class _Head:
    """Weights of a head of Linear, ReLU, Linear in float64."""

    weight: Tensor
    """[hidden_size, hidden_size]."""
    bias: Tensor
    out_weight: Tensor
    """[num_labels, hidden_size]."""
    out_bias: Tensor
    largest_input: float
    """Upper bound of the norm of its input vectors."""

    def after(self, norm: Any) -> "_Head":
        """The same head for the normalized values of LayerNorm `norm`, before its weight and bias are applied."""
        scale, shift = _double(norm.weight), _double(norm.bias)
        size = float(len(scale)) ** 0.5
        return _Head(self.weight * scale, self.bias + self.weight @ shift, self.out_weight, self.out_bias, size)

    @property
    def largest_hidden(self) -> float:
        """Upper bound of the absolute values between its layers."""
        return float((self.weight.norm(dim=1) * self.largest_input + self.bias.abs()).max())

    @property
    def largest_logit(self) -> float:
        """Upper bound of the absolute logits without their bias."""
        hidden = self.weight.norm(dim=1) * self.largest_input + self.bias.abs()
        return float((self.out_weight.abs() @ hidden).max())


def sequence_classifier(model: MultitaskTransformer, task: str) -> PreTrainedModel:
    """The classifier of `task` in the sequence classification class of its encoder's type, in eval mode.

    Raises UserError where that class cannot hold it.
    """
    encoder = model.sentence_transformer.encoder
    kind, mean = encoder.config.model_type, model.sentence_transformer.pooling == "mean"
    if kind != "modernbert" and (kind not in _NAMES or (mean and not _NAMES[kind].uniform_attention)):
        what = "the mean over tokens" if kind in _NAMES else "our head"
        raise _cannot_hold(f"the stock classifier of {kind!r} cannot hold {what}")
    names = _NAMES.get(kind)
    more_blocks = int(names is not None and (mean or names.activation == "tanh"))
    config = _config(encoder.config, model.labels[task], more_blocks)
    if kind == "modernbert":
        config.classifier_pooling = "mean" if mean else "cls"
    with quiet_transformers():
        classifier: Any = AutoModelForSequenceClassification.from_config(config, dtype=encoder.dtype)
    classifier = classifier.to(encoder.dtype).eval()
    base = getattr(classifier, classifier.base_model_prefix)
    with torch.no_grad():
        base.load_state_dict(encoder.state_dict(), strict=False)  # its other weights are written below
        head = _head_of(model, task)
        if names is None:
            _write_modernbert(classifier, head)
        elif more_blocks:
            _append_block(classifier, model, names, head, mean)
        else:
            _write_head(classifier, names, head)
    return cast(PreTrainedModel, classifier)


def _cannot_hold(why: str) -> UserError:
    """The error for a classifier that no class of transformers can hold."""
    return UserError(f"export: {why}; --with-code writes a folder that brings a class of its own")


def _config(config: PretrainedConfig, labels: Sequence[str], more_blocks: int) -> PretrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers += more_blocks
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    for key, value in _SETTINGS.get(config.model_type, {}).items():
        setattr(config, key, value)
    return config


def _head_of(model: MultitaskTransformer, task: str) -> _Head:
    """The head of `task`; the bound of its input follows from the last LayerNorm of the encoder."""
    head = cast(nn.Sequential, model.heads[task])
    first, last = cast(nn.Linear, head[0]), cast(nn.Linear, head[-1])
    size = float(first.in_features)
    norm: Any = [one for one in model.sentence_transformer.encoder.modules() if "LayerNorm" in type(one).__name__][-1]
    bias = getattr(norm, "bias", None)
    shift = 0.0 if bias is None else float(_double(bias).norm())
    largest = float(_double(norm.weight).abs().max()) * size**0.5 + shift
    return _Head(_double(first.weight), _double(first.bias), _double(last.weight), _double(last.bias), largest)


def _part(module: nn.Module, name: str) -> Any:
    return module.get_submodule(name)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


def _power(value: float) -> float:
    """The largest power of two that is at most `value`."""
    return 2.0 ** math.floor(math.log2(value))


def _write_head(classifier: Any, names: _Names, head: _Head) -> None:
    """Writes `head` into a head whose activation is ReLU or GELU."""
    scale = _SHARP if names.activation == "gelu" else 1.0
    dense, out = _part(classifier, names.dense), _part(classifier, names.out)
    dense.weight.copy_(head.weight * scale)
    dense.bias.copy_(head.bias * scale)
    out.weight.copy_(head.out_weight / scale)
    out.bias.copy_(head.out_bias)


def _append_block(classifier: Any, model: MultitaskTransformer, names: _Names, head: _Head, mean: bool) -> None:
    """Writes `head`, and the mean over tokens before it, into the last block of `classifier`, which the encoder lacks.

    Let z be the normalized values of the encoder's last LayerNorm, before its weight and bias; their mean over features
    is 0. The block receives s z. Its attention returns A s mean(z), beside which s z vanishes; its first LayerNorm
    scales this to u mean(z); its feed-forward part returns t (logits, minus their sum, 0, ...), which has mean 0 and
    beside which u mean(z) vanishes; its second LayerNorm scales this to d (logits, ...).
    """
    stack = model.layout.units["blocks.0"][0].removesuffix(".0")
    blocks = cast(nn.ModuleList, getattr(classifier, classifier.base_model_prefix).get_submodule(stack))
    block, below = blocks[-1], _part(blocks[-2], names.after_feed_forward)
    num_labels, size = head.out_weight.shape
    up, down = _part(block, names.up), _part(block, names.down)
    _check_room(classifier.config, names, num_labels, size, up.weight.shape[0])
    head = head.after(below)
    bound = max(head.largest_logit, 1.0)
    first, second = _part(block, names.after_attention), _part(block, names.after_feed_forward)
    pooled = _power(_epsilon(first) ** 0.5 * _TINY)  # size of the first LayerNorm's input
    logits = _power(_epsilon(second) ** 0.5 * _TINY / (bound * num_labels))
    hidden = logits / _SHARP
    for parameter in block.parameters():
        parameter.zero_()
    below.bias.zero_()
    below.weight.fill_(pooled / _SHARP if mean else pooled)
    if mean:
        _pass_values(_part(block, names.value), size, classifier.config.num_attention_heads)
        _part(block, names.attention_output).weight.copy_(torch.eye(size) * _SHARP)
    first.weight.fill_(hidden * _epsilon(first) ** 0.5 / pooled)
    up.weight[:size] = (head.weight * (_SHARP / hidden)).to(up.weight.dtype)
    up.bias[:size] = (head.bias * _SHARP).to(up.bias.dtype)
    rows = torch.cat([head.out_weight, -head.out_weight.sum(dim=0, keepdim=True)])
    down.weight[: num_labels + 1, :size] = (rows * (logits / _SHARP)).to(down.weight.dtype)
    shrink = _power(_TINY / bound) if names.activation == "tanh" else 1.0
    second.weight.fill_(shrink * _epsilon(second) ** 0.5 / logits)
    _pass_logits(classifier, names, shrink, head.out_bias)


def _check_room(config: PretrainedConfig, names: _Names, num_labels: int, size: int, intermediate: int) -> None:
    act = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if act not in _RELU_LIKE:
        raise _cannot_hold(f"its blocks have the activation {act!r}, which cannot stand for ReLU")
    if intermediate < size:
        raise _cannot_hold(f"its blocks are {intermediate} wide within, narrower than its vectors of {size}")
    most = size - 1 if names.activation == "tanh" else size // 2
    if num_labels > most:
        raise _cannot_hold(f"{num_labels} classes are more than the {most} that fit into its vectors of {size}")


def _epsilon(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def _pass_values(value: Any, size: int, heads: int) -> None:
    """Makes the value projection the identity; DeBERTa keeps queries, keys and values of each head in one layer."""
    rows = torch.arange(size)
    if value.weight.shape[0] == 3 * size:
        each = size // heads
        rows = rows // each * 3 * each + 2 * each + rows % each
    value.weight[rows, torch.arange(size)] = 1.0


def _pass_logits(classifier: Any, names: _Names, shrink: float, bias: Tensor) -> None:
    """Makes the head of `classifier` return `bias` plus 1 / `shrink` times the first values of its input."""
    dense, out = _part(classifier, names.dense), _part(classifier, names.out)
    for layer in (dense, out):
        layer.weight.zero_()
        layer.bias.zero_()
    out.bias.copy_(bias)
    each = torch.arange(len(bias))
    dense.weight[each, each] = 1.0
    out.weight[each, each] = 1 / shrink
    if names.activation != "tanh":  # relu(x) - relu(-x) is x, and the same holds for GELU
        dense.weight[each + len(bias), each] = -1.0
        out.weight[each, each + len(bias)] = -1 / shrink


def _write_modernbert(classifier: Any, head: _Head) -> None:
    """Writes `head` into that of ModernBERT, which has a LayerNorm between its activation and its last layer.

    Far below the root of its epsilon, the LayerNorm only subtracts the mean of its inputs. Hidden unit j is scaled by
    1 / v_j, with which ReLU commutes, where v > 0 is such that every row of `out_weight * v` has sum 0, so that the
    mean does not matter.
    """
    weights = head.out_weight
    v = _positive_in_null_space(weights)
    if v is None:
        raise _cannot_hold(f"the LayerNorm in its head hides what {len(weights)} classes need")
    epsilon = _epsilon(classifier.head.norm)
    scale = _power(epsilon**0.5 * _TINY / (max(head.largest_hidden, 1.0) / float(v.min())))
    classifier.head.dense.weight.copy_(head.weight / v.unsqueeze(1) * scale)
    classifier.head.dense.bias.copy_(head.bias / v * scale)
    classifier.head.norm.weight.fill_(epsilon**0.5 / scale)
    if classifier.head.norm.bias is not None:
        classifier.head.norm.bias.zero_()
    classifier.classifier.weight.copy_(weights * v)
    classifier.classifier.bias.copy_(head.out_bias)


def _positive_in_null_space(weights: Tensor) -> Tensor | None:
    """A vector v > 0 with `weights @ v` = 0, or None where none is found.

    By alternating projections onto the two sets (Bauschke and Borwein, SIAM Review 38, 1996). With far more hidden
    units than classes, whose weights have either sign, the first projection of (1, 1, ...) suffices.
    """
    v = torch.ones(weights.shape[1], dtype=torch.float64)
    inverse = torch.linalg.pinv(weights)
    for _ in range(10_000):
        v = v - inverse @ (weights @ v)
        if float(v.min()) > 0.02:
            return v
        v = v.clamp(min=0.1)
    return None
