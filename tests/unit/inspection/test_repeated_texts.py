"""Repeated texts and leaks, compared with plain loops over all rows."""

import random
from collections import defaultdict

import numpy as np
import pytest

from mtl_dist.inspection import repeated_texts
from mtl_dist.inspection.repeated_texts import Repeated, TextRows, count_leaks, find_repeated


def part(source: random.Random, rows: int) -> TextRows:
    """Rows with few different hashes, at both ends of their range too, and labels with holes."""
    known = [0, 2**64 - 1, 2**63, *(source.randrange(2**64) for _ in range(20))]
    hashes = np.array([source.choice(known) for _ in range(rows)], dtype=np.uint64)
    labels = {task: np.array([source.randint(-1, 2) for _ in range(rows)]) for task in ("a", "b")}
    labels["c"] = (hashes % np.uint64(3)).astype(np.int64)  # a function of the text: never in conflict
    return TextRows(hashes, labels)


@pytest.mark.parametrize("at_a_time", [1, 7, 1 << 22])
@pytest.mark.parametrize("rows", [(0,), (1,), (30,), (30, 0, 11)])
def test_repeated_texts_and_conflicts_are_counted(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int, rows: tuple[int, ...]
) -> None:
    monkeypatch.setattr(repeated_texts, "ROWS_AT_A_TIME", at_a_time)
    source = random.Random(sum(rows))
    parts = [part(source, count) for count in rows]
    counts: dict[int, int] = defaultdict(int)
    labels: dict[str, dict[int, set[int]]] = {task: defaultdict(set) for task in ("a", "b", "c")}
    for one in parts:
        for row, text in enumerate(one.hashes.tolist()):
            counts[text] += 1
            for task in labels:
                if one.labels[task][row] >= 0:
                    labels[task][text].add(int(one.labels[task][row]))
    repeated = [count for count in counts.values() if count > 1]
    conflicts = {task: sum(len(found) > 1 for found in texts.values()) for task, texts in labels.items()}
    assert conflicts["c"] == 0
    assert find_repeated(parts) == Repeated(sum(repeated), len(repeated), conflicts)


@pytest.mark.parametrize("at_a_time", [1, 7, 1 << 22])
def test_leaks_are_counted_over_all_sources(monkeypatch: pytest.MonkeyPatch, at_a_time: int) -> None:
    monkeypatch.setattr(repeated_texts, "ROWS_AT_A_TIME", at_a_time)
    source = random.Random(0)
    known = [0, 2**64 - 1, *(source.randrange(2**64) for _ in range(40))]
    train = {
        name: np.array(source.sample(known, size), dtype=np.uint64) for name, size in (("x", 9), ("y", 15), ("z", 0))
    }
    test = np.array([source.choice(known) for _ in range(50)], dtype=np.uint64)
    expected = {name: sum(text in set(hashes.tolist()) for text in test.tolist()) for name, hashes in train.items()}
    texts = {text for hashes in train.values() for text in hashes.tolist()}
    assert count_leaks(train, test) == (
        sum(text in texts for text in test.tolist()),
        {name: count for name, count in expected.items() if count},
    )
    assert count_leaks({"z": train["z"]}, test) == (0, {})
