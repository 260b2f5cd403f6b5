"""A table with three label columns and holes in them, and a recipe whose tasks share its rows."""

import csv
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.utils.tiny import WORDS, tiny_encoder

TEAMS = ("billing", "delivery", "sales")
URGENCIES = ("1", "2", "3", "4")
MOODS = ("false", "true")
CLASSES = {"team": TEAMS, "urgency": URGENCIES, "mood": MOODS}
"""Classes of each task in the order of their indices."""
MISSING = {"team": 0.1, "urgency": 0.25, "mood": 0.85}
"""Share of the rows without a label, by task: 40 % of all labels."""
SPLITS = {"train": 60, "validation": 20, "test": 24}
Table = list[dict[str, str]]
"""Rows by column; a missing label is an empty string."""


def ticket_table(rows: int, seed: int) -> Table:
    """Rows with distinct texts of 1 to 12 words and up to three labels; a few rows have none."""
    source = random.Random(seed)
    table: Table = []
    for number in range(rows):
        words = [source.choice(WORDS) for _ in range(source.randint(1, 9))]
        words += [f"so{digit}" for digit in oct(1000 * seed + number)[2:]]
        row = {"text": " ".join(words)}
        for task, classes in CLASSES.items():
            row[task] = "" if source.random() < MISSING[task] else classes[source.randrange(len(classes))]
        table.append(row)
    return table


def ticket_tables() -> dict[str, Table]:
    """The rows of each split."""
    return {split: ticket_table(rows, seed) for seed, (split, rows) in enumerate(SPLITS.items(), start=1)}


def write_table(path: Path, table: Table) -> None:
    """Writes a CSV file."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["text", *CLASSES])
        writer.writeheader()
        writer.writerows(table)


def shared_recipe_file(folder: Path, tables: Mapping[str, Table] | None = None) -> Path:
    """Writes a recipe of three phases of 5 steps with its encoder and its table into `folder`; no dropout.

    Learning rates are constant, so that a plain loop needs no schedule.
    """
    tiny_encoder(folder / "encoder")
    files = {split: str(folder / f"tickets.{split}.csv") for split in SPLITS}
    for split, table in (tables or ticket_tables()).items():
        write_table(Path(files[split]), table)
    recipe: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "batch_size": 11,
        "model": {"encoder": str(folder / "encoder"), "dropout": 0.0, "encoder_dropout": 0.0},
        "sources": {"tickets": {"path": "csv", "data_files": files}},
        "tasks": {task: {"source": "tickets", "label": task} for task in CLASSES},
        "data": {"max_length": 32, "cache_dir": str(folder / "cache")},
        "phases": [
            {"name": "heads", "train": ["heads"], "steps": 5},
            {"name": "upper", "train": ["heads", "blocks[-2:]"], "steps": 5},
            {"name": "all", "train": ["all"], "steps": 5},
        ],
        "optimizer": {"lr": 1e-3, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.1},
        "tracking": {"log_every_steps": 1},
    }
    recipe["tasks"]["urgency"]["weight"] = 2.0
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")  # JSON is YAML
    return path
