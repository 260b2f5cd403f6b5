"""Evaluation of every task on a split, shared out among the ranks with exact counts.

The rows of an example set are encoded once for all of its tasks. Batches are formed over the whole split, whatever the
number of ranks, and taken by the ranks in turn. Confusion counts are integers and batch losses are added by
`math.fsum`, so that the metrics do not depend on the number of ranks. All ranks make the same number of forward passes,
because with sharded parameters each pass needs them all.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mtl_dist.activation_cache.cache import ActivationCache
from mtl_dist.data.collate import Batch
from mtl_dist.data.dataset import DataBundle
from mtl_dist.distributed.process_group import ProcessGroup
from mtl_dist.models.multitask import PrefixState
from mtl_dist.tasks.classification import (
    ClassificationMetrics,
    Mistake,
    confusion_and_loss,
    mistakes_of,
    most_confident,
)


class Evaluable(Protocol):
    """A model that can be evaluated: an engine, or a model in one process."""

    @property
    def processes(self) -> ProcessGroup: ...
    @property
    def device(self) -> torch.device: ...
    def evaluating(self) -> AbstractContextManager[None]:
        """Context manager for forward passes that need no gradient."""

    def logits(self, batch: Batch, prefix: PrefixState | None = None) -> dict[str, Tensor]:
        """Logits [its rows, num_labels] of every task; `prefix` as in `MultitaskTransformer.forward`."""


def evaluate(
    engine: Evaluable,
    data: DataBundle,
    split: str,
    batch_size: int,
    cache: ActivationCache | None = None,
    before_batch: Callable[[], None] = lambda: None,
    max_mistakes: int = 0,
) -> dict[str, ClassificationMetrics]:
    """Returns the metrics of each task on `split`, with up to `max_mistakes` rows that were predicted wrongly.

    Tasks without a labelled row of the split are absent. Every rank calls this and gets the same. `before_batch` is
    called equally often on every rank; what it raises ends the evaluation.
    """
    metrics: dict[str, ClassificationMetrics] = {}
    for examples in data.sets:
        measured = [data.tasks[task] for task in examples.tasks if data.tasks[task].rows(split)]
        if not measured:
            continue
        # Rows of similar length share a batch; taken in turn, so that every rank gets long and short batches alike.
        order = np.argsort(examples.splits[split].lengths, kind="stable")
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        own = {task.name: _Counts(len(task.labels), max_mistakes) for task in measured}
        with engine.evaluating():
            for first in range(0, len(batches), engine.processes.world_size):
                before_batch()
                mine = first + engine.processes.rank
                # A rank without a batch of its own computes the first one along with the others and counts nothing.
                number = mine if mine < len(batches) else 0
                batch = data.evaluation_batch(examples, split, batches[number])
                labelled = {task: batches[number][batch.rows[task].numpy()] for task in own}
                batch = batch.to(engine.device)
                prefix = None if cache is None else cache.prefix_for_evaluation(split, examples.name, number, batch)
                logits = engine.logits(batch, prefix)
                if mine < len(batches):
                    for task, counts in own.items():
                        counts.add(logits[task], batch.labels[task], labelled[task])
        metrics |= {task.name: own[task.name].combined(engine.processes, task.rows(split)) for task in measured}
    return {task: metrics[task] for task in data.tasks if task in metrics}


class _Counts:
    """Sums of one task over the batches of one rank."""

    def __init__(self, num_labels: int, max_mistakes: int) -> None:
        self._confusion = np.zeros((num_labels, num_labels), dtype=np.int64)
        self._losses: list[float] = []
        self._mistakes: list[Mistake] = []
        self._max_mistakes = max_mistakes

    def add(self, logits: Tensor, labels: Tensor, rows: np.ndarray) -> None:
        """Adds a batch's examples that have the task's label; their rows in the split are `rows`."""
        counts, loss = confusion_and_loss(logits, labels)
        self._confusion += counts
        self._losses.append(loss)
        if self._max_mistakes:
            self._mistakes = most_confident([*self._mistakes, *mistakes_of(logits, labels, rows)], self._max_mistakes)

    def combined(self, group: ProcessGroup, rows: int) -> ClassificationMetrics:
        """The metrics over all ranks, for a split of `rows` rows with the task's label."""
        parts = group.all_gather((self._confusion, self._losses, self._mistakes))
        return ClassificationMetrics(
            np.sum([counts for counts, _, _ in parts], axis=0),
            math.fsum(loss for _, losses, _ in parts for loss in losses) / rows,
            tuple(most_confident([one for _, _, mistakes in parts for one in mistakes], self._max_mistakes)),
        )


def flat_metrics(metrics: Mapping[str, ClassificationMetrics], prefix: str) -> dict[str, float]:
    """Metrics by `<prefix>/<task>/<name>`."""
    return {f"{prefix}/{task}/{name}": value for task, one in metrics.items() for name, value in one.as_dict().items()}


def nonfinite_losses(metrics: Mapping[str, ClassificationMetrics]) -> list[str]:
    """A line for each task whose loss is not finite, because some of its logits are not."""
    return [
        f"{task}: the loss is not finite; the model overflows, and its other figures mean nothing"
        for task, one in metrics.items()
        if not math.isfinite(one.loss)
    ]


def flat_confusions(metrics: Mapping[str, ClassificationMetrics], prefix: str) -> dict[str, list[list[int]]]:
    """Confusion counts by `<prefix>/<task>/confusion`, as [label, prediction, count] where the count is not 0.

    There are no more entries than the split has rows, however many classes there are.
    """
    return {
        f"{prefix}/{task}/confusion": [
            [int(label), int(prediction), int(one.confusion[label, prediction])]
            for label, prediction in np.argwhere(one.confusion)
        ]
        for task, one in metrics.items()
    }
