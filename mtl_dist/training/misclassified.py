"""Tables of the final evaluation: confusion matrices and the misclassified texts."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import pyarrow as pa

from mtl_dist.data.dataset import DataBundle
from mtl_dist.tasks.classification import ClassificationMetrics
from mtl_dist.tracking.tables import FinalTables, MisclassifiedText
from mtl_dist.training.evaluation import flat_confusions


def final_tables(metrics: Mapping[str, ClassificationMetrics], data: DataBundle, split: str) -> FinalTables:
    """Returns the tables of an evaluation of `split`. Called by one rank."""
    labels = {task: source.labels for task, source in data.tasks.items()}
    confusions = {key.split("/")[1]: cells for key, cells in flat_confusions(metrics, split).items()}
    texts = {task: _texts(one, data, split, task) for task, one in metrics.items()}
    return FinalTables(labels, confusions, texts)


def _texts(metrics: ClassificationMetrics, data: DataBundle, split: str, task: str) -> list[MisclassifiedText]:
    """Decodes the misclassified texts from their tokens, because their files may be remote or gone by now."""
    if not metrics.mistakes:
        return []
    names = data.tasks[task].labels
    at = np.array([mistake.index for mistake in metrics.mistakes])
    examples = data.tasks[task].examples
    batch = data.evaluation_batch(examples, split, at)
    columns = cast(pa.Table, examples.splits[split].rows[at])
    texts = [
        str(data.tokenizer.decode(tokens[attended.bool()].tolist(), skip_special_tokens=True))
        for tokens, attended in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    return [
        MisclassifiedText(row, text, names[mistake.label], names[mistake.predicted], mistake.score)
        for row, text, mistake in zip(columns["row"].to_pylist(), texts, metrics.mistakes, strict=True)
    ]
