import numpy as np
import pytest
from sklearn.metrics import f1_score

from mtl_dist.inference.figures_text import MOST_CLASSES, MOST_ROWS, task_text
from mtl_dist.tasks.classification import ClassificationMetrics


def test_few_classes_are_printed_as_a_matrix() -> None:
    text = task_text("mood", ["bad", "good"], ClassificationMetrics(np.array([[3, 1], [0, 12]]), 0.25))
    assert text.splitlines() == [
        "mood: 16 rows, accuracy 0.9375, macro-F1 0.9086, loss 0.2500",
        "rows: true label, columns: prediction",
        "         bad  good",
        "   bad     3     1",
        "  good     0    12",
    ]


def test_of_many_classes_the_worst_are_printed() -> None:
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 90, 3000), rng.integers(0, 90, 3000)
    predicted[::2] = true[::2]
    confusion = np.zeros((100, 100), dtype=np.int64)  # ten classes do not occur
    np.add.at(confusion, (true, predicted), 1)
    labels = [f"c{index}" for index in range(100)]
    lines = task_text("topic", labels, ClassificationMetrics(confusion, 1.0)).splitlines()
    assert lines[1].startswith("100 classes; --to FILE writes the counts of all.")
    pairs = [line.split() for line in lines[3 : 3 + MOST_ROWS]]
    wrong = confusion - np.diag(confusion.diagonal())
    assert [int(count) for count, _, _ in pairs] == sorted(wrong.ravel().tolist(), reverse=True)[:MOST_ROWS]
    assert all(confusion[int(a[1:]), int(b[1:])] == int(count) and a != b for count, a, b in pairs)
    classes = [line.split() for line in lines[-MOST_ROWS:]]
    f1 = np.asarray(f1_score(true, predicted, average=None, labels=range(90)))
    assert [one[0] for one in classes] == [f"{value:.4f}" for value in np.sort(f1)[:MOST_ROWS]]
    for value, rows, times, label in classes:
        index = int(label[1:])
        assert (value, int(rows)) == (f"{f1[index]:.4f}", confusion[index].sum())
        assert int(times) == confusion[:, index].sum()


@pytest.mark.parametrize("count", [2, MOST_CLASSES, MOST_CLASSES + 1, 2000])
def test_the_text_is_short_for_any_number_of_classes_with_names_of_any_length(count: int) -> None:
    # Each class is taken for at most 300 others: there are no more mistakes than rows.
    confusion = np.tri(count, k=300, dtype=np.int64) - np.tri(count, k=-1, dtype=np.int64)
    metrics = ClassificationMetrics(confusion, 1.0)
    text = task_text("topic", [f"{index} {'long name ' * 50}" for index in range(count)], metrics)
    assert len(text) < 20_000
    assert max(map(len, text.splitlines())) <= 42 * (min(count, MOST_CLASSES) + 1)


def test_classes_without_mistakes_leave_no_confusions() -> None:
    metrics = ClassificationMetrics(np.eye(30, dtype=np.int64), 0.0)
    lines = task_text("topic", [f"c{index}" for index in range(30)], metrics).splitlines()
    assert [line.strip().split("  ")[0] for line in lines[2:5]] == ["count", "lowest F1:", "F1"]
