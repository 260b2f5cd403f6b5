"""Confusion matrices from pairs of labels and predictions."""

import numpy as np


def confusion_of(pairs: list[tuple[int, int]], num_labels: int) -> np.ndarray:
    confusion = np.zeros((num_labels, num_labels), dtype=np.int64)
    for label, prediction in pairs:
        confusion[label, prediction] += 1
    return confusion
