"""The same table as CSV, JSON or parquet, in one file or shards, in any order, gives the same classes and indices."""

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from csv import writer
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_dist.config.data_recipe import TaskConfig
from mtl_dist.errors import UserError
from tests.utils.task_rows import checked, contents, names_of

Table = list[tuple[str, Any]]
"""Text and label of each row."""


def as_csv(path: Path, rows: Table) -> None:
    """As pandas and people write it: True and False capitalized, nothing for a missing value."""
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = writer(file)
        lines.writerow(["text", "label"])
        lines.writerows([text, "" if label is None else str(label)] for text, label in rows)


def as_json_lines(path: Path, rows: Table) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="")


def as_json_array(path: Path, rows: Table) -> None:
    path.write_text(json.dumps([{"text": text, "label": label} for text, label in rows], indent=1), encoding="utf-8")


def as_parquet(path: Path, rows: Table) -> None:
    labels = [label for _, label in rows]
    pq.write_table(pa.table({"text": [text for text, _ in rows], "label": pa.array(labels)}), path)


def as_parquet_from_pandas(path: Path, rows: Table) -> None:
    """Where rows have no label, pandas makes floats of whole numbers."""
    if all(isinstance(label, int | None) and not isinstance(label, bool) for _, label in rows):
        rows = [(text, None if label is None else float(label)) for text, label in rows]
    as_parquet(path, rows)


def as_class_labels(path: Path, rows: Table) -> None:
    """Strings as indices into class names, which are in another order in each file."""
    names = sorted({label for _, label in rows if label is not None})
    if not names or not all(isinstance(name, str) for name in names):
        return as_parquet(path, rows)
    random.Random(len(rows)).shuffle(names)
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    indices = [None if label is None else names.index(label) for _, label in rows]
    table = datasets.Dataset.from_dict({"text": [text for text, _ in rows], "label": indices}, features=features)
    pq.write_table(table.data.table, path)  # with the features in its metadata, as `to_parquet` does
    return None


WRITERS: dict[str, tuple[str, Callable[[Path, Table], None]]] = {
    "csv": ("csv", as_csv),
    "json lines": ("json", as_json_lines),
    "json array": ("json", as_json_array),
    "parquet": ("parquet", as_parquet),
    "parquet from pandas": ("parquet", as_parquet_from_pandas),
    "class labels": ("parquet", as_class_labels),
}

awkward = st.one_of(
    st.sampled_from(
        ["1", "1.0", "01", "007", "-0", "NA", "nan", "None", "null", "true", "True", "yes", "é", "e\u0301"]
    ),
    st.sampled_from([" a", "a ", 'say "x"', "a,b", "a;b", "two\nlines", "2021-01-01", "1e5", "+1", "0x10", "½", "1_0"]),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), min_size=1, max_size=4),
).filter(lambda label: label.strip())
whole = st.one_of(st.integers(-3, 12), st.integers(-(2**53), 2**53))
values = st.one_of(
    st.lists(awkward, min_size=2, max_size=5, unique=True),
    st.lists(whole, min_size=2, max_size=5, unique=True),
    st.just([True, False]),
)


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Rows with labels of one type, and holes; each value of the labels occurs."""
    found = draw(values)
    more = draw(st.lists(st.sampled_from([*found, None]), max_size=8))
    labels = draw(st.permutations([*found, *more]))
    texts = draw(st.lists(awkward, min_size=len(labels), max_size=len(labels), unique=True))
    return list(zip(texts, labels, strict=True))


def outcome(writer: str, shards: Sequence[Table]) -> Any:
    """Class names, and class of each text, of a table that is written in parts; or the message of a refusal."""
    kind, write = WRITERS[writer]
    with tempfile.TemporaryDirectory() as folder:
        for index, shard in enumerate(shards):
            write(Path(folder) / f"part{index}.{kind}", shard)
        files = {split: [f"{folder}/part*.{kind}"] for split in ("train", "test")}
        try:
            examples = checked(TaskConfig(path=kind, data_files=files))
        except UserError as error:
            return str(error).replace(folder, "").split("row ")[0]
        assert contents(examples)["train"] == contents(examples)["test"]
        return names_of(examples), sorted(contents(examples)["train"])


def reference(rows: Table) -> Any:
    """Classes and rows by the rules, for labels of Python types."""
    labels = {label for _, label in rows if label is not None}
    order = sorted(labels, key=lambda label: label if isinstance(label, int) else str(label))
    if all(isinstance(label, str) for label in labels):
        return None
    names = tuple(str(label).lower() for label in order)
    return names, sorted((text, str(label).lower()) for text, label in rows if label is not None)


@settings(deadline=None, max_examples=40)
@given(tables(), st.data())
def test_format_shards_and_order_do_not_matter(rows: Table, data: st.DataObject) -> None:
    whole = outcome("json lines", [rows])
    expected = reference(rows)
    if expected is not None:
        assert whole == expected
    for name in WRITERS:
        order = data.draw(st.permutations(rows))
        cut = data.draw(st.integers(0, len(rows) - 1))
        shards = [part for part in (order[:cut], order[cut:]) if part]
        found = outcome(name, shards)
        labels = {label for _, label in rows if label is not None}
        if name == "class labels" and all(isinstance(label, str) for label in labels):
            names, classes = found
            assert (set(names), classes) == (labels, sorted((text, label) for text, label in rows if label is not None))
        else:
            assert found == whole


@pytest.mark.parametrize("writer", WRITERS)
def test_numbers_beside_holes_and_awkward_strings_as_each_format_has_them(writer: str) -> None:
    rows: Table = [("a", 10), ("b", None), ("c", 9), ("d", -1), ("e", 0)]
    assert outcome(writer, [rows[:2], rows[2:]]) == reference(rows)
    texts: Table = [("a", "NA"), ("1", "007"), ("true", "null"), ("x,y", None), ('"', "a;b")]
    names, found = outcome(writer, [texts[:3], texts[3:]])
    assert sorted(names) == ["007", "NA", "a;b", "null"]
    assert found == sorted((text, label) for text, label in texts if label is not None)
