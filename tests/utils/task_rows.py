"""Files of one task in every format, and the rows that loading and validation make of them."""

import csv
import json
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtl_dist.config.recipe import TaskConfig
from mtl_dist.data.sources import load_rows
from mtl_dist.data.validation import LabeledTask, check_rows
from mtl_dist.errors import UserError

Rows = list[dict[str, Any]]


KINDS = ["json", "csv", "parquet"]


def write(path: Path, rows: Rows | pa.Table | datasets.Dataset | str) -> str:
    """Writes `rows` in the format of the file name's suffix, a string unchanged; returns the path."""
    match rows:
        case str():
            path.write_text(rows, encoding="utf-8")
        case datasets.Dataset():
            rows.to_parquet(path)
        case pa.Table():
            pq.write_table(rows, path)
        case _ if path.suffix == ".json":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        case _ if path.suffix == ".csv":
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        case _:
            pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def row(text: Any, label: Any) -> dict[str, Any]:
    """A row with the default column names."""
    return {"text": text, "label": label}


GOOD = [row("a cat", 0), row("a dog", 1)]


def a_task(folder: Path, train: Any, test: Any = GOOD, kind: str = "json", **fields: Any) -> TaskConfig:
    """Writes the files of two splits into `folder`; returns a task that reads them."""
    files = {split: write(folder / f"{split}.{kind}", rows) for split, rows in (("train", train), ("test", test))}
    return TaskConfig(path=kind, data_files=files, **fields)


def checked(task: TaskConfig, empty_text: Literal["error", "skip"] = "error") -> LabeledTask:
    """Loads and validates the rows of `task`."""
    splits = {split: load_rows("tasks.t", task, split) for split in ("train", "test")}
    return check_rows("tasks.t", task, splits, empty_text)


def refusal(task: TaskConfig, empty_text: Literal["error", "skip"] = "error") -> str:
    """Message of the UserError that validation of `task` raises."""
    with pytest.raises(UserError) as error:
        checked(task, empty_text)
    return str(error.value)


def contents(examples: LabeledTask) -> dict[str, list[tuple[str, str]]]:
    """Text and class name of each row that is used, by split."""
    return {
        split: [
            (text, examples.labels[label])
            for text, label in zip(of.columns[of.rows]["text"].to_pylist(), of.labels, strict=True)
        ]
        for split, of in examples.splits.items()
    }


def with_class_names(names: list[str], texts: list[str], labels: list[int]) -> datasets.Dataset:
    """Rows whose label column has class names of its own."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
