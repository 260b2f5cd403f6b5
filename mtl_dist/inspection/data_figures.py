"""The data of a recipe in figures: what `mtl-dist data` prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import example_sets
from mtl_dist.data.dataset import DataBundle, ExampleSet, TaskData
from mtl_dist.inspection.repeated_texts import Repeated, TextRows, count_leaks, find_repeated
from mtl_dist.inspection.token_facts import LengthFigures, UnknownFigures, token_facts
from mtl_dist.progress import show_progress


@dataclass(frozen=True)
class TaskFigures:
    """One task: its classes and their rows."""

    name: str
    source: str
    """Name of its example set."""
    kind: str
    """Kind of the label column as log lines show it, e.g. `whole numbers`."""
    classes: tuple[str, ...]
    counts: dict[str, np.ndarray]
    """Rows of each class, [classes] int64, by split."""
    missing: dict[str, int]
    """Rows without a label, by split."""

    def rows(self, split: str) -> int:
        """Rows with a label in a split."""
        return int(self.counts[split].sum()) if split in self.counts else 0

    @property
    def order(self) -> list[int]:
        """Class indices from the most to the least frequent training class."""
        return np.argsort(-self.counts["train"], kind="stable").tolist()

    @property
    def imbalance(self) -> float | None:
        """Training rows of the largest class over those of the smallest; None if a class has none."""
        train = self.counts["train"]
        return float(train.max() / train.min()) if train.min() else None


@dataclass(frozen=True)
class SourceFigures:
    """One example set: its rows and texts."""

    name: str
    text: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: dict[str, int]
    """Rows with a label for some task, by split."""
    lengths: LengthFigures
    unknown: UnknownFigures
    repeated: Repeated


@dataclass(frozen=True)
class Leak:
    """Rows of a validation or test split whose text is also a training text."""

    source: str
    split: str
    rows: int
    of: int
    """All rows of the split."""
    trained_by: dict[str, int]
    """How many of the rows are training texts of each source."""


@dataclass(frozen=True)
class DataFigures:
    """The data of a recipe."""

    encoder: str
    max_length: int
    tasks: tuple[TaskFigures, ...]
    sources: tuple[SourceFigures, ...]
    leaks: tuple[Leak, ...]
    warnings: tuple[str, ...]
    """What training would warn of."""

    @property
    def splits(self) -> list[str]:
        """Splits that some task has, in order."""
        return [split for split in ("train", "validation", "test") if any(split in one.rows for one in self.sources)]


def figures_of(recipe: Recipe, bundle: DataBundle) -> DataFigures:
    """The figures of the data of `recipe`, which are prepared. Raises UserError if a file has gone since."""
    sources = []
    progress = partial(show_progress, last_line=False)
    for config, examples in zip(example_sets(recipe), bundle.sets, strict=True):
        lengths, unknown = token_facts(config, examples.splits, bundle.tokenizer, recipe.data.max_length, progress)
        sources.append(
            SourceFigures(
                examples.name,
                tuple(config.text),
                examples.tasks,
                {split: len(part.lengths) for split, part in examples.splits.items()},
                lengths,
                unknown,
                find_repeated([TextRows(part.text_hashes, part.labels) for part in examples.splits.values()]),
            )
        )
    return DataFigures(
        recipe.model.encoder,
        recipe.data.max_length,
        tuple(_task_figures(task) for task in bundle.tasks.values()),
        tuple(sources),
        tuple(_leaks(bundle.sets)),
        bundle.warnings,
    )


def _task_figures(task: TaskData) -> TaskFigures:
    return TaskFigures(
        task.name, task.examples.name, task.kind, task.labels, dict(task.class_counts), dict(task.missing)
    )


def _leaks(sets: Sequence[ExampleSet]) -> list[Leak]:
    train: Mapping[str, np.ndarray] = {one.name: one.splits["train"].text_hashes for one in sets}
    found = []
    for one in sets:
        for split, part in one.splits.items():
            if split != "train":
                rows, trained_by = count_leaks(train, part.text_hashes)
                found += [Leak(one.name, split, rows, len(part.lengths), trained_by)] if rows else []
    return found
