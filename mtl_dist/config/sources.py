"""Which rows each task of a recipe has: the sources that it names, and those that tasks define by themselves."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from mtl_dist.config.data_recipe import SPLITS, SourceConfig, SourceFields, TaskConfig
from mtl_dist.config.recipe import Recipe

FILE_BUILDERS = ("csv", "json", "parquet", "arrow", "text")
"""Values of `path` for files that this package reads by itself; other values are data sets of `datasets`."""
BUILDER_OF_ENDING = {
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
    **dict.fromkeys((".txt", ".text"), "text"),
}
"""Ending of a file's name, in lower case -> value of `path`."""
COMPRESSED = (".gz", ".gzip", ".bz2", ".xz", ".zip", ".zst", ".zstd", ".lz4")
"""Endings of compressed files, before which the ending of the content stands."""


@dataclass(frozen=True)
class ExampleSetConfig:
    """One source with one choice of text columns, and the tasks that use both. Its rows are encoded once for all."""

    name: str
    """Name of the source, or of the task that defines it; with the text columns where a source has several choices."""
    key: str
    """Key of the source in the recipe, `sources.<name>` or `tasks.<name>`; begins error messages."""
    source: SourceConfig
    text: Sequence[str]
    """One text column, or two for sentence pairs."""
    tasks: dict[str, TaskConfig]
    """In the order of the recipe."""
    other_text: Sequence[str] = ()
    """Text columns of other tasks of the source: a row is held out by all of its texts, on one side for all tasks."""

    def key_of(self, task: str) -> str:
        """Key of a task, which begins messages about its label."""
        return f"tasks.{task}"

    def origin_of(self, split: str) -> str:
        """Split of the source that the rows of `split` are taken from; a row's number counts in it."""
        return "train" if split in self.source.split.held_out else split


def source_of(recipe: Recipe, task: str) -> SourceConfig:
    """The source of a task's rows, with the task's own choice of text columns."""
    config = recipe.tasks[task]
    if config.source is not None:
        source = recipe.sources[config.source]
        return source if config.text is None else source.model_copy(update={"text": config.text})
    fields = {name: getattr(config, name) for name in SourceFields.model_fields}
    own = SourceConfig.model_construct(**fields)
    return own if config.text is None else own.model_copy(update={"text": config.text})


def text_of(recipe: Recipe, task: str) -> list[str]:
    """Text columns of a task: one, or two for sentence pairs."""
    return source_of(recipe, task).text


def example_sets(recipe: Recipe) -> list[ExampleSetConfig]:
    """The example sets of a recipe, in the order of their first tasks."""
    members: dict[tuple[str, bool, tuple[str, ...]], dict[str, TaskConfig]] = {}
    for task, config in recipe.tasks.items():
        own = config.source is None
        key = (task if config.source is None else config.source, own, tuple(text_of(recipe, task)))
        members.setdefault(key, {})[task] = config
    choices = [(name, own) for name, own, _ in members]
    columns: dict[tuple[str, bool], dict[str, None]] = {}
    for name, own, text in members:
        columns.setdefault((name, own), {}).update(dict.fromkeys(text))
    return [
        ExampleSetConfig(
            name if choices.count((name, own)) == 1 else f"{name} ({', '.join(map(_column_in_name, text))})",
            f"tasks.{name}" if own else f"sources.{name}",
            source_of(recipe, next(iter(tasks))),
            text,
            tasks,
            [column for column in columns[name, own] if column not in text],
        )
        for (name, own, text), tasks in members.items()
    ]


def splits_by_recipe(source: SourceConfig) -> tuple[str, ...] | None:
    """Names of the splits that a source has, in the order of SPLITS; None where only its data set tells."""
    if not source.data_files:
        return None
    return tuple(name for name in SPLITS if name in source.data_files or name in source.split.held_out)


def builder_of(file: str) -> str | None:
    """Value of `path` for a file with such a name, compressed or not; None where its ending tells none."""
    return BUILDER_OF_ENDING.get(uncompressed_name(file).suffix.lower())


def uncompressed_name(file: str) -> PurePath:
    """Path of a file without the endings of its compression."""
    path = PurePath(file)
    while path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path


def missing_path(key: str, data_files: Mapping[str, Sequence[str]], sources: Iterable[str] = ()) -> str:
    """Message about a source or task at `key` without `path`: what would suit its files, or else the known sources."""
    builders = {builder_of(file) for files in data_files.values() for file in files}
    hint = f"; or name a source: {', '.join(sources)}" if sources else ""
    if len(builders) == 1 and (builder := builders.pop()) is not None:
        hint = f"; its files end like those of path: {builder}"
    return f"{key}.path: missing{hint}"


def _column_in_name(column: str) -> str:
    """A text column in the name of an example set, quoted where two choices could be read as one."""
    return column if re.fullmatch(r"[\w.-]+(?: [\w.-]+)*", column) else json.dumps(column, ensure_ascii=False)
