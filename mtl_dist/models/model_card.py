"""The model card beside saved weights: tasks, test metrics, recipe, and how to load the model."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

from huggingface_hub import EvalResult, ModelCardData

from mtl_dist.config.data_recipe import SourceConfig, TaskConfig
from mtl_dist.config.load import resolved_yaml
from mtl_dist.config.recipe import Recipe
from mtl_dist.config.sources import FILE_BUILDERS, source_of

_Rows = TypeVar("_Rows", SourceConfig, TaskConfig)
CARD = "README.md"
"""File name of a model card on the Hugging Face hub."""
MOST_LABELS = 20
"""Labels of a task on a card; config.json has all of them."""
_METRICS = {"accuracy": "accuracy", "macro_f1": "f1"}
"""Names of our metrics, and of the same metrics on the hub."""
_RUN = """\
```python
from transformers import AutoTokenizer
from mtl_dist import MultitaskTransformer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = MultitaskTransformer.from_pretrained(FOLDER)
batch = tokenizer(["some text"], return_tensors="pt")
logits = model(batch["input_ids"], batch["attention_mask"], "{task}")
```

`python -m mtl_dist export` makes a folder of one task that `transformers` alone can load."""


def run_card(recipe: Recipe, labels: Mapping[str, Sequence[str]], summary: Mapping[str, Any]) -> str:
    """Writes the card of a run's model with all its tasks; `labels` are the class names of each task."""
    first = next(iter(labels))
    return model_card(recipe, labels, summary, "mtl_dist", "text-classification", _RUN.format(task=first))


def model_card(
    recipe: Recipe,
    labels: Mapping[str, Sequence[str]],
    summary: Mapping[str, Any],
    library: str,
    pipeline: str,
    usage: str,
) -> str:
    """Writes a model card as Markdown with metadata.

    `labels` are the class names of each task on the card; `usage` explains how to load the folder. Folders of this
    machine are left out of the recipe, because cards are published.
    """
    encoder = recipe.model.encoder
    base = None if _is_local(encoder) else encoder
    sources = {task: source_of(recipe, task) for task in labels}
    results = [result for task, source in sources.items() for result in _results(task, source, summary)]
    hub_data = sorted({source.path for source in sources.values() if not _is_local_data(source)})
    title = f"{_last_part(encoder)} for {', '.join(labels)}"
    data = ModelCardData(
        base_model=base,
        datasets=hub_data or None,
        eval_results=results or None,
        library_name=library,
        metrics=sorted(set(_METRICS.values())) if results else None,
        model_name=title if results else None,
        pipeline_tag=pipeline,
        tags=["mtl_dist", "multi-task"],
    )
    about = (
        f"`{_last_part(encoder)}`, fine-tuned by mtl_dist for {', '.join(f'`{task}`' for task in recipe.tasks)} at"
        f" once; sentence vector: {recipe.model.pooling}, at most {recipe.data.max_length} tokens."
    )
    table = ["| task | labels | test accuracy | test macro-F1 |", "|---|---|---|---|"]
    table += [_row(task, labels[task], source, summary) for task, source in sources.items()]
    yaml = resolved_yaml(_without_folders(recipe)).rstrip()
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {title}",
        about,
        "\n".join(table),
        f"## Use\n\n{usage.strip()}",
        f"## Recipe\n\nFolders left out.\n\n```yaml\n{yaml}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _row(task: str, labels: Sequence[str], source: SourceConfig, summary: Mapping[str, Any]) -> str:
    names = ", ".join(f"`{label}`" for label in labels[:MOST_LABELS]).replace("|", "\\|")
    if len(labels) > MOST_LABELS:
        names += f" and {len(labels) - MOST_LABELS:,} more, in config.json"
    pair = " (pair)" if len(source.text) == 2 else ""
    figures = [summary.get(f"test/{task}/{name}") for name in _METRICS]
    shown = " | ".join("" if figure is None else f"{figure:.4f}" for figure in figures)
    return f"| {task}{pair} | {names} | {shown} |"


def _results(task: str, source: SourceConfig, summary: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-classification",
            task_name=task,
            dataset_type=source.path,
            dataset_name=task if _is_local_data(source) else source.path,
            dataset_config=source.name or task,
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{task}/{name}",  # two tasks may use the same data set
            metric_value=summary[f"test/{task}/{name}"],
        )
        for name, metric in _METRICS.items()
        if f"test/{task}/{name}" in summary
    ]


def _is_local(name: str) -> bool:
    """Whether `name` is a folder rather than a hub id, which is NAME or OWNER/NAME."""
    return name.count("/") > 1 or PurePath(name).is_absolute() or name.startswith(".")


def _is_local_data(source: SourceConfig) -> bool:
    return source.path in FILE_BUILDERS or _is_local(source.path)


def _last_part(name: str) -> str:
    return PurePath(name).name if _is_local(name) else name


def _some_labels(labels: dict[str, str] | None) -> dict[str, str] | None:
    """A task's labels as in its recipe; of many only the first, and how many there are beyond these."""
    if labels is None or len(labels) <= MOST_LABELS:
        return labels
    first = list(labels)[:MOST_LABELS]
    return {**{one: labels[one] for one in first}, "...": f"... and {len(labels) - MOST_LABELS:,} more"}


def _without_folders(recipe: Recipe) -> Recipe:
    return recipe.model_copy(
        update={
            "output_dir": PurePath(recipe.output_dir).name,
            "model": recipe.model.model_copy(update={"encoder": _last_part(recipe.model.encoder)}),
            "data": recipe.data.model_copy(update={"cache_dir": None}),
            "cache": recipe.cache.model_copy(update={"folder": None}),
            "sources": {name: _by_file_name(source) for name, source in recipe.sources.items()},
            "tasks": {
                name: _by_file_name(task).model_copy(update={"labels": _some_labels(task.labels)})
                for name, task in recipe.tasks.items()
            },
        }
    )


def _by_file_name(rows: _Rows) -> _Rows:
    files = {split: [PurePath(file).name for file in of_split] for split, of_split in rows.data_files.items()}
    path = None if rows.path is None else _last_part(rows.path)
    return rows.model_copy(update={"path": path, "data_files": files})
