"""The model card beside saved weights: tasks, test metrics, recipe, and how to load the model."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from mtl_dist.config.load import resolved_yaml
from mtl_dist.config.recipe import Recipe, TaskConfig
from mtl_dist.config.validation import FILE_BUILDERS

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
    results = [result for task in labels for result in _results(task, recipe.tasks[task], summary)]
    hub_data = sorted({recipe.tasks[task].path for task in labels if not _is_local_data(recipe.tasks[task])})
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
    table += [_row(task, labels[task], recipe.tasks[task], summary) for task in labels]
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


def _row(task: str, labels: Sequence[str], config: TaskConfig, summary: Mapping[str, Any]) -> str:
    names = ", ".join(f"`{label}`" for label in labels[:MOST_LABELS]).replace("|", "\\|")
    if len(labels) > MOST_LABELS:
        names += f" and {len(labels) - MOST_LABELS:,} more, in config.json"
    pair = " (pair)" if len(config.text) == 2 else ""
    figures = [summary.get(f"test/{task}/{name}") for name in _METRICS]
    shown = " | ".join("" if figure is None else f"{figure:.4f}" for figure in figures)
    return f"| {task}{pair} | {names} | {shown} |"


def _results(task: str, config: TaskConfig, summary: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-classification",
            task_name=task,
            dataset_type=config.path,
            dataset_name=task if _is_local_data(config) else config.path,
            dataset_config=config.name or task,
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


def _is_local_data(config: TaskConfig) -> bool:
    return config.path in FILE_BUILDERS or _is_local(config.path)


def _last_part(name: str) -> str:
    return PurePath(name).name if _is_local(name) else name


def _some_labels(labels: Any) -> Any:
    """A task's labels as in its recipe; of many only the first, and how many there are beyond these."""
    if labels is None or len(labels) <= MOST_LABELS:
        return labels
    first, more = list(labels)[:MOST_LABELS], f"... and {len(labels) - MOST_LABELS:,} more"
    return {**{one: labels[one] for one in first}, "...": more} if isinstance(labels, Mapping) else [*first, more]


def _without_folders(recipe: Recipe) -> Recipe:
    tasks = {
        name: task.model_copy(
            update={
                "path": _last_part(task.path),
                "data_files": {split: PurePath(file).name for split, file in task.data_files.items()},
                "labels": _some_labels(task.labels),
            }
        )
        for name, task in recipe.tasks.items()
    }
    return recipe.model_copy(
        update={
            "output_dir": PurePath(recipe.output_dir).name,
            "model": recipe.model.model_copy(update={"encoder": _last_part(recipe.model.encoder)}),
            "data": recipe.data.model_copy(update={"cache_dir": None}),
            "tasks": tasks,
        }
    )
