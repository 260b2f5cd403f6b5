"""Which rows each task of a recipe has: the sources that it names, and those that tasks define by themselves."""

from collections.abc import Sequence
from dataclasses import dataclass

from mtl_dist.config.data_recipe import SPLITS, SourceConfig, SourceFields, TaskConfig
from mtl_dist.config.recipe import Recipe

FILE_BUILDERS = ("csv", "json", "parquet", "arrow", "text")
"""Values of `path` for files that this package reads by itself; other values are data sets of `datasets`."""


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

    def key_of(self, task: str) -> str:
        """Key of a task, which begins messages about its label."""
        return f"tasks.{task}"


def source_of(recipe: Recipe, task: str) -> SourceConfig:
    """The source of a task's rows, with the task's own choice of text columns."""
    config = recipe.tasks[task]
    if config.source is not None:
        source = recipe.sources[config.source]
        return source if config.text is None else source.model_copy(update={"text": config.text})
    fields = {name: getattr(config, name) for name in SourceFields.model_fields}
    text = {} if config.text is None else {"text": config.text}
    return SourceConfig.model_construct(**fields, **text)


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
    return [
        ExampleSetConfig(
            name if choices.count((name, own)) == 1 else f"{name} ({', '.join(text)})",
            f"tasks.{name}" if own else f"sources.{name}",
            source_of(recipe, next(iter(tasks))),
            text,
            tasks,
        )
        for (name, own, text), tasks in members.items()
    ]


def splits_by_recipe(source: SourceConfig) -> tuple[str, ...] | None:
    """Names of the splits that a source has, in the order of SPLITS; None where only its data set tells."""
    if not source.data_files:
        return None
    return tuple(name for name in SPLITS if name in source.data_files or name in source.split.held_out)
