"""Metrics of an evaluation against a plain loop over rows."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer

from mtl_dist.tasks.classification import ClassificationMetrics
from mtl_dist.training.context import RunContext
from mtl_dist.training.evaluation import evaluate, flat_confusions, flat_metrics
from tests.utils.confusions import confusion_of
from tests.utils.in_process import setup_here
from tests.utils.tiny import MOODS, TOPICS, tiny_recipe


def test_metric_names_have_split_task_and_metric() -> None:
    metrics = {
        "topic": ClassificationMetrics(np.eye(2, dtype=np.int64), 0.25),
        "mood": ClassificationMetrics(np.ones((2, 2)), 1.0),
    }
    assert flat_metrics(metrics, "test") == {
        "test/topic/loss": 0.25,
        "test/topic/accuracy": 1.0,
        "test/topic/macro_f1": 1.0,
        "test/mood/loss": 1.0,
        "test/mood/accuracy": 0.5,
        "test/mood/macro_f1": 0.5,
    }


def test_confusion_counts_leave_out_zeros() -> None:
    metrics = {"topic": ClassificationMetrics(confusion_of([(0, 2), (0, 2), (2, 1), (1, 1)], 3), 0.25)}
    assert flat_confusions(metrics, "eval") == {"eval/topic/confusion": [[0, 2, 2], [1, 1, 1], [2, 1, 1]]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def setup(folder: Path) -> Iterator[RunContext]:
    setup = setup_here(tiny_recipe(folder, "model.dtype=float64"))
    model = setup.engine.model.eval()
    with torch.no_grad():
        # New heads predict the same class for all texts, so their mean logits are subtracted from the biases.
        for index, (task, head) in enumerate(model.heads.items()):
            batch = setup.data.training_batch(np.full(48, index), np.arange(48))
            logits = model(batch.input_ids, batch.attention_mask, task)
            head.get_parameter("3.bias").sub_(logits.mean(dim=0))
        yield setup


def by_rows(folder: Path, setup: RunContext, split: str, task: str) -> tuple[np.ndarray, float]:
    """Returns the confusion matrix and the mean loss of a task, computed one text at a time."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "encoder")
    assert tokenizer is not None
    labels = setup.data.tasks[task].labels
    pairs, losses = [], []
    for line in (folder / "data" / f"{task}.{split}.json").read_text().splitlines():
        row = json.loads(line)
        tokens = tokenizer(row["text"], return_tensors="pt")
        logits = setup.engine.model(tokens["input_ids"], tokens["attention_mask"], task)[0]
        label = labels.index(str(row["label"]))
        losses.append(cross_entropy(logits, torch.tensor(label)).item())
        pairs.append((label, int(logits.argmax())))
    return confusion_of(pairs, len(labels)), sum(losses) / len(losses)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_an_evaluation_equals_a_loop_over_rows(folder: Path, setup: RunContext, batch_size: int) -> None:
    for split in ("train", "test"):
        metrics = evaluate(setup.engine, setup.data, split, batch_size, setup.cache)
        assert list(metrics) == ["topic", "mood"]
        for task, one in metrics.items():
            confusion, loss = by_rows(folder, setup, split, task)
            assert one.confusion.tolist() == confusion.tolist()
            assert one.loss == pytest.approx(loss, rel=1e-9)


def test_the_model_of_these_tests_predicts_every_class(setup: RunContext) -> None:
    """Otherwise the test above could not detect exchanged labels and predictions, or rows in another order."""
    metrics = evaluate(setup.engine, setup.data, "train", 64, setup.cache)
    for one, classes in zip(metrics.values(), (TOPICS, MOODS), strict=True):
        assert np.count_nonzero(one.confusion.sum(axis=0)) == len(classes)
        assert not np.array_equal(one.confusion, one.confusion.T)
