"""Single-label classification: the head, the loss and the metrics of a task with one class per text."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def classification_head(hidden_size: int, num_labels: int, dropout: float, key: str, dtype: torch.dtype) -> nn.Module:
    """A head of Linear, ReLU, Dropout, Linear with torch's usual initialisation for Linear.

    Its weights are drawn from a generator of their own, seeded by `key` alone, so that they do not depend on which
    other heads a model has.
    """
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.blake2b(f"head/{key}".encode(), digest_size=8).digest(), "little") >> 1
    )
    layers = [nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, num_labels)]
    with torch.no_grad():
        for layer in layers:
            nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
            bound = 1 / math.sqrt(hidden_size)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    # Drawn in float32, so that runs in float64 start from the same values.
    return nn.Sequential(layers[0], nn.ReLU(), nn.Dropout(dropout), layers[1]).to(dtype)


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the cross-entropy of `logits` [n, num_labels] for class indices `labels` [n]; 0 with a graph for n = 0."""
    return cross_entropy(logits, labels, reduction="sum")


class Mistake(NamedTuple):
    """A row whose class was predicted wrongly."""

    index: int
    """Index of the row in its tokenized split."""
    label: int
    predicted: int
    score: float
    """Probability of `predicted`."""


@dataclass(frozen=True)
class ClassificationMetrics:
    """Metrics of one task on one split."""

    confusion: np.ndarray
    """Counts [num_labels, num_labels]: rows are true labels, columns predictions."""
    loss: float
    """Mean cross-entropy over the split."""
    mistakes: tuple[Mistake, ...] = ()
    """The most confident wrong predictions, in that order; as many as were asked for, or fewer."""

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur as label or prediction (as `sklearn.metrics.f1_score` averages)."""
        hits = np.diag(self.confusion)
        occurrences = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return float(np.mean(2 * hits[occurrences > 0] / occurrences[occurrences > 0]))

    def as_dict(self) -> dict[str, float]:
        """Loss, accuracy and macro-F1 by their names in metrics.jsonl."""
        return {"loss": self.loss, "accuracy": self.accuracy, "macro_f1": self.macro_f1}


def confusion_and_loss(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, float]:
    """Confusion counts [num_labels, num_labels] and summed loss of one batch."""
    loss = summed_loss(logits, labels)
    num_labels = logits.shape[-1]
    cells = torch.bincount(labels * num_labels + logits.argmax(dim=-1), minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels).cpu().numpy(), float(loss)


def mistakes_of(logits: Tensor, labels: Tensor, rows: np.ndarray) -> list[Mistake]:
    """The wrong predictions of one batch, whose rows in the split are `rows`."""
    scores, predicted = logits.double().softmax(dim=-1).max(dim=-1)
    columns = rows.tolist(), labels.tolist(), predicted.tolist(), scores.tolist()
    return [Mistake(*one) for one in zip(*columns, strict=True) if one[1] != one[2]]


def most_confident(mistakes: Sequence[Mistake], count: int) -> list[Mistake]:
    """The `count` mistakes with the highest scores, in that order."""
    return sorted(mistakes, key=lambda mistake: (-mistake.score, mistake.index))[:count]
