"""Per-task evaluation, sharded over the ranks with exact counts.

Batches are formed over the whole split, whatever the number of ranks, and dealt out; confusion counts are integers
and batch losses are added by `math.fsum`, so that the figures do not depend on the dealing. All ranks make the same
number of forwards, because with sharded parameters each forward needs them all.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mtl_dist.activation_cache.cache import ActivationCache
from mtl_dist.data.collate import Batch
from mtl_dist.data.dataset import DataBundle
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.models.multitask import PrefixState


class Measurable(Protocol):
    """What can be measured: an engine, or a model alone."""

    @property
    def processes(self) -> ProcessGroup: ...
    @property
    def device(self) -> torch.device: ...
    def evaluating(self) -> AbstractContextManager[None]:
        """Around forwards that need no gradient."""

    def logits(self, batch: Batch, prefix: PrefixState | None = None) -> dict[str, Tensor]:
        """Logits [its rows, num_labels] of every task; `prefix` as of `MultitaskTransformer.forward`."""


class Mistake(NamedTuple):
    """A row whose class was not recognised."""

    index: int
    """Of the row in its tokenised split."""
    label: int
    predicted: int
    score: float
    """Probability of `predicted`."""


@dataclass(frozen=True)
class TaskMetrics:
    """A task's figures on one split."""

    confusion: np.ndarray
    """Counts [num_labels, num_labels]: rows are true labels, columns predictions."""
    loss: float
    """Mean cross-entropy over the split."""
    mistakes: tuple[Mistake, ...] = ()
    """Those of which the model is surest, in that order; as many as were asked for, or fewer."""

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
        return {"loss": self.loss, "accuracy": self.accuracy, "macro_f1": self.macro_f1}


def evaluate(
    engine: Measurable,
    data: DataBundle,
    split: str,
    batch_size: int,
    cache: ActivationCache | None = None,
    before_batch: Callable[[], None] = lambda: None,
    most_mistakes: int = 0,
) -> dict[str, TaskMetrics]:
    """Metrics of every task on `split`, with up to `most_mistakes`; every rank calls this and gets the same.

    Every rank calls `before_batch` as often, and what it raises ends the evaluation.
    """
    metrics = {}
    rank, world_size = engine.processes.rank, engine.processes.world_size
    for index, (task, source) in enumerate(data.tasks.items()):
        # Rows of like length together; dealt in turn, so that every rank gets long and short batches alike.
        order = np.argsort(source.splits[split].lengths, kind="stable")
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        num_labels = len(source.labels)
        confusion = np.zeros((num_labels, num_labels), dtype=np.int64)
        losses: list[float] = []
        mistakes: list[Mistake] = []
        with engine.evaluating():
            for first in range(0, len(batches), world_size):
                before_batch()
                mine = first + rank
                # A rank that has no batch left goes along with the first one and counts nothing.
                number = mine if mine < len(batches) else 0
                rows = batches[number]
                batch = data.batch(split, np.full(len(rows), index), rows).to(engine.device)
                prefix = None if cache is None else cache.prefix_for_evaluation(split, task, number, batch)
                logits, labels = engine.logits(batch, prefix)[task], batch.labels[task]
                if mine < len(batches):
                    counts, loss = _measured(logits, labels)
                    confusion += counts
                    losses.append(loss)
                    if most_mistakes:
                        mistakes = _surest([*mistakes, *_mistakes(logits, labels, rows)], most_mistakes)
        parts = engine.processes.all_gather((confusion, losses, mistakes))
        total = math.fsum(loss for _, part, _ in parts for loss in part)
        metrics[task] = TaskMetrics(
            np.sum([counts for counts, _, _ in parts], axis=0),
            total / len(order),
            tuple(_surest([mistake for _, _, part in parts for mistake in part], most_mistakes)),
        )
    return metrics


def _mistakes(logits: Tensor, labels: Tensor, rows: np.ndarray) -> list[Mistake]:
    """Of one batch, whose rows in the split are `rows`."""
    scores, predicted = logits.double().softmax(dim=-1).max(dim=-1)
    columns = rows.tolist(), labels.tolist(), predicted.tolist(), scores.tolist()
    return [Mistake(*one) for one in zip(*columns, strict=True) if one[1] != one[2]]


def _surest(mistakes: list[Mistake], most: int) -> list[Mistake]:
    return sorted(mistakes, key=lambda mistake: (-mistake.score, mistake.index))[:most]


def _measured(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, float]:
    """Confusion counts and summed loss of one batch."""
    loss = cross_entropy(logits, labels, reduction="sum")
    num_labels = logits.shape[-1]
    cells = torch.bincount(labels * num_labels + logits.argmax(dim=-1), minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels).cpu().numpy(), float(loss)


def flat_metrics(metrics: Mapping[str, TaskMetrics], prefix: str) -> dict[str, float]:
    """Metrics as `<prefix>/<task>/<name>`."""
    return {f"{prefix}/{task}/{name}": value for task, one in metrics.items() for name, value in one.as_dict().items()}


def flat_confusions(metrics: Mapping[str, TaskMetrics], prefix: str) -> dict[str, list[list[int]]]:
    """What was taken for what, as `<prefix>/<task>/confusion`: [label, prediction, count] where that is not 0.

    So it has no more entries than the split has rows, however many classes there are.
    """
    return {
        f"{prefix}/{task}/confusion": [
            [int(label), int(prediction), int(one.confusion[label, prediction])]
            for label, prediction in np.argwhere(one.confusion)
        ]
        for task, one in metrics.items()
    }
