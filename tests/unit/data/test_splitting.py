from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.config.data_recipe import SplitConfig
from mtl_dist.data import chunked
from mtl_dist.data.splitting import TEST, TRAIN, VALIDATION, sides
from mtl_dist.data.string_table import StringTable

SHARES = SplitConfig(validation=0.1, test=0.25)
BY_CLASS = SplitConfig(validation=0.1, test=0.25, stratify="label")


def sides_of(columns: Mapping[str, Sequence[Any]], split: SplitConfig, text: Sequence[str] = ("text",)) -> list[int]:
    schema = pa.schema([(name, pa.large_string()) for name in columns])
    table = StringTable(pa.table({name: list(values) for name, values in columns.items()}, schema))
    usable = np.array([bool(value) for value in columns["text"]])
    return sides(table, text, usable, split).tolist()


def reference(text: str, split: SplitConfig) -> int:
    number = xxhash.xxh3_64_intdigest(text.encode()) / 2**64
    if number < (split.test or 0):
        return TEST
    return VALIDATION if number < (split.test or 0) + (split.validation or 0) else TRAIN


TEXTS = [f"text {number}" for number in range(4000)]


def test_side_follows_from_the_hash_of_the_text() -> None:
    found = sides_of({"text": TEXTS}, SHARES)
    assert found == [reference(text, SHARES) for text in TEXTS]
    counts = Counter(found)
    assert counts[TEST] == pytest.approx(1000, abs=100)
    assert counts[VALIDATION] == pytest.approx(400, abs=60)


def test_side_of_a_pair_follows_from_both_texts() -> None:
    columns = {"text": ["a", "a", "b"], "b": ["x", "y", "x"]}
    found = sides_of(columns, SHARES, ("text", "b"))
    assert found == [reference(f"{one}\0{two}", SHARES) for one, two in zip(*columns.values(), strict=True)]


def test_rows_of_one_customer_are_on_one_side_and_those_of_none_go_by_their_text() -> None:
    customers = [f"c{number % 50}" if number % 4 else None for number in range(4000)]
    split = SplitConfig(validation=0.1, test=0.25, by="customer")
    found = sides_of({"text": TEXTS, "customer": customers}, split)
    expected = [reference(customer or text, SHARES) for customer, text in zip(customers, TEXTS, strict=True)]
    assert found == expected


def test_each_side_has_its_share_of_every_class() -> None:
    labels = ["rare" if number % 40 == 0 else "often" if number % 3 else None for number in range(4000)]
    found = sides_of({"text": TEXTS, "label": labels}, BY_CLASS)
    for label, count in Counter(labels).items():
        counts = Counter(side for side, of in zip(found, labels, strict=True) if of == label)
        assert counts[TEST] == pytest.approx(0.25 * count, abs=2)
        assert counts[VALIDATION] == pytest.approx(0.1 * count, abs=2)


tables = st.lists(
    st.tuples(st.sampled_from([*"abcdefghijkl", ""]), st.sampled_from(["x", "y", "z", None])), min_size=1, max_size=60
)
splits = st.builds(
    SplitConfig,
    validation=st.sampled_from([None, 0.1, 0.3]),
    test=st.sampled_from([0.1, 0.4, 0.6]),
    stratify=st.sampled_from([None, "label"]),
)


@settings(deadline=None)
@given(tables, tables, splits)
def test_rows_keep_their_side_when_others_are_appended(
    rows: list[tuple[str, str | None]], more: list[tuple[str, str | None]], split: SplitConfig
) -> None:
    before, after = (
        sides_of({"text": [text for text, _ in of], "label": [label for _, label in of]}, split)
        for of in (rows, rows + more)
    )
    used = [number for number, (text, _) in enumerate(rows) if text]
    assert [before[number] for number in used] == [after[number] for number in used]


@settings(deadline=None)
@given(tables, splits)
def test_equal_texts_are_on_one_side(rows: list[tuple[str, str | None]], split: SplitConfig) -> None:
    found = sides_of({"text": [text for text, _ in rows], "label": [label for _, label in rows]}, split)
    of_text = defaultdict(set)
    for (text, _), side in zip(rows, found, strict=True):
        of_text[text].add(side)
    assert all(len(of) == 1 for text, of in of_text.items() if text)


@settings(deadline=None)
@given(st.text(min_size=1, max_size=5), st.floats(0.01, 0.49), st.floats(0.01, 0.49))
def test_the_first_text_of_a_class_trains(label: str, validation: float, test: float) -> None:
    split = SplitConfig(validation=validation, test=test, stratify="label")
    assert sides_of({"text": ["a"], "label": [label]}, split) == [TRAIN]


def test_every_beginning_of_a_class_has_about_its_share() -> None:
    found = np.array(sides_of({"text": TEXTS, "label": ["x"] * 4000}, BY_CLASS))
    for side, share in ((TEST, 0.25), (VALIDATION, 0.1)):
        counts = np.cumsum(found == side)
        assert np.abs(counts - share * np.arange(1, 4001)).max() < 3


@pytest.mark.parametrize("split", [SHARES, BY_CLASS, SplitConfig(test=0.3, by="label")])
def test_sides_do_not_depend_on_the_size_of_chunks(monkeypatch: pytest.MonkeyPatch, split: SplitConfig) -> None:
    columns = {"text": TEXTS[:50] * 2, "label": [None if n % 5 == 0 else f"l{n % 3}" for n in range(100)]}
    whole = sides_of(columns, split)
    monkeypatch.setattr(chunked, "CHUNK_ROWS", 7)
    assert sides_of(columns, split) == whole


def test_sides_are_the_same_in_every_version() -> None:
    columns = {"text": TEXTS[:24], "label": [f"l{number % 2}" for number in range(24)]}
    assert "".join(map(str, sides_of(columns, BY_CLASS))) == "001002002100002200200000"


def test_a_number_is_the_same_value_in_any_form() -> None:
    """A column of integers has 1.0 for 1 in a shard with holes."""
    numbers = [str(number % 40) for number in range(400)]
    floats = [f"{number}.0" if index % 3 else number for index, number in enumerate(numbers)]
    for split in (SplitConfig(test=0.3, by="number"), SplitConfig(test=0.3, stratify="number")):
        expected = sides_of({"text": TEXTS[:400], "number": numbers}, split)
        assert sides_of({"text": TEXTS[:400], "number": floats}, split) == expected
