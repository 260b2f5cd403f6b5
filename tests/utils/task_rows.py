"""Files of one task in every format, and the rows that loading and validation make of them."""

import csv
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtl_dist.config.data_recipe import SPLITS, TaskConfig
from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import ExampleSetConfig, example_sets
from mtl_dist.data.sources import open_source
from mtl_dist.data.validation import LabeledSet, check_rows
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
    return TaskConfig.model_validate({"path": kind, "data_files": files, **fields})


def set_of(task: TaskConfig) -> ExampleSetConfig:
    """The example set of a recipe that has one task, called t."""
    (config,) = example_sets(Recipe(tasks={"t": task}))
    return config


def checked_set(
    config: ExampleSetConfig, splits: Sequence[str] = SPLITS, empty_text: Literal["error", "skip"] = "error"
) -> LabeledSet:
    """Loads and validates the rows of an example set."""
    with tempfile.TemporaryDirectory() as folder:  # its files stay mapped
        source = open_source(config, splits).read(Path(folder))
        return check_rows(config, source, splits, empty_text)


def checked(task: TaskConfig, empty_text: Literal["error", "skip"] = "error") -> LabeledSet:
    """Loads and validates the rows of `task`."""
    return checked_set(set_of(task), empty_text=empty_text)


def refusal(task: TaskConfig, empty_text: Literal["error", "skip"] = "error") -> str:
    """Message of the UserError that validation of `task` raises."""
    with pytest.raises(UserError) as error:
        checked(task, empty_text)
    return str(error.value)


def names_of(examples: LabeledSet, task: str = "t") -> tuple[str, ...]:
    """Class names of a task."""
    return examples.classes[task].names


def contents(examples: LabeledSet, task: str = "t", column: str = "text") -> dict[str, list[tuple[str, str | None]]]:
    """Text and class name of each row that is used, by split; None where a row has no label for the task."""
    names = [*names_of(examples, task), None]
    return {
        split: [
            (text, names[label])
            for text, label in zip(
                of.table.take(of.rows, [column]).column(0).to_pylist(), of.labels[task].tolist(), strict=True
            )
        ]
        for split, of in examples.splits.items()
    }


def with_class_names(names: list[str], texts: list[str], labels: list[int]) -> datasets.Dataset:
    """Rows whose label column has class names of its own."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)
