"""A task's classifier in a stock class of transformers, so that it loads anywhere without code of ours.

Our head is Linear, ReLU, Linear over the first token's vector or the mean over tokens. The stock classes pool the first
token and have heads of their own. Their weights can be chosen so that they compute ours, to the rounding of float32:

- GELU is ReLU where its argument is huge: gelu(S x) / S differs from relu(x) by less than 0.2 / S, and S is a power of
  two, which changes no digit. This fits the heads of DistilBERT (ReLU itself), ELECTRA and DeBERTa (`stock_head`).
- LayerNorm is linear where its input is far below the root of its epsilon: it takes the mean over features away and
  multiplies. With attention that weighs all tokens alike, one more block of the encoder's own kind takes the mean over
  tokens, and its feed-forward part is a head with that many outputs (`_append_block`).
- tanh is the identity where its argument is tiny.

The weights span many powers of two: right for float32 and bfloat16, beyond the range of float16. Whoever exports
compares the outcome with the model itself.
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
"""By how much a GELU's argument is scaled up, and by how much what counts exceeds what is to vanish beside it."""
_TINY = 2.0**-13
"""What is squared and added to 1 in float32 is lost if it is this small."""
_RELU_LIKE = ("relu", "gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class _Names:
    """Where in a stock classifier the parts are that a head is written into."""

    dense: str
    """The first layer of its head; the second is `out`, with `squash` in between."""
    out: str
    squash: Literal["relu", "gelu", "tanh"]
    value: str
    """What follows are parts of a block."""
    mixed: str
    after_attention: str
    up: str
    down: str
    after_feed_forward: str
    even_attention: bool = True
    """Whether a block attends to all tokens alike where its queries and keys are zero."""


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
    # Its bias by distance is shared by all blocks, so that no block attends to all tokens alike.
    "mpnet": _Names("classifier.dense", "classifier.out_proj", "tanh", *_MPNET_BLOCK, even_attention=False),
    "electra": _Names("classifier.dense", "classifier.out_proj", "gelu", *_BERT_BLOCK),
    "distilbert": _Names("pre_classifier", "classifier", "relu", *_DISTILBERT_BLOCK),
    "deberta": _Names("pooler.dense", "classifier", "relu", "attention.self.in_proj", *_BERT_BLOCK[1:]),
    "deberta-v2": _Names("pooler.dense", "classifier", "relu", "attention.self.value_proj", *_BERT_BLOCK[1:]),
}
"""By model type."""
_STOCK_SETTINGS: dict[str, dict[str, Any]] = {
    "deberta": {"pooler_hidden_act": "relu"},
    "deberta-v2": {"pooler_hidden_act": "relu"},
    "modernbert": {"classifier_activation": "relu", "classifier_bias": True},
}
"""What makes the stock head of a model type fit."""


@dataclass(frozen=True)
class _Head:
    """Linear, ReLU, Linear in float64."""

    weight: Tensor
    """[hidden_size, hidden_size]."""
    bias: Tensor
    out_weight: Tensor
    """[num_labels, hidden_size]."""
    out_bias: Tensor
    largest_input: float
    """A bound of the norm of the vectors that it sees."""

    def after(self, norm: Any) -> "_Head":
        """The head that takes what LayerNorm `norm` gives before its weight and bias."""
        scale, shift = _double(norm.weight), _double(norm.bias)
        size = float(len(scale)) ** 0.5
        return _Head(self.weight * scale, self.bias + self.weight @ shift, self.out_weight, self.out_bias, size)

    @property
    def largest_hidden(self) -> float:
        """A bound of every value between its layers."""
        return float((self.weight.norm(dim=1) * self.largest_input + self.bias.abs()).max())

    @property
    def largest_logit(self) -> float:
        """A bound of every logit, its bias left out."""
        hidden = self.weight.norm(dim=1) * self.largest_input + self.bias.abs()
        return float((self.out_weight.abs() @ hidden).max())


def stock_classifier(model: MultitaskTransformer, task: str) -> PreTrainedModel:
    """The classifier of `task` in the stock class of its encoder's type, in eval mode.

    Raises UserError where that class cannot hold it.
    """
    encoder = model.sentence_transformer.encoder
    kind, mean = encoder.config.model_type, model.sentence_transformer.pooling == "mean"
    if kind != "modernbert" and (kind not in _NAMES or (mean and not _NAMES[kind].even_attention)):
        what = "the mean over tokens" if kind in _NAMES else "our head"
        raise _no_form(f"the stock classifier of {kind!r} cannot hold {what}")
    names = _NAMES.get(kind)
    more_blocks = int(names is not None and (mean or names.squash == "tanh"))
    config = _config(encoder.config, model.labels[task], more_blocks)
    if kind == "modernbert":
        config.classifier_pooling = "mean" if mean else "cls"
    with quiet_transformers():
        stock: Any = AutoModelForSequenceClassification.from_config(config, dtype=encoder.dtype)
    stock = stock.to(encoder.dtype).eval()
    base = getattr(stock, stock.base_model_prefix)
    with torch.no_grad():
        base.load_state_dict(encoder.state_dict(), strict=False)  # what it has more is written below
        head = _head_of(model, task)
        if names is None:
            _write_modernbert(stock, head)
        elif more_blocks:
            _append_block(stock, model, names, head, mean)
        else:
            _write_head(stock, names, head)
    return cast(PreTrainedModel, stock)


def _no_form(why: str) -> UserError:
    return UserError(f"export: {why}; --with-code writes a folder that brings a class of its own")


def _config(config: PretrainedConfig, labels: Sequence[str], more_blocks: int) -> PretrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers += more_blocks
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = "single_label_classification"
    for key, value in _STOCK_SETTINGS.get(config.model_type, {}).items():
        setattr(config, key, value)
    return config


def _head_of(model: MultitaskTransformer, task: str) -> _Head:
    """The head of `task`, and a bound of its input from the LayerNorm that its vectors come out of."""
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
    """The greatest power of two that is not above `value`."""
    return 2.0 ** math.floor(math.log2(value))


def _write_head(stock: Any, names: _Names, head: _Head) -> None:
    """`head` as the stock one, whose activation is ReLU or GELU."""
    sharp = _SHARP if names.squash == "gelu" else 1.0
    dense, out = _part(stock, names.dense), _part(stock, names.out)
    dense.weight.copy_(head.weight * sharp)
    dense.bias.copy_(head.bias * sharp)
    out.weight.copy_(head.out_weight / sharp)
    out.bias.copy_(head.out_bias)


def _append_block(stock: Any, model: MultitaskTransformer, names: _Names, head: _Head, mean: bool) -> None:
    """Writes `head`, and the mean over tokens before it, into the last block of `stock`, which the encoder lacks.

    With z the vectors of the encoder's last LayerNorm before its weight and bias, which have mean 0 over features, the
    block gets s z of them. Its attention gives A s mean(z), beside which s z vanishes; its first LayerNorm scales this
    to u mean(z); its feed-forward part gives t (logits, minus their sum, 0, ...), which have mean 0 and beside which
    u mean(z) vanishes; its second LayerNorm scales this to d (logits, ...).
    """
    stack = model.layout.units["blocks.0"][0].removesuffix(".0")
    blocks = cast(nn.ModuleList, getattr(stock, stock.base_model_prefix).get_submodule(stack))
    block, below = blocks[-1], _part(blocks[-2], names.after_feed_forward)
    num_labels, size = head.out_weight.shape
    up, down = _part(block, names.up), _part(block, names.down)
    _check_room(stock.config, names, num_labels, size, up.weight.shape[0])
    head = head.after(below)
    bound = max(head.largest_logit, 1.0)
    first, second = _part(block, names.after_attention), _part(block, names.after_feed_forward)
    pooled = _power(_epsilon(first) ** 0.5 * _TINY)  # size of what the first LayerNorm sees
    logits = _power(_epsilon(second) ** 0.5 * _TINY / (bound * num_labels))
    hidden = logits / _SHARP
    for parameter in block.parameters():
        parameter.zero_()
    below.bias.zero_()
    below.weight.fill_(pooled / _SHARP if mean else pooled)
    if mean:
        _pass_values(_part(block, names.value), size, stock.config.num_attention_heads)
        _part(block, names.mixed).weight.copy_(torch.eye(size) * _SHARP)
    first.weight.fill_(hidden * _epsilon(first) ** 0.5 / pooled)
    up.weight[:size] = (head.weight * (_SHARP / hidden)).to(up.weight.dtype)
    up.bias[:size] = (head.bias * _SHARP).to(up.bias.dtype)
    rows = torch.cat([head.out_weight, -head.out_weight.sum(dim=0, keepdim=True)])
    down.weight[: num_labels + 1, :size] = (rows * (logits / _SHARP)).to(down.weight.dtype)
    flat = _power(_TINY / bound) if names.squash == "tanh" else 1.0
    second.weight.fill_(flat * _epsilon(second) ** 0.5 / logits)
    _pass_logits(stock, names, flat, head.out_bias)


def _check_room(config: PretrainedConfig, names: _Names, num_labels: int, size: int, intermediate: int) -> None:
    act = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    if act not in _RELU_LIKE:
        raise _no_form(f"its blocks have the activation {act!r}, which cannot stand for ReLU")
    if intermediate < size:
        raise _no_form(f"its blocks are {intermediate} wide within, narrower than its vectors of {size}")
    most = size - 1 if names.squash == "tanh" else size // 2
    if num_labels > most:
        raise _no_form(f"{num_labels} classes are more than the {most} that fit into its vectors of {size}")


def _epsilon(norm: Any) -> float:
    return norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps


def _pass_values(value: Any, size: int, heads: int) -> None:
    """Makes the values of attention what comes in; DeBERTa has queries, keys and values of each head in one layer."""
    rows = torch.arange(size)
    if value.weight.shape[0] == 3 * size:
        each = size // heads
        rows = rows // each * 3 * each + 2 * each + rows % each
    value.weight[rows, torch.arange(size)] = 1.0


def _pass_logits(stock: Any, names: _Names, flat: float, bias: Tensor) -> None:
    """Makes the stock head give `bias` plus 1 / `flat` times the first values that it gets."""
    dense, out = _part(stock, names.dense), _part(stock, names.out)
    for layer in (dense, out):
        layer.weight.zero_()
        layer.bias.zero_()
    out.bias.copy_(bias)
    each = torch.arange(len(bias))
    dense.weight[each, each] = 1.0
    out.weight[each, each] = 1 / flat
    if names.squash != "tanh":  # relu(x) - relu(-x) is x, and so it is with gelu
        dense.weight[each + len(bias), each] = -1.0
        out.weight[each, each + len(bias)] = -1 / flat


def _write_modernbert(stock: Any, head: _Head) -> None:
    """`head` as ModernBERT's own, which has a LayerNorm between its activation and its last layer.

    Far below the root of its epsilon it takes the mean of its inputs away, and nothing else. Hidden unit j is scaled by
    1 / v_j, which ReLU lets through, with v > 0 such that every row of `out_weight * v` has sum 0 and sees no mean.
    """
    weights = head.out_weight
    v = _positive_in_null_space(weights)
    if v is None:
        raise _no_form(f"the LayerNorm in its head hides what {len(weights)} classes need")
    epsilon = _epsilon(stock.head.norm)
    scale = _power(epsilon**0.5 * _TINY / (max(head.largest_hidden, 1.0) / float(v.min())))
    stock.head.dense.weight.copy_(head.weight / v.unsqueeze(1) * scale)
    stock.head.dense.bias.copy_(head.bias / v * scale)
    stock.head.norm.weight.fill_(epsilon**0.5 / scale)
    if stock.head.norm.bias is not None:
        stock.head.norm.bias.zero_()
    stock.classifier.weight.copy_(weights * v)
    stock.classifier.bias.copy_(head.out_bias)


def _positive_in_null_space(weights: Tensor) -> Tensor | None:
    """A vector v > 0 with `weights @ v` 0, or None where none is found.

    By projecting onto the one set and the other in turn (Bauschke and Borwein, SIAM Review 38, 1996). With far more
    hidden units than classes, whose weights have either sign, the first projection of (1, 1, ...) does it.
    """
    v = torch.ones(weights.shape[1], dtype=torch.float64)
    inverse = torch.linalg.pinv(weights)
    for _ in range(10_000):
        v = v - inverse @ (weights @ v)
        if float(v.min()) > 0.02:
            return v
        v = v.clamp(min=0.1)
    return None
