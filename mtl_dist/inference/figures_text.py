"""Figures of an evaluation as text for a terminal, short whatever the number of classes."""

from collections.abc import Sequence

import numpy as np

from mtl_dist.errors import clip, one_line
from mtl_dist.tasks.classification import ClassificationMetrics

MOST_CLASSES = 20
"""Number of classes up to which the confusion matrix is printed."""
MOST_ROWS = 10
"""Rows of the tables that stand in its place."""
_WIDEST = 40
"""Characters of a class name that are printed."""


def task_text(task: str, labels: Sequence[str], metrics: ClassificationMetrics) -> str:
    """Figures of one task with its confusion matrix, or with the worst of it where there are many classes."""
    head = (
        f"{task}: {int(metrics.confusion.sum())} rows, accuracy {metrics.accuracy:.4f},"
        f" macro-F1 {metrics.macro_f1:.4f}, loss {metrics.loss:.4f}"
    )
    names = [one_line(clip(label, _WIDEST)) for label in labels]
    table = _matrix if len(names) <= MOST_CLASSES else _worst
    return "\n".join([head, *table(names, metrics.confusion), ""])


def _matrix(labels: Sequence[str], confusion: np.ndarray) -> list[str]:
    """The whole confusion matrix [num_labels, num_labels]."""
    width = max(map(len, (*labels, *map(str, confusion.ravel())))) + 2
    rows = [["", *labels], *([label, *map(str, counts)] for label, counts in zip(labels, confusion, strict=True))]
    lines = ["".join(cell.rjust(width) for cell in row) for row in rows]
    return ["rows: true label, columns: prediction", *lines]


def _worst(labels: Sequence[str], confusion: np.ndarray) -> list[str]:
    """The most frequent confusions, and the classes with the lowest F1 of those that occur."""
    wrong = [(int(confusion[label, other]), label, other) for label, other in np.argwhere(confusion) if label != other]
    pairs = sorted(wrong, key=lambda one: (-one[0], one[1:]))[:MOST_ROWS]
    hits, true, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    # By F1, and the more frequent class first.
    classes = sorted(
        (2 * hits[index] / (true[index] + predicted[index]), -int(true[index]), int(index))
        for index in np.flatnonzero(true + predicted)
    )[:MOST_ROWS]
    return [
        f"{len(labels)} classes; --to FILE writes the counts of all. Most frequent confusions:",
        *_table(("count", "true label", "prediction"), [(str(n), labels[a], labels[b]) for n, a, b in pairs]),
        "lowest F1:",
        *_table(
            ("F1", "rows", "predicted", "label"),
            [(f"{f1:.4f}", str(-rows), str(predicted[index]), labels[index]) for f1, rows, index in classes],
        ),
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return ["  ".join(["", *map(str.ljust, row, widths)]).rstrip() for row in (header, *rows)]
