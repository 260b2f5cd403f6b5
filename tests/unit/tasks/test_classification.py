"""Metrics of classification against scikit-learn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from mtl_dist.tasks.classification import ClassificationMetrics
from tests.utils.confusions import confusion_of


@settings(deadline=None)
@given(st.integers(2, 6), st.data())
def test_metrics_equal_those_of_scikit_learn(num_labels: int, data: st.DataObject) -> None:
    """This includes classes that occur neither as label nor as prediction, or only as one of them."""
    classes = st.sampled_from(data.draw(st.lists(st.integers(0, num_labels - 1), min_size=1)))
    pairs = data.draw(st.lists(st.tuples(classes, classes), min_size=1, max_size=30))
    labels, predictions = zip(*pairs, strict=True)
    metrics = ClassificationMetrics(confusion_of(pairs, num_labels), 0.5)
    assert metrics.as_dict() == {
        "loss": 0.5,
        "accuracy": pytest.approx(accuracy_score(labels, predictions), rel=1e-12),
        "macro_f1": pytest.approx(f1_score(labels, predictions, average="macro"), rel=1e-12),
    }


def test_macro_f1_leaves_out_classes_that_do_not_occur() -> None:
    # Class 0: 2 true positives, 1 false positive. Class 1: 1 true positive, 1 false negative. Classes 2 and 3: none.
    metrics = ClassificationMetrics(confusion_of([(0, 0), (0, 0), (1, 0), (1, 1)], 4), 0.0)
    assert metrics.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    # A class that is predicted but never right counts with 0.
    metrics = ClassificationMetrics(confusion_of([(0, 0), (0, 3)], 4), 0.0)
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 0) / 2)
